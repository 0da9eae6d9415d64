"""How a worker starts and ends, and what it knows of the time in between."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from pathlib import Path

import orjson
import pytest
from managing import eventually
from scripted_server import Content, Fault, ScriptedServer
from worker_process import Gate, WorkerProcess

from bundles.exits import WorkerExit
from bundles.model import new_uuid
from worker.runtimes.choice import APPTAINERS

HOUR = 3600.0


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


def test_a_run_that_was_preparing_gets_no_cpu_of_one_that_goes_on(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    first, second = "0x" + "f" * 32, "0x" + "0" * 32
    worker.start("--cpus", "1")
    script.run(f"read line < {gate.path}", uuid=first)
    script.until_state(first, "running")
    script.run("true", uuid=second)
    script.until(
        lambda: script.runs.get(second, {}).get("run_status") == "Waiting for 1 cpus and 0 gpus"
    )
    worker.kill()
    before = len(script.checkins)
    worker.start("--cpus", "1")
    script.until(lambda: len(script.checkins) > before)
    states = {run["uuid"]: run["state"] for run in script.checkins[before]["runs"]}
    assert states == {first: "running", second: "preparing"}
    gate.open()
    assert script.until_over(second)["exitcode"] == 0


def test_a_time_limit_is_kept_over_a_restart_whatever_the_clock_says(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    """As if the clock had been hours ahead when the worker began, and set right since then."""
    gate = Gate(tmp_path / "gate")
    worker.start()
    uuid = script.run(f"read line < {gate.path}", time=600)
    script.until_state(uuid, "running")
    worker.kill()
    path = worker.work_directory / "workers/w1/clock"
    kept = orjson.loads(path.read_bytes())
    record = worker.work_directory / "workers/w1/runs" / f"{uuid}-1" / "run.json"
    run = orjson.loads(record.read_bytes())
    run["times"] = {
        stage: [start - 5 * HOUR, end and end - 5 * HOUR]
        for stage, (start, end) in run["times"].items()
    }
    record.write_bytes(orjson.dumps(run))
    path.write_bytes(orjson.dumps({**kept, "offset_seconds": kept["offset_seconds"] - 5 * HOUR}))
    before = len(script.checkins)
    worker.start()
    script.until(lambda: len(script.checkins) > before + 1)
    assert script.runs[uuid]["container_time_total"] < HOUR
    gate.open()
    assert script.until_over(uuid)["failure_message"] is None


def test_how_far_a_run_is_that_only_prepares_is_reported_again_and_again(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    fault = script.fault("download", Fault(hold=threading.Event()))
    worker.start("--checkin-frequency-seconds", "0.2")
    uuid = script.run("cat f", dependencies=[("f", file, "")])
    script.until(fault.met.is_set)
    script.until_state(uuid, "preparing")
    before = len(script.checkins)
    script.until(lambda: len(script.checkins) > before + 3)
    assert fault.hold is not None
    fault.hold.set()
    assert script.until_over(uuid)["exitcode"] == 0


@pytest.mark.skipif(any(map(shutil.which, APPTAINERS)), reason="apptainer would be taken")
def test_where_no_engine_answers_auto_runs_bundles_as_processes(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.env |= {"DOCKER_HOST": f"unix://{tmp_path}/nothing"}
    worker.start("--runtime", "auto")
    uuid = script.run("echo ran", docker_image="localhost/no-such-image:9")
    assert script.until_over(uuid)["exitcode"] == 0
    assert "bundles run as processes: no docker engine answers at" in worker.log


def test_without_an_id_it_carries_on_with_what_such_a_worker_has_left(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    worker.worker_id = ""
    worker.start()
    uuid = script.run(f"echo ran >> ran; read line < {gate.path}")
    script.until_state(uuid, "running")
    names = worker.work_directory / "workers"
    (first,) = names.iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = WorkerProcess(elsewhere, "http://127.0.0.1:9", worker_id="")
    with contextlib.closing(other) as neighbour:
        neighbour.work_directory = worker.work_directory
        neighbour.start()
        eventually(lambda: len([*names.glob("*/lock")]) == 2, "what a live one has is not taken")
        neighbour.kill()
    assert worker.stop(signal.SIGINT) == WorkerExit.TERMINATED
    before = len(script.checkins)
    worker.start()
    script.until(lambda: len(script.checkins) > before)
    assert [run["state"] for run in script.checkins[-1]["runs"]] == ["running"]
    gate.open()
    assert script.until_over(uuid)["exitcode"] == 0
    assert script.files(uuid)["ran"] == b"ran\n"
    assert worker.stop() == WorkerExit.FINISHED
    assert not first.exists()


def test_without_an_id_it_removes_what_such_a_worker_that_had_no_run_has_left(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.worker_id = ""
    for _ in range(2):
        before = len(script.checkins)
        worker.start()
        script.until(lambda before=before: len(script.checkins) > before)
        worker.kill()
    names = worker.work_directory / "workers"
    assert len([*names.iterdir()]) == 1
    worker.start()
    assert script.until_over(script.run("true"))["exitcode"] == 0
    assert worker.stop() == WorkerExit.FINISHED
    assert [*names.iterdir()] == []
