"""A machine that is about to be taken away: what the worker on it does with the time left."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from pathlib import Path

import pytest
from managing import eventually
from metadata_services import AzureVm, ComputeEngine, Ec2
from scripted_server import Fault, ScriptedServer
from serving import Server
from worker_process import Gate, WorkerProcess

from bundles.exits import WorkerExit

OFTEN = ("--preemption-check-seconds", "0.1")


def test_what_ends_in_time_is_uploaded_and_the_rest_is_given_back(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    with contextlib.closing(Ec2()) as ec2:
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{ec2.host}/"}
        worker.start("--cpus", "4", *OFTEN, env=endpoint)
        short = script.run(f"read line < {gate.path}; echo done")
        long = script.run("sleep 1000")
        script.until_state(short, "running")
        script.until_state(long, "running")
        assert not script.checkins[-1]["is_terminating"]
        ec2.interrupt(6.0)
        script.until(lambda: script.checkins[-1]["is_terminating"])
        late = script.run("echo too late")
        gate.open()
        assert script.until_over(short)["exitcode"] == 0
        script.until_state(long, "staged")
        assert worker.wait() == WorkerExit.PREEMPTED
    assert script.files(short)["stdout"] == b"done\n"
    assert late not in script.runs
    assert long not in script.uploads
    assert script.checkouts[0]["reason"] == "preempted: EC2 will terminate this spot instance"
    assert worker.strays() == []
    assert worker.left_files() == []


def test_an_upload_that_is_under_way_has_longer_than_a_run(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    slow, stuck = threading.Event(), threading.Event()
    with contextlib.closing(Ec2()) as ec2:
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{ec2.host}"}
        worker.start("--cpus", "3", *OFTEN, env=endpoint)
        long = script.run("sleep 1000")
        script.until_state(long, "running")
        uuids = []
        for hold in (slow, stuck):
            fault = script.fault("upload", Fault(hold=hold))
            uuids.append(script.run("echo out"))
            script.until(fault.met.is_set)
        ec2.interrupt(9.0)
        script.until_state(long, "staged")
        slow.set()
        assert script.until_over(uuids[0])["exitcode"] == 0
        script.until_state(uuids[1], "staged")
        assert worker.wait() == WorkerExit.PREEMPTED
    assert list(script.uploads) == uuids[:1]
    assert worker.left_files() == []


def test_an_instance_that_is_no_spot_instance_is_asked_once(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    with contextlib.closing(Ec2(life_cycle="on-demand")) as ec2:
        worker.start(
            "--preemption",
            "aws",
            *OFTEN,
            env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{ec2.host}"},
        )
        ec2.until(lambda: len(ec2.asked) == 2)
        script.until_over(script.run("sleep 0.5"))
        assert worker.stop() == WorkerExit.FINISHED
        assert ec2.asked == ["PUT /latest/api/token", "GET /latest/meta-data/instance-life-cycle"]
    assert "this is no spot instance (on-demand)" in worker.log


def test_compute_engine_tells_by_itself_and_is_not_asked_again_and_again(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    with contextlib.closing(ComputeEngine()) as engine:
        worker.start(env={"GCE_METADATA_HOST": engine.host})
        uuid = script.run(f"read line < {gate.path}")
        script.until_state(uuid, "running")
        engine.until(lambda: len(engine.asked) == 3)
        engine.preempt()
        script.until(lambda: script.checkins[-1]["is_terminating"])
        gate.open()
        assert worker.wait() == WorkerExit.PREEMPTED
        assert script.runs[uuid]["exitcode"] == 0
        # Is it there, what is the value, and tell me when it changes.
        assert len(engine.asked) == 3
    assert script.checkouts[0]["reason"] == "preempted: Compute Engine takes this machine back"


@pytest.mark.parametrize("has_neighbour", [False, True])
def test_azure_is_told_that_the_machine_may_go_unless_others_work_on_it(
    script: ScriptedServer, worker: WorkerProcess, has_neighbour: bool
) -> None:
    lock_path = worker.work_directory / "workers" / "other" / "lock"
    lock_path.parent.mkdir(parents=True)
    with contextlib.closing(AzureVm("pool_1")) as azure, lock_path.open("w") as lock:
        if has_neighbour:
            fcntl.flock(lock, fcntl.LOCK_EX)
        azure.schedule("Preempt", "pool_0", 2.0)
        azure.schedule("Reboot", "pool_1", 2.0)
        worker.start(*OFTEN, env={"AZURE_METADATA_SERVICE_ENDPOINT": f"http://{azure.host}"})
        uuid = script.run("sleep 1000")
        script.until_state(uuid, "running")
        asked = len(azure.asked)
        azure.until(lambda: len(azure.asked) > asked + 2)
        assert not script.checkins[-1]["is_terminating"]
        event = azure.schedule("Preempt", "_pool_1", 3.0)
        script.until_state(uuid, "staged")
        assert worker.wait() == WorkerExit.PREEMPTED
        assert azure.acknowledged == ([] if has_neighbour else [event])
    assert script.checkouts[0]["reason"] == "preempted: Azure evicts this machine"


def test_a_signal_during_the_notice_gives_everything_back_at_once(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    with contextlib.closing(ComputeEngine()) as engine:
        worker.start(env={"GCE_METADATA_HOST": engine.host})
        uuid = script.run("sleep 1000")
        script.until_state(uuid, "running")
        engine.preempt()
        script.until(lambda: script.checkins[-1]["is_terminating"])
        assert worker.stop() == WorkerExit.PREEMPTED
    assert script.runs[uuid]["state"] == "staged"
    assert worker.strays() == []


def test_the_signal_of_a_slurm_job_that_ends_gives_the_runs_back(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start(env={"SLURM_JOB_ID": "12"})
    uuid = script.run("sleep 1000")
    script.until_state(uuid, "running")
    assert worker.stop(signal.SIGTERM) == WorkerExit.TERMINATED
    assert script.runs[uuid]["state"] == "staged"
    assert worker.strays() == []


def test_a_metadata_service_that_is_not_there_holds_nothing_up(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--preemption", "gcp", env={"GCE_METADATA_HOST": "127.0.0.1:9"})
    script.until_over(script.run("true"))
    assert worker.stop() == WorkerExit.FINISHED


def test_bundles_of_a_machine_that_is_taken_away_end_on_another(
    server: Server, tmp_path: Path
) -> None:
    """With the embedded server: what was given back runs anew, and each bundle ends once."""
    marks = tmp_path / "marks"
    marks.mkdir()
    gate = Gate(tmp_path / "gate")
    uuids = []
    for mark in (marks / "one", marks / "two"):
        command = f"echo run >> {mark}; test $(wc -l < {mark}) = 2 || read line < {gate.path}"
        uuids.append(server.output("run", command).strip())
    with contextlib.closing(Ec2()) as ec2, contextlib.ExitStack() as workers:
        first = WorkerProcess(tmp_path / "first", server.url, worker_id="first")
        second = WorkerProcess(tmp_path / "second", server.url, worker_id="second")
        for worker in (first, second):
            worker.directory.mkdir()
            worker.env = dict(server.env)
            workers.callback(worker.close)
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{ec2.host}"}
        first.start("--cpus", "2", *OFTEN, env=endpoint)
        eventually(lambda: len(list(marks.iterdir())) == 2)
        ec2.interrupt(2.0)
        second.start("--cpus", "2")
        assert first.wait() == WorkerExit.PREEMPTED
        server.output("wait", *uuids)
        assert first.strays() == []
        assert second.stop() == WorkerExit.FINISHED
    assert [path.read_text() for path in marks.iterdir()] == ["run\nrun\n"] * 2


def test_hibernation_begins_at_once_and_so_does_the_way_out(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    with contextlib.closing(Ec2()) as ec2:
        worker.start(*OFTEN, env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{ec2.host}"})
        script.until_state(script.run("sleep 1000"), "running")
        ec2.action = {"action": "hibernate"}
        assert worker.wait() == WorkerExit.PREEMPTED
    assert script.checkouts[0]["reason"] == "preempted: EC2 will hibernate this spot instance"
