from __future__ import annotations

import json
from pathlib import Path

import pytest

from manager.journal import HEARTBEAT_SECONDS, KEPT_FILES, Journal, last_entry

IDLE = {"staged": 0}
NONE = {"launch": 0, "reasons": []}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_tick_is_one_line_with_what_was_seen_decided_and_done(tmp_path: Path) -> None:
    path = tmp_path / "j" / "p.jsonl"
    Journal(path, "p").write(
        12.5, {"staged": 1}, {"launch": 1}, [{"launch": "p-1-x"}], config={"max_workers": 2}
    )
    assert lines(path) == [
        {
            "format": 1,
            "time": 12.5,
            "pool": "p",
            "config": {"max_workers": 2},
            "snapshot": {"staged": 1},
            "decision": {"launch": 1},
            "results": [{"launch": "p-1-x"}],
            "repeats": 0,
        }
    ]


def test_idle_repetitions_are_left_out_counted_and_written_once_in_a_while(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "p")
    assert journal.write(0.0, IDLE, NONE)
    assert not journal.write(5.0, IDLE, NONE)
    assert not journal.write(10.0, IDLE, NONE)
    assert journal.write(HEARTBEAT_SECONDS, IDLE, NONE)
    assert [line["repeats"] for line in lines(path)] == [0, 2]


def test_what_is_new_is_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "p")
    journal.write(0.0, IDLE, NONE)
    assert journal.write(1.0, {"staged": 1}, NONE)
    assert journal.write(2.0, {"staged": 1}, NONE, [{"launch": "k"}])
    assert journal.write(3.0, None, None, error="Unreachable: no answer")
    assert not journal.write(4.0, None, None, error="Unreachable: no answer")


def test_files_are_rotated_by_size_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "p", max_bytes=300)
    for number in range(50):
        journal.write(float(number), {"staged": number}, NONE)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + KEPT_FILES
    assert all(file.stat().st_size <= 300 for file in files)
    assert last_entry(path) == lines(path)[-1]


def test_half_a_line_of_a_manager_that_was_killed_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    Journal(path, "p").write(1.0, IDLE, NONE)
    with path.open("a") as file:
        file.write('{"time": 2.0, "snaps')
    entry = last_entry(path)
    assert entry is not None
    assert entry["time"] == 1.0
    Journal(path, "p").write(3.0, IDLE, NONE)
    entry = last_entry(path)
    assert entry is not None
    assert entry["time"] == 3.0


def test_there_is_no_last_entry_before_the_first(tmp_path: Path) -> None:
    assert last_entry(tmp_path / "p.jsonl") is None


@pytest.mark.parametrize("length", [10, 100_000, 3_000_000])
def test_the_last_entry_is_found_however_long_it_is(tmp_path: Path, length: int) -> None:
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "p")
    journal.write(1.0, {"jobs": "x" * 10}, {"launch": 0})
    journal.write(2.0, {"jobs": "x" * length}, {"launch": 0}, error="another")
    with path.open("a") as file:
        file.write('{"half')
    entry = last_entry(path)
    assert entry is not None
    assert entry["time"] == 2.0
