"""Workers and engines that are killed while containers run: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Containers, as_worker_of, eventually, touch
from docker_engine import IMAGE, DockerEngine
from scripted_server import Content, Fault, ScriptedServer
from worker_process import WorkerProcess

from bundles.exits import WorkerExit
from bundles.model import new_uuid

pytestmark = pytest.mark.engine("docker")

WAIT = ": > here; while [ ! -e go ]; do sleep 0.05; done"


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as script:
        yield script


@pytest.fixture
def worker(
    tmp_path: Path, script: ScriptedServer, docker_engine: DockerEngine
) -> Iterator[WorkerProcess]:
    worker = as_worker_of(docker_engine, WorkerProcess(tmp_path, script.url))
    yield worker
    worker.close()


def start(worker: WorkerProcess) -> None:
    worker.start("--runtime", "docker")


def until_check_in(script: ScriptedServer) -> None:
    """One more than there were."""
    before = len(script.checkins)
    script.until(lambda: len(script.checkins) > before)


def names(engine: DockerEngine) -> list[str]:
    return engine.command("ps", "--all", "--format", "{{.Names}}").split()


def leave(worker: WorkerProcess, engine: DockerEngine) -> None:
    assert worker.stop() == 0, worker.log
    assert names(engine) == []
    assert [f for f in worker.left_files() if not f.startswith("dependencies/")] == []


def test_killed_while_it_prepares(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    fault = script.fault("download", Fault(hold=threading.Event(), status=500))
    start(worker)
    uuid = script.run("cat f", dependencies=[("f", file, "")], docker_image=IMAGE)
    script.until(fault.met.is_set)
    worker.kill()
    start(worker)
    script.until_over(uuid)
    assert fault.hold is not None
    fault.hold.set()
    assert script.files(uuid)["stdout"] == b"F"
    leave(worker, docker_engine)


def test_killed_while_it_runs_it_takes_the_container_up_again(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine
) -> None:
    start(worker)
    uuid = script.run("echo ran >> times; " + WAIT + "; exit 4", docker_image=IMAGE)
    script.until_state(uuid, "running")
    place = next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))
    eventually((place / "here").exists, "the command runs")
    for _ in range(3):
        worker.kill()
        start(worker)
        until_check_in(script)
    touch(place / "go")
    report = script.until_over(uuid)
    assert report["exitcode"] == 4
    assert script.files(uuid)["times"] == b"ran\n"
    leave(worker, docker_engine)


@pytest.mark.parametrize(
    ("command", "exitcode"),
    [("exit 5", 5), pytest.param("rm stdout stderr", 0, id="which removes its output")],
)
def test_an_end_that_no_worker_saw_is_found(
    script: ScriptedServer,
    worker: WorkerProcess,
    docker_engine: DockerEngine,
    command: str,
    exitcode: int,
) -> None:
    start(worker)
    uuid = script.run(f"{WAIT}; {command}", docker_image=IMAGE)
    script.until_state(uuid, "running")
    place = next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))
    eventually((place / "here").exists, "the command runs")
    worker.kill()
    touch(place / "go")
    name = names(docker_engine)[0]
    docker_engine.command("wait", name)
    start(worker)
    assert script.until_over(uuid)["exitcode"] == exitcode
    leave(worker, docker_engine)


def test_killed_while_it_uploads(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine
) -> None:
    fault = script.fault("upload", Fault(hold=threading.Event(), status=500))
    start(worker)
    uuid = script.run("echo out; exit 3", docker_image=IMAGE)
    script.until(fault.met.is_set)
    worker.kill()
    start(worker)
    report = script.until_over(uuid)
    assert fault.hold is not None
    fault.hold.set()
    assert report["exitcode"] == 3
    assert script.files(uuid)["stdout"] == b"out\n"
    leave(worker, docker_engine)


def test_killed_while_it_cleans_up(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine
) -> None:
    """It has written down that the command ended, and nothing of what follows has happened."""
    start(worker)
    uuid = script.run(WAIT + "; echo out", docker_image=IMAGE)
    script.until_state(uuid, "running")
    place = next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))
    eventually((place / "here").exists, "the command runs")
    worker.kill()
    touch(place / "go")
    (name,) = names(docker_engine)
    docker_engine.command("wait", name)
    record = place.parent / "run.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "stage": "CLEANING_UP", "exitcode": 6}))
    start(worker)
    assert script.until_over(uuid)["exitcode"] == 6
    assert script.files(uuid)["stdout"] == b"out\n"
    leave(worker, docker_engine)


def test_killed_when_the_results_are_there_but_nobody_was_told(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine
) -> None:
    script.finalizes = False
    start(worker)
    uuid = script.run("echo out; exit 3", docker_image=IMAGE)
    script.until_state(uuid, "finalizing")
    worker.kill()
    script.finalizes = True
    start(worker)
    assert script.until_over(uuid)["exitcode"] == 3
    assert len(script.uploads[uuid]) == 1
    leave(worker, docker_engine)


@pytest.mark.parametrize("state", ["absent", "created"])
def test_killed_between_its_record_and_the_start_it_starts_the_run_once(
    script: ScriptedServer, worker: WorkerProcess, docker_engine: DockerEngine, state: str
) -> None:
    start(worker)
    uuid = script.run("echo ran >> times; " + WAIT, docker_image=IMAGE)
    script.until_state(uuid, "running")
    place = next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))
    eventually((place / "here").exists, "the command runs")
    worker.kill()
    (place / "here").unlink()
    name = names(docker_engine)[0]
    labels = json.loads(docker_engine.command("inspect", name))[0]["Config"]["Labels"]
    docker_engine.command("rm", "--force", name)
    if state == "created":
        said = [word for pair in labels.items() for word in ("--label", "=".join(pair))]
        docker_engine.command("create", "--name", name, "--network", "none", *said, IMAGE, "sh")
    start(worker)
    eventually(
        lambda: (
            (place / "here").exists()
            and (place / "times").read_text() == "ran\n"
            and names(docker_engine) == [name]
        ),
        "it runs anew, in a new directory",
    )
    script.until_state(uuid, "running")
    touch(place / "go")
    script.until_over(uuid)
    assert script.files(uuid)["times"] == b"ran\n"
    leave(worker, docker_engine)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_every_bundle_ends_once(containers: Containers, seed: int) -> None:
    chance = random.Random(seed)
    pause = threading.Event()
    containers.start("--cpus", "2")
    runs = [containers.run(f"echo {n}") for n in range(8)]
    for _ in range(8):
        pause.wait(chance.uniform(0.3, 1.2))  # where it is killed is for chance to say
        containers.worker().kill()
        containers.start("--cpus", "2")
    before = containers.worker().log.count("Worker started!")
    containers.worker().kill()
    containers.start("--cpus", "2")
    eventually(
        lambda: containers.worker().log.count("Worker started!") > before, "the last one works"
    )
    for number, run in enumerate(runs):
        bundle = containers.end(run)
        assert bundle.state == "ready", bundle.metadata
        assert containers.read(run) == f"{number}\n"
    containers.leave()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_killed", [True, False])
def test_an_engine_that_goes_down_and_comes_back_loses_no_bundle(
    stand: Containers, is_killed: bool
) -> None:
    stand.start("--cpus", "4")
    waiting = stand.run(": > here; [ -e again ] || sleep 1000")
    done = stand.run("echo before")
    assert stand.end(done).state == "ready"
    stand.until(waiting, "running")
    eventually((stand.place(waiting) / "here").exists, "the command runs")
    if is_killed:
        stand.engine.kill()
    else:
        stand.engine.shut_down()
    during = stand.run("echo during")
    stand.until(during, "preparing", "running")
    stand.engine.start()
    assert stand.end(during).state == "ready"
    assert stand.read(during) == "during\n"

    def runs_again() -> bool:
        return stand.client.bundle(waiting).claim > 1 and any(
            path.exists() for path in stand.work.glob(f"workers/*/runs/{waiting}-2/files/here")
        )

    eventually(runs_again, "what the engine took down is run again")
    stand.client.act([{"type": "kill", "uuid": waiting}])
    assert stand.end(waiting).state == "killed"
    stand.leave()


def test_a_run_that_comes_while_the_engine_is_away_waits_for_it(stand: Containers) -> None:
    stand.engine.command("tag", IMAGE, "localhost/not-known:1")
    stand.start()
    assert stand.end(stand.run("true")).state == "ready"
    stand.engine.kill()
    run = stand.run("echo ran", image="localhost/not-known:1")

    def is_waiting() -> bool:
        status = stand.client.bundle(run).metadata.get("run_status")
        return status == "Waiting for the container engine"

    eventually(is_waiting, "it says what it waits for")
    stand.engine.start()
    bundle = stand.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert stand.read(run) == "ran\n"
    stand.leave()


@pytest.mark.timeout(240)
def test_a_worker_that_comes_back_before_its_engine_waits_for_it(stand: Containers) -> None:
    stand.start("--runtime", "auto")
    run = stand.run("[ -e here ] && echo again; : > here; sleep 1; echo done")
    stand.until(run, "running")
    stand.worker().kill()
    stand.engine.kill()
    other_runtime = stand.worker().start("--runtime", "process")
    assert other_runtime.wait() == WorkerExit.NO_RUNTIME
    stand.start("--runtime", "auto")
    eventually(lambda: "waiting for the engine" in stand.worker().log, "it waits")
    stand.engine.start()
    bundle = stand.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert stand.read(run) == "done\n"
    stand.leave()


@pytest.mark.timeout(240)
def test_what_heeds_the_end_of_its_engine_is_not_taken_for_done(stand: Containers) -> None:
    """An engine that was killed ends by SIGTERM what it finds when it comes up again."""
    stand.start("--cpus", "2")
    heeding = stand.run("[ -e again ] && exit; trap 'exit 0' TERM; : > here; sleep 1000 & wait")
    ending = stand.run("echo ran; : > here; while [ ! -e go ]; do sleep 0.05; done; exit 5")
    for run in (heeding, ending):
        stand.until(run, "running")
        eventually((stand.place(run) / "here").exists, "the command runs")
    stand.engine.kill()
    touch(stand.place(ending) / "go")
    stand.engine.start()

    def runs_again() -> bool:
        return any(p.exists() for p in stand.work.glob(f"workers/*/runs/{heeding}-2/files/here"))

    eventually(runs_again, "it is run again")
    stand.client.act([{"type": "kill", "uuid": heeding}])
    assert stand.end(heeding).state == "killed"
    assert stand.end(ending).metadata["exitcode"] == 5
    stand.leave()


def test_a_container_that_somebody_removes_is_run_again(stand: Containers) -> None:
    stand.start()
    run = stand.run(WAIT)
    stand.until(run, "running")
    eventually((stand.place(run) / "here").exists, "the command runs")
    stand.engine.command("rm", "--force", *names(stand.engine))
    eventually(lambda: stand.client.bundle(run).claim > 1, "it is staged again")
    eventually(
        lambda: any(p.exists() for p in stand.work.glob(f"workers/*/runs/{run}-2/files/here")),
        "it runs again",
    )
    touch(next(stand.work.glob(f"workers/*/runs/{run}-2/files")) / "go")
    assert stand.end(run).state == "ready"
    stand.leave()
