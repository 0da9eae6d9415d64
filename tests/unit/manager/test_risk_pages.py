from __future__ import annotations

import re
from pathlib import Path

import pytest

from bundles.cli.serve import serve
from bundles.server.books import DEFERRED_SECONDS, LONGEST_DEFERRED_SECONDS, SUSPICIOUS_LOSSES
from manager import policy
from manager.health import Cause

ROOT = Path(__file__).resolve().parents[3]
DIRECTORY = ROOT / "docs/risks"
PAGES = sorted(path for path in DIRECTORY.glob("*.md") if path.name != "README.md")
TEXT = "\n".join(path.read_text() for path in PAGES)


def test_every_cause_has_a_page() -> None:
    named = {cause for cause in Cause if f"`{cause}`" in TEXT or f"({cause})" in TEXT}
    assert named == set(Cause)


def test_every_clause_of_the_decision_is_on_a_page() -> None:
    assert policy.__file__ is not None
    codes = re.findall(r'clause\(\s*"(\w+)"', Path(policy.__file__).read_text())
    assert len(codes) >= 15
    assert [code for code in codes if f"`{code}`" not in TEXT] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_says_how_it_shows_what_is_done_and_what_to_do(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 40
    for part in ("**How it shows.**", "**What the manager does.**", "**What you do.**"):
        assert part in text


def test_the_index_has_every_page_and_every_link_leads_somewhere() -> None:
    index = (DIRECTORY / "README.md").read_text()
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []
    for page in [*PAGES, DIRECTORY / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_what_becomes_of_a_bundle_that_kills_its_workers_is_as_its_page_says() -> None:
    text = (DIRECTORY / "poison-bundle.md").read_text()
    [option] = [option for option in serve.params if option.name == "max_losses"]
    assert (option.default, "After ten losses" in text) == (10, True)
    assert (SUSPICIOUS_LOSSES, "From the third time on" in text) == (3, True)
    deferred = (DEFERRED_SECONDS, LONGEST_DEFERRED_SECONDS)
    assert (deferred, "for a minute (then two, four, … an hour)" in text) == ((60, 3600), True)
