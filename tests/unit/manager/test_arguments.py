from __future__ import annotations

import pytest

from manager.arguments import in_order

COMMANDS = ["local-process", "status"]
WITH_VALUE = {"--max-workers", "--max", "--server", "--pool", "--search"}


def ordered(line: str) -> str:
    return " ".join(in_order(line.split(), COMMANDS, WITH_VALUE))


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("local-process --max 3", "local-process --max 3"),
        ("--max 3 local-process --once", "local-process --max 3 --once"),
        ("--max=3 --once local-process", "local-process --max=3 --once"),
        ("--cpus 4 local-process", "local-process --cpus 4"),
        ("--pool local-process local-process", "local-process --pool local-process"),
        ("--max 3", "--max 3"),
        ("--help", "--help"),
        ("--help local-process", "local-process --help"),
    ],
)
def test_options_may_stand_on_either_side_of_the_backends_name(typed: str, read: str) -> None:
    assert ordered(typed) == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (
            "--search name=a .mine --max 3 local-process",
            "local-process --search name=a --search .mine --max 3",
        ),
        ("--search a b local-process", "local-process --search a --search b"),
        ("local-process --search a b", "local-process --search a --search b"),
        ("--search local-process", "local-process"),
        ("--search=a local-process", "local-process --search=a"),
    ],
)
def test_search_takes_every_word_up_to_the_next_option(typed: str, read: str) -> None:
    assert ordered(typed) == read


def test_an_option_given_on_both_sides_has_the_later_value_last() -> None:
    assert ordered("--max 3 local-process --max 5") == "local-process --max 3 --max 5"
