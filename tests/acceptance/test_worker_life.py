"""How a worker starts and ends, and what it knows of the time in between."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer
from test_worker import Gate
from worker_process import WorkerProcess

from bundles.exits import WorkerExit

HOUR = 3600.0


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as script:
        yield script


@pytest.fixture
def worker(tmp_path: Path, script: ScriptedServer) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path, script.url)
    yield worker
    worker.close()


def test_a_clock_that_is_a_little_off_is_a_warning(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.clock_ahead_seconds = -120.0
    worker.start()
    script.until_over(script.run("true"))
    assert worker.stop() == WorkerExit.FINISHED
    assert "s ahead of the server's: synchronise it" in worker.log


def test_a_clock_that_is_hours_off_ends_the_worker_before_it_takes_anything(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.clock_ahead_seconds = 2 * HOUR
    uuid = script.run("true")
    worker.start()
    assert worker.wait() == WorkerExit.WRONG_CLOCK
    assert "s behind the server's: synchronise it" in script.checkouts[0]["reason"]
    assert uuid not in script.runs


def test_the_runs_that_it_may_do_are_counted_over_its_death(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    options = ("--cpus", "2", "--exit-after-num-runs", "2")
    worker.start(*options)
    script.until_over(script.run("true"))
    uuid = script.run(f"read line < {gate.path}")
    script.until_state(uuid, "running")
    worker.kill()
    before = len(script.checkins)
    worker.start(*options)
    script.until(lambda: len(script.checkins) > before)
    assert script.checkins[-1]["exit_after_num_runs"] == 0
    gate.open()
    assert worker.wait() == WorkerExit.FINISHED
    assert script.runs[uuid]["exitcode"] == 0


def test_a_signal_while_the_last_result_is_told_waits_for_the_word_that_it_is_known(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.finalizes = False
    worker.start()
    uuid = script.run("true")
    script.until_state(uuid, "finalizing")
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)
    script.until(lambda: script.checkins[-1]["is_terminating"])
    script.send({"type": "mark_finalized", "uuid": uuid})
    assert worker.wait() == WorkerExit.FINISHED
    assert script.checkouts[0]["reason"] == "terminated"
    assert worker.left_files() == []


def test_without_that_word_it_leaves_and_tells_the_result_at_its_next_start(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.finalizes = False
    worker.start()
    uuid = script.run("true")
    script.until_state(uuid, "finalizing")
    assert worker.stop() == WorkerExit.TERMINATED
    script.finalizes = True
    worker.start()
    script.until_over(uuid)
    assert worker.stop() == WorkerExit.FINISHED
