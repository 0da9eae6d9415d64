from __future__ import annotations

from pathlib import Path

from worker.tally import Tally


def test_each_run_counts_once_over_all_processes(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "taken")
    tally.add(["a", "b", "a"])
    tally.add(["b"])
    assert len(tally) == 2
    again = Tally(tmp_path / "taken")
    again.add(["b", "c"])
    assert len(again) == 3
    assert (tmp_path / "taken").read_text() == "a\nb\nc\n"


def test_what_cannot_be_written_down_counts_for_now(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "missing" / "taken")
    tally.add(["a"])
    assert len(tally) == 1
