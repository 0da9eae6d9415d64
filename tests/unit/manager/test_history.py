from __future__ import annotations

import json
from pathlib import Path

import pytest
from pool_fakes import GIB, NOW

from bundles.errors import UsageError
from manager.capacity import Need, Offer, Room
from manager.history import read_journal
from manager.journal import FORMAT, Journal
from manager.policy import PoolConfig, decide
from manager.snapshot import Snapshot

CONFIG = PoolConfig(Offer(Room(1, 8, 16 * GIB, 2**62), "gpu", True), 1, 7, 2.5)
SNAPSHOT = Snapshot({Need(Room(cpus=1), "gpu"): 3}, 1, 1, 0, last_launch=NOW - 1)


def test_what_was_written_is_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    decision = decide(SNAPSHOT, CONFIG, NOW)
    Journal(path, "p").write(
        NOW,
        SNAPSHOT.to_document(),
        decision.to_document(),
        [{"launch": "p-1-00000000", "job": "j"}, {"launch": "p-2-00000000", "error": "Invalid: x"}],
        config=CONFIG.to_document(),
    )
    (entry,) = read_journal(path)
    assert (entry.time, entry.pool) == (NOW, "p")
    assert (entry.snapshot, entry.config, entry.decision) == (SNAPSHOT, CONFIG, decision)
    assert entry.launched == 1


def test_rotated_files_are_read_first_and_every_tick_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "p", max_bytes=300)
    for number in range(8):
        journal.write(float(number), None, None, error=f"Unreachable: {number}")
    assert (tmp_path / "p.jsonl.3").exists()
    assert [entry.time for entry in read_journal(path)] == [float(n) for n in range(8)]


def test_a_file_of_one_endless_line_is_no_journal() -> None:
    with pytest.raises(UsageError, match="a line of it does not end"):
        list(read_journal(Path("/dev/zero")))


def test_lines_of_before_there_was_a_format_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    decision = {"launch": 1, "reasons": [{"code": "staged", "held": True, "sentence": "1 staged"}]}
    old = {"time": 1.0, "pool": "p", "snapshot": {"staged": 1}, "decision": decision}
    path.write_text(json.dumps(old) + "\n")
    (entry,) = read_journal(path)
    assert entry.snapshot is None
    assert entry.config is None
    assert entry.decision is not None
    assert entry.decision.summary() == "launch 1 worker: 1 staged"


def test_a_line_of_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"format": FORMAT + 1, "time": 1.0}) + "\n")
    with pytest.raises(UsageError, match="or a later one"):
        list(read_journal(path))


def test_what_is_no_whole_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"time": 1, "po\n[]\n{}\n\n')
    Journal(path, "p").write(2.0, None, None, error="Unreachable: no answer")
    assert [entry.time for entry in read_journal(path)] == [2.0]


def test_no_journal_is_no_line(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "p.jsonl")) == []
