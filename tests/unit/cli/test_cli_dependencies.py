from __future__ import annotations

import pytest

from bundles.cli.dependencies import Wish, check_keys, parse_wish
from bundles.errors import UsageError


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("data:0x12", Wish("data", "0x12", "")),
        ("data:0x12/sub/a.txt", Wish("data", "0x12", "sub/a.txt")),
        ("in/data:corpus", Wish("in/data", "corpus", "")),
        (":0x12", Wish("", "0x12", "")),
        (":0x12/sub/a.txt", Wish("a.txt", "0x12", "sub/a.txt")),
        ("0x12/sub/a.txt", Wish("a.txt", "0x12", "sub/a.txt")),
        ("corpus", Wish("", "corpus", "")),
        ("data/:0x12/", Wish("data", "0x12", "")),
    ],
)
def test_a_dependency_is_a_key_a_bundle_and_a_path(text: str, wish: Wish) -> None:
    assert parse_wish(text) == wish


@pytest.mark.parametrize(
    "text",
    [
        "../up:0x12",
        "a/../b:0x12",
        "/etc:0x12",
        ".:0x12",
        "a//b:0x12",
        "a:0x12/../b",
        "a:0x12//etc",
        "a:",
        ":",
        "a:/x",
    ],
)
def test_a_dependency_that_leaves_its_place_or_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_wish(text)


@pytest.mark.parametrize("keys", [["a", "a"], ["a", "a/b"], ["a/b", "a"]])
def test_two_dependencies_do_not_share_a_place(keys: list[str]) -> None:
    with pytest.raises(UsageError):
        check_keys(keys)


def test_dependencies_may_lie_side_by_side() -> None:
    check_keys(["a", "ab", "c/d", "c/e"])
