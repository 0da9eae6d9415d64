from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.clock import SteadyClock

HOUR = 3600.0


@dataclass
class Machine:
    """A machine whose clock can be set, and which can be restarted."""

    wall: float = 1_000_000.0
    monotonic: float = 50.0
    boot_id: str = "first"

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def clock(self, path: Path) -> SteadyClock:
        return SteadyClock(
            path,
            wall=lambda: self.wall,
            monotonic=lambda: self.monotonic,
            boot_id=lambda: self.boot_id,
        )


def test_setting_the_clock_makes_no_run_older_or_younger(tmp_path: Path) -> None:
    machine = Machine()
    clock = machine.clock(tmp_path / "clock")
    started = clock()
    machine.wall += 5 * HOUR
    machine.pass_time(10.0)
    assert clock() - started == pytest.approx(10.0)
    machine.wall -= 50 * HOUR
    assert clock() - started == pytest.approx(10.0)


def test_the_next_process_of_the_worker_goes_on_with_the_same_time(tmp_path: Path) -> None:
    machine = Machine()
    started = machine.clock(tmp_path / "clock")()
    machine.wall -= 5 * HOUR
    machine.pass_time(60.0)
    assert machine.clock(tmp_path / "clock")() - started == pytest.approx(60.0)


def test_after_a_restart_of_the_machine_its_clock_is_believed(tmp_path: Path) -> None:
    machine = Machine()
    machine.clock(tmp_path / "clock")
    machine.boot_id, machine.monotonic = "second", 3.0
    machine.wall += 2 * HOUR
    assert machine.clock(tmp_path / "clock")() == pytest.approx(machine.wall)
    (tmp_path / "clock").write_text("torn")
    machine.wall += HOUR
    assert machine.clock(tmp_path / "clock")() == pytest.approx(machine.wall)


def test_a_clock_that_was_set_is_believed_once_no_run_is_timed(tmp_path: Path) -> None:
    machine = Machine()
    clock = machine.clock(tmp_path / "clock")
    machine.wall += HOUR
    clock.settle()
    assert clock() == pytest.approx(machine.wall)
    assert machine.clock(tmp_path / "clock")() == pytest.approx(machine.wall)


def test_a_full_disk_stops_no_clock(tmp_path: Path) -> None:
    assert Machine().clock(tmp_path / "missing" / "clock")() == pytest.approx(1_000_000.0)
