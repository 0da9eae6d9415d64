from __future__ import annotations

import io
from typing import Any

import pytest
from pool_fakes import NOW
from rich.console import Console

from manager.commands.top_view import WIDE, picture
from manager.overview import HELD, KEEPING, NO_MANAGER, QUARANTINED, STARTING


def document(name: str, state: str = KEEPING, **more: Any) -> dict[str, Any]:
    entry = {
        "time": NOW - 30,
        "decision": {
            "launch": 2,
            "reasons": [
                {"code": "staged", "held": True, "sentence": "7 bundles staged"},
                {"code": "below_minimum", "held": False, "sentence": "not this one"},
                {"code": "too_soon", "held": True, "sentence": "the last launch was 3 s ago"},
            ],
        },
    }
    return {
        "pool": name,
        "backend": "slurm",
        "manager": None if state == NO_MANAGER else 42,
        "state": state,
        "why": "launch 2 workers: 7 bundles staged",
        "until": None,
        "min_workers": 0,
        "max_workers": 20,
        "staged": 7,
        "unfit": 0,
        "workers": {"active": 3, "pending": 2, "draining": 1, "ending": 0},
        "launched_lately": 5,
        "failures_lately": {},
        "cost": None,
        "last": entry,
        **more,
    }


def shown(pools: list[dict[str, Any]], width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(picture(pools, NOW, width, height))
    lines = captured.get().splitlines()
    assert len(lines) < height, "the last line of a terminal is left free"
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", [80, WIDE, 200])
@pytest.mark.parametrize("number", [0, 1, 3, 17, 60])
@pytest.mark.parametrize("height", [24, 50])
def test_it_fits_every_terminal_and_names_of_any_length(
    width: int, number: int, height: int
) -> None:
    pools = [
        document("p" * 48, QUARANTINED, why="because " * 40, failures_lately={"died young": 3})
        for _ in range(number)
    ]
    shown(pools, width, height)


def test_a_pool_is_one_line_with_its_numbers_whole_at_80_columns() -> None:
    lines = shown([document("campus")])
    (head,) = [line for line in lines if line.startswith("POOL")]
    assert "…" not in head
    (line,) = [line for line in lines if line.startswith("campus")]
    assert line.split() == ["campus", "keeping", "3", "2", "1", "0", "0-20", "7", "5", "0"]


def test_what_is_wrong_comes_first_with_its_reason_and_how_long() -> None:
    lines = shown(
        [
            document("good"),
            document(
                "bad",
                HELD,
                why="the last launch failed: no such image",
                until=NOW + 65,
                failures_lately={"image": 2, "quota": 1},
            ),
        ]
    )
    words = [line for line in lines if line[:2].isdigit() or line.startswith(" ")]
    assert "bad" in words[0]
    assert "held for 1m05s more: the last launch failed: no such image" in words[0]
    assert "2 image, 1 quota" in words[1]
    assert "good" in words[2]
    assert "launch 2 workers: 7 bundles staged" in words[2]
    assert "not this one" not in "".join(lines)


def test_unknown_numbers_are_no_zeros() -> None:
    lines = shown([document("new", STARTING, workers=None, staged=None, last=None)])
    (line,) = [line for line in lines if line.startswith("new")]
    assert line.split()[2:6] == ["?"] * 4
    assert line.split()[7] == "?"


def test_pools_that_nobody_keeps_say_no_words() -> None:
    lines = shown([document("old", NO_MANAGER)])
    assert sum("old" in line for line in lines) == 1
    assert "managers 0" in lines[0]


def test_money_is_added_up_where_there_are_prices() -> None:
    cost = {"per_hour": 1.5, "spent": {"hour": 0.25, "day": 2.0, "month": 30.0}}
    lines = shown([document("a", cost=cost), document("b", cost=cost), document("c")], WIDE + 20)
    assert " ".join(lines[2].split()) == (
        "spent 0.50 this hour 4.00 this day 60.00 this month now 3.00 an hour"
    )
    assert any(line.startswith("a ") and " 2.00 " in line for line in lines)
    assert "spent" not in "".join(shown([document("c")]))
