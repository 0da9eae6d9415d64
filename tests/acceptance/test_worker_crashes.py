"""A worker that is killed at any point and started again over the same directory loses nothing.

Where it is killed is not left to the clock: the server by script holds the request that the stage
waits for, or the command waits at a fifo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from scripted_server import Content, Fault, ScriptedServer
from worker_process import WorkerProcess

from bundles.exits import WorkerExit
from bundles.model import new_uuid

PATIENCE_SECONDS = 30.0


def eventually(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"this does not happen: {what}"
        pause.wait(0.02)


def held() -> Fault:
    return Fault(hold=threading.Event(), status=500)


def let_go(fault: Fault) -> None:
    assert fault.hold is not None
    fault.hold.set()


def records(worker: WorkerProcess) -> list[dict[str, object]]:
    found = []
    for path in worker.work_directory.glob("workers/*/runs/*/run.json"):
        try:
            found.append(orjson.loads(path.read_bytes()))
        except OSError:
            continue
    return found


def until_check_in(script: ScriptedServer) -> None:
    """One more than there were."""
    before = len(script.checkins)
    script.until(lambda: len(script.checkins) > before)


def stages(worker: WorkerProcess) -> list[object]:
    return [record["stage"] for record in records(worker)]


def finish(script: ScriptedServer, worker: WorkerProcess, uuid: str) -> dict[str, object]:
    report = script.until_over(uuid)
    assert worker.stop() == WorkerExit.FINISHED
    assert worker.left_files() == []
    assert worker.strays() == []
    return report


def test_killed_while_a_dependency_is_downloaded(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    fault = script.fault("download", held())
    worker.start()
    uuid = script.run(f"cat f; echo ran >> {tmp_path}/ran", dependencies=[("f", file, "")])
    script.until(fault.met.is_set)
    script.until_state(uuid, "preparing")
    worker.kill()
    worker.start()
    script.until_over(uuid)
    let_go(fault)
    assert script.files(uuid)["stdout"] == b"F"
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert worker.stop() == WorkerExit.FINISHED


def test_killed_while_the_command_runs_it_is_attached_to_again(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    worker.start()
    uuid = script.run(
        f"(setsid sleep 1000 > /dev/null &); echo ran >> {tmp_path}/ran; read x < {gate}; exit 4"
    )
    script.until_state(uuid, "running")
    eventually((tmp_path / "ran").exists)
    for _ in range(3):
        worker.kill()
        worker.start()
        until_check_in(script)
        assert [run["state"] for run in script.checkins[-1]["runs"]] == ["running"]
    with gate.open("w") as fifo:
        fifo.write("go\n")
    report = finish(script, worker, uuid)
    assert report["exitcode"] == 4
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_killed_while_the_command_runs_and_away_when_it_ends(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    worker.start()
    uuid = script.run(f"(setsid sleep 1000 > /dev/null &); read line < {gate}; echo $line; exit 6")
    script.until_state(uuid, "running")
    worker.kill()
    with gate.open("w") as fifo:
        fifo.write("went\n")
    eventually(lambda: list(worker.work_directory.rglob("exit")), "it has left word")
    worker.start()
    report = finish(script, worker, uuid)
    assert report["exitcode"] == 6
    assert script.files(uuid)["stdout"] == b"went\n"


def test_a_limit_and_a_kill_hold_for_a_run_that_was_attached_to_again(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    slow, shot = script.run("sleep 1000", time=2), script.run("sleep 1000")
    script.until_state(slow, "running")
    script.until_state(shot, "running")
    worker.kill()
    script.send({"type": "kill", "uuid": shot})
    worker.start("--cpus", "2")
    assert script.until_over(shot)["failure_message"] == "Kill requested"
    assert str(script.until_over(slow)["failure_message"]).startswith("Time limit exceeded")
    assert worker.strays() == []


def test_killed_while_results_are_uploaded(script: ScriptedServer, worker: WorkerProcess) -> None:
    fault = script.fault("upload", held())
    worker.start()
    uuid = script.run("echo out; exit 2")
    script.until(fault.met.is_set)
    assert stages(worker) == ["UPLOADING_RESULTS"]
    worker.kill()
    worker.start()
    report = finish(script, worker, uuid)
    let_go(fault)
    assert report["exitcode"] == 2
    assert len(script.uploads[uuid]) == 1


def test_it_comes_back_with_another_token_and_goes_on_with_what_it_had(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    faults = [script.fault("upload", held()), script.fault("download", held())]
    worker.start("--cpus", "2")
    uploading = script.run("echo out")
    script.until(faults[0].met.is_set)
    fetching = script.run("cat f", dependencies=[("f", file, "")])
    script.until(faults[1].met.is_set)
    worker.kill()
    script.fault("checkin", Fault(status=500, times=2))
    worker.start("--cpus", "2", env={"WORKER_MANAGER_TOKEN": "the-token-of-its-second-life"})
    for uuid in (uploading, fetching):
        report = script.until_over(uuid)
        assert report["exitcode"] == 0, report
        assert len(script.uploads[uuid]) == 1
    for fault in faults:
        let_go(fault)
    assert worker.stop() == WorkerExit.FINISHED


def test_what_is_uploaded_after_a_kill_takes_no_cpu_from_what_comes_next(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    fault = script.fault("upload", held())
    worker.start("--cpus", "1")
    first = script.run("echo done > out")
    script.until(fault.met.is_set)
    worker.kill()
    second = script.run("true")
    again = script.fault("upload", held())
    worker.start("--cpus", "1")
    script.until(again.met.is_set)
    script.until_over(second)
    let_go(fault)
    let_go(again)
    finish(script, worker, first)


def test_killed_when_the_results_are_there_but_nobody_was_told(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.finalizes = False
    worker.start()
    uuid = script.run("echo out")
    script.until_state(uuid, "finalizing")
    assert stages(worker) == ["FINALIZING"]
    worker.kill()
    script.finalizes = True
    worker.start()
    finish(script, worker, uuid)
    assert len(script.uploads[uuid]) == 1


def test_killed_between_the_last_word_and_the_removal(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("echo out")
    script.until_state(uuid, "finalizing")
    script.until_over(uuid)
    worker.kill()
    # As it is when the record is the last thing that was written.
    place = worker.work_directory / "workers/w1/runs" / f"{uuid}-1"
    (place / "files").mkdir(parents=True, exist_ok=True)
    (place / "run.json").write_bytes(orjson.dumps(finished_record(uuid)))
    worker.start()
    script.until(lambda: script.checkins[-1]["sequence"] == 1 or script.checkins[-1]["runs"] == [])
    eventually(lambda: not place.exists(), "it is removed")
    assert worker.stop() == WorkerExit.FINISHED


def finished_record(uuid: str) -> dict[str, object]:
    return {
        "version": 1,
        "uuid": uuid,
        "claim": 1,
        "bundle": {"uuid": uuid, "command": "true", "dependencies": [], "metadata": {}},
        "resources": {"cpus": 1, "gpus": 0, "memory": 0, "disk": 0, "time": 0},
        "accepted": 1.0,
        "stage": "FINISHED",
        "fate": "kept",
        "failure_message": None,
        "exitcode": 0,
        "stopping": False,
        "process": None,
        "cpus": [],
        "gpus": [],
        "times": {},
        "seconds": [0, 0, 0],
    }


def test_killed_before_the_process_is_on_disk_the_command_never_runs(tmp_path: Path) -> None:
    """The runtime alone: its process is made, and the worker dies before it lets it go."""
    place = tmp_path / "run"
    (place / "files").mkdir(parents=True)
    program = """
        import os, signal
        from pathlib import Path
        from worker.loop import Loop
        from worker.runtimes.base import Job
        from worker.runtimes.process import ProcessRuntime
        place = Path(os.environ["PLACE"])
        runtime = ProcessRuntime(Loop(), lambda key, end: None)
        runtime.start(Job("k", "0x0", "echo ran > ../ran", place, place / "files"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PLACE": str(place)},
        check=False,
    )
    assert done.returncode == -9
    eventually((place / "exit").exists, "the script has seen it")
    eventually(lambda: (place / "exit").read_text() == "held\n")
    assert not (place / "ran").exists()


def test_a_torn_record_costs_its_run_and_no_other(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    torn, whole = script.run("sleep 1000"), script.run("sleep 2000")
    script.until_state(torn, "running")
    script.until_state(whole, "running")
    worker.kill()
    record = worker.work_directory / "workers/w1/runs" / f"{torn}-1" / "run.json"
    record.write_bytes(record.read_bytes()[:100])
    worker.start("--cpus", "2")
    until_check_in(script)
    assert [run["uuid"] for run in script.checkins[-1]["runs"]] == [whole]
    eventually(
        lambda: all("sleep 1000" not in command for command in worker.stray_commands()),
        "its processes are ended",
    )
    eventually(lambda: not record.parent.exists(), "its directory is removed")
    script.send({"type": "kill", "uuid": whole})
    assert script.until_over(whole)["failure_message"] == "Kill requested"


def test_a_run_whose_process_vanished_unseen_is_given_back(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("sleep 1000")
    script.until_state(uuid, "running")
    worker.kill()
    for stray in worker.strays():
        stray.kill()
    eventually(lambda: worker.strays() == [])
    worker.start()
    script.until_state(uuid, "staged")
    assert uuid not in script.uploads


def test_a_process_id_that_is_anothers_by_now_is_left_alone(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("sleep 1000")
    script.until_state(uuid, "running")
    worker.kill()
    for stray in worker.strays():
        stray.kill()
    path = worker.work_directory / "workers/w1/runs" / f"{uuid}-1" / "run.json"
    record = orjson.loads(path.read_bytes())
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as foreign:
        try:
            record["process"]["pid"] = foreign.pid
            path.write_bytes(orjson.dumps(record))
            worker.start()
            script.until_state(uuid, "staged")
            assert foreign.poll() is None
        finally:
            foreign.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; needs root, or user namespaces would be needed for the worker."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; see the one with ulimit")
def test_a_full_disk_fails_the_run_that_filled_it_and_the_worker_goes_on(
    script: ScriptedServer, tmp_path: Path, small_disk: Path
) -> None:
    worker = WorkerProcess(tmp_path, script.url)
    worker.work_directory = small_disk / "work"
    try:
        worker.start()
        uuid = script.run("head -c 100m /dev/zero > big; echo $?; exit 9")
        report = script.until_over(uuid)
        assert report["exitcode"] == 9 or report["failure_message"]
        after = script.run("head -c 1m /dev/zero > fits && echo fine")
        assert script.until_over(after)["exitcode"] == 0
        assert script.files(after)["stdout"] == b"fine\n"
        assert worker.stop() == WorkerExit.FINISHED
    finally:
        worker.close()


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with path.open("wb", buffering=0) as file:
        size_bytes = 1024**2
        while size_bytes:
            try:
                if file.write(bytes(size_bytes)) < size_bytes:
                    size_bytes //= 2
            except OSError:
                size_bytes //= 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; see the one with ulimit")
def test_a_run_waits_while_somebody_else_fills_the_disk(
    script: ScriptedServer, tmp_path: Path, small_disk: Path
) -> None:
    worker = WorkerProcess(tmp_path, script.url)
    worker.work_directory = small_disk / "work"
    try:
        worker.start()
        script.until(lambda: script.checkins)
        ballast = small_disk / "ballast"
        fill(ballast)
        uuid = script.run("echo fine")
        eventually(lambda: "has to wait" in worker.log or script.runs.get(uuid))
        ballast.unlink()
        script.until(lambda: "finalizing" in script.history.get(uuid, ()))
    finally:
        worker.close()


def test_files_that_may_not_grow_fail_the_run_and_not_the_worker(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    """As a full disk, without being root: every file of the run is bounded."""
    worker.start()
    uuid = script.run("ulimit -f 1; head -c 100k /dev/zero > big")
    report = script.until_over(uuid)
    assert report["failure_message"] == "Killed by signal SIGXFSZ (25)"
    after = script.run("true")
    assert script.until_over(after)["exitcode"] == 0


def test_room_for_a_dependency_is_made_by_those_that_nobody_uses(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    first, second = new_uuid(), new_uuid()
    script.contents[(first, "")] = Content(bytes(600_000))
    script.contents[(second, "")] = Content(bytes(600_000))
    worker.start("--max-work-dir-size", "1m")
    script.until_over(script.run("wc -c f", dependencies=[("f", first, "")]))
    script.until_over(script.run("wc -c f", dependencies=[("f", second, "")]))
    eventually(lambda: script.checkins[-1]["dependencies"] == [[second, ""]] or script.run("true"))
    again = script.run("wc -c < f", dependencies=[("f", first, "")])
    script.until_over(again)
    assert script.files(again)["stdout"].strip() == b"600000"
    assert script.downloads.count((first, "")) == 2
