from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pool_fakes import GIB, NOW

from manager.capacity import Need, Offer, Room
from manager.cli import main
from manager.commands.replay import UNKNOWN, _change
from manager.history import Entry, read_journal
from manager.journal import Journal
from manager.policy import PoolConfig, decide
from manager.replay import replay, summarize
from manager.snapshot import Snapshot

SHAPE = Offer(Room(0, 2, 4 * GIB, 2**62))
CONFIG = PoolConfig(SHAPE, 0, 3)
ONE = Need(Room(0, 2, GIB, 0))


class Recorded:
    """A pool whose manager is played by hand, and its journal."""

    def __init__(self, directory: Path, config: PoolConfig = CONFIG) -> None:
        self.path = directory / "p.jsonl"
        self.config = config
        self._journal = Journal(self.path, "p")
        self._last_launch: float | None = None
        self.workers = 0
        self._sequence = 0

    def tick(self, after: float, staged: int, *, refused: int = 0, pending: int = 0) -> int:
        """One tick ``after`` seconds after NOW; how many were launched."""
        now = NOW + after
        seen = Snapshot(
            {ONE: staged} if staged else {},
            0,
            pending,
            self.workers - pending,
            last_launch=self._last_launch,
        )
        decision = decide(seen, self.config, now)
        results: list[dict[str, Any]] = []
        for number in range(decision.launch):
            self._sequence += 1
            key = f"p-{self._sequence}-00000000"
            results.append(
                {"launch": key, "error": "Invalid: x"}
                if number < refused
                else {"launch": key, "job": key}
            )
        launched = max(0, decision.launch - refused)
        if decision.launch:
            self._last_launch = now + 0.01
        self.workers += launched
        self._journal.write(
            now,
            seen.to_document(),
            decision.to_document(),
            results,
            config=self.config.to_document(),
        )
        return launched

    def fail(self, after: float) -> None:
        config = self.config.to_document()
        self._journal.write(NOW + after, None, None, config=config, error="Unreachable: x")

    @property
    def entries(self) -> list[Entry]:
        return list(read_journal(self.path))

    def replay(self, **settings: Any) -> Any:
        ticks = list(replay(self.entries, _change(settings)))
        return ticks, summarize(self.entries, ticks)


@pytest.fixture
def busy(tmp_path: Path) -> Recorded:
    """Six bundles for at most three workers, which then go down to none."""
    pool = Recorded(tmp_path)
    assert pool.tick(0, 6) == 3
    pool.tick(5, 6, pending=3)
    pool.tick(10, 3)
    pool.tick(15, 3)
    pool.fail(20)
    pool.tick(25, 0)
    pool.workers = 0
    pool.tick(30, 0)
    pool.tick(35, 1)
    return pool


def test_a_replay_with_the_settings_that_were_is_what_was(busy: Recorded) -> None:
    ticks, summary = busy.replay()
    assert [tick for tick in ticks if tick.differs] == []
    assert all(tick.was == tick.would for tick in ticks)
    assert summary.was == summary.would
    assert (summary.was.launched, summary.was.peak_workers) == (4, 3)
    assert (summary.failed_ticks, summary.other_rule_ticks) == (1, 0)
    assert summary.waiting_seconds == 6 * 5 + 6 * 5 + 3 * 5 + 3 * 10


def test_a_higher_maximum_launches_more_but_not_again_at_every_tick(busy: Recorded) -> None:
    ticks, summary = busy.replay(max_workers=10)
    assert [tick.would.launched for tick in ticks] == [6, 0, 0, 0, 0, 0, 1]
    assert (summary.would.launched, summary.would.peak_workers) == (7, 6)
    assert ticks[-1].would.workers == 0


def test_a_lower_maximum_launches_less_and_never_stands_above_it(busy: Recorded) -> None:
    ticks, summary = busy.replay(max_workers=1)
    assert ticks[0].would.launched == 1
    assert summary.would.peak_workers == 1
    assert max(tick.would.workers for tick in ticks) == 1


def test_a_minimum_keeps_workers_where_there_were_none(busy: Recorded) -> None:
    ticks, _ = busy.replay(min_workers=2)
    by_time = {tick.time - NOW: tick for tick in ticks}
    assert by_time[30].would.launched == 2
    assert by_time[35].would.workers == 2


def test_an_interval_spreads_the_launches(busy: Recorded) -> None:
    ticks, summary = busy.replay(min_seconds_between_workers=10)
    assert [tick.would.launched for tick in ticks][:4] == [1, 0, 0, 1]
    assert summary.would.launched < summary.was.launched


def test_larger_workers_take_several_bundles_each(busy: Recorded) -> None:
    ticks, _ = busy.replay(cpus=6, memory_mb=16384)
    assert ticks[0].would.launched == 2


def test_bundles_that_a_smaller_worker_cannot_hold_are_not_launched_for(busy: Recorded) -> None:
    _, summary = busy.replay(cpus=1)
    assert (summary.would.launched, summary.would.worker_seconds) == (0, 0)


def test_what_was_refused_would_have_been_refused(tmp_path: Path) -> None:
    pool = Recorded(tmp_path)
    pool.tick(0, 3, refused=3)
    pool.tick(5, 3, refused=1)
    ticks, summary = pool.replay(max_workers=5)
    assert [tick.would.launched for tick in ticks] == [0, 2]
    assert summary.was == summary.would


def test_ticks_that_went_unwritten_are_decided_too(tmp_path: Path) -> None:
    pool = Recorded(tmp_path, PoolConfig(SHAPE, 0, 3, min_seconds_between_workers=60))
    for after in range(0, 150, 5):
        pool.tick(after, 9)
    pool.tick(150, 0)
    assert len(pool.entries) < 10
    ticks, summary = pool.replay()
    assert len(ticks) == 31
    assert summary.was == summary.would
    assert [tick.time - NOW for tick in ticks if tick.was.launched] == [0, 65, 130]
    faster, _ = pool.replay(min_seconds_between_workers=12)
    assert [tick.time - NOW for tick in faster if tick.would.launched] == [0, 15, 30]


def test_a_decision_of_another_rule_is_told(busy: Recorded) -> None:
    lines = [json.loads(line) for line in busy.path.read_text().splitlines()]
    lines[2]["decision"]["launch"] = 2
    busy.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert busy.replay()[1].other_rule_ticks == 1


# The command


def test_the_command_prints_both_sides_and_what_it_cannot_know(
    busy: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(busy.path), "--max", "10"]) == 0
    shown = capsys.readouterr().out
    assert "was    launch 3 workers" in shown
    assert "would  launch 6 workers" in shown
    assert "not known" in shown
    assert UNKNOWN in shown
    assert main(["replay", str(busy.path), "--max", "10", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["summary"]["would"]["peak_workers"] == 6
    assert len(document["ticks"]) == document["summary"]["ticks"] == 7


def test_a_journal_without_configuration_needs_every_setting(
    busy: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in busy.path.read_text().splitlines()]
    for line in lines:
        del line["config"], line["format"]
    busy.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["replay", str(busy.path), "--max", "3"]) == 2
    assert "give --min-workers" in capsys.readouterr().err
    line = ["--min", "0", "--max", "3", "--cpus", "2", "--memory-mb", "4096", "-o", "json"]
    assert main(["replay", str(busy.path), *line]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["was"] == summary["would"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min", "9"], "--min-workers 9 is more than --max-workers 3"),
        (["--cpus", "0"], "not in the range"),
    ],
)
def test_settings_that_make_no_sense_are_exit_2(
    words: list[str], said: str, busy: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(busy.path), *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_journal_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("{}\n")
    assert main(["replay", str(tmp_path / "x")]) == 2
    assert "is no journal" in capsys.readouterr().err


POOLS = """
[[pools]]
name = "p"
backend = "local-process"
cpus = 2
memory-mb = 4096
min-workers = 0
max-workers = 5
price-per-hour = 2.0

[[pools]]
name = "other"
backend = "local-process"
"""


def test_a_pool_of_a_pools_file_is_replayed_with_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = Recorded(tmp_path)
    recorded.tick(0, 5)
    recorded.tick(100, 5)
    file = tmp_path / "pools.toml"
    file.write_text(POOLS)
    assert main(["replay", str(recorded.path), "--config", str(file), "-o", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert (summary["was"]["launched"], summary["would"]["launched"]) == (3, 5)
    assert summary["was"]["cost"] == pytest.approx(3 * 100 / 3600 * 2.0, abs=1e-4)
    assert summary["would"]["cost"] == pytest.approx(5 * 100 / 3600 * 2.0, abs=1e-4)


def test_a_pool_that_the_file_does_not_have_is_asked_for_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = Recorded(tmp_path)
    recorded.tick(0, 5)
    file = tmp_path / "pools.toml"
    file.write_text(POOLS.replace('"p"', '"q"'))
    assert main(["replay", str(recorded.path), "--config", str(file)]) == 2
    assert "no pool p: give --pool NAME, one of q, other" in capsys.readouterr().err
