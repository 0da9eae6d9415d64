"""What the pages say of pools files can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manager.pools_file.model import grammar, key_of
from manager.pools_file.reading import parse

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "pools.md").read_text()
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.M | re.S)
    )
    if "[[pools]]" in block and "backend" in block
]


@pytest.fixture(autouse=True)
def _nobody_in_particular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORKER_MANAGER_SERVER", raising=False)
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_pools_file_of_the_pages_is_read(block: str) -> None:
    assert parse(block, Path("pools.toml")).pools


def test_the_page_has_one_for_each_of_its_examples() -> None:
    assert len([block for block in BLOCKS if str(block.id).startswith("pools.md")]) == 3


def test_the_page_names_every_key_that_concerns_all_pools() -> None:
    [row] = [line for line in PAGE.splitlines() if line.startswith("| above all tables")]
    assert set(re.findall(r"`([a-z-]+)`", row)) == {key_of(o) for o in grammar().sets.values()}
