"""`worker-manager local-docker` beside a real server and a real engine: bundles drain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from docker_engine import IMAGE, DockerEngine
from managing import Managers, eventually
from serving import Server
from worker_image import WorkerImage

from bundles.model import Bundle

pytestmark = [pytest.mark.engine("docker"), pytest.mark.timeout(300)]  # the image is built first

BUNDLES = 60
WORKERS = ("--filter", "label=worker-manager.pool=local-docker")


@pytest.fixture
def hasty_server(tmp_path: Path) -> Iterator[Server]:
    """Gives up a worker that is silent for a moment."""
    running = Server(tmp_path)
    running.start("--worker-timeout-seconds", "5")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def engine(docker_engine: DockerEngine, worker_image: WorkerImage) -> Iterator[DockerEngine]:
    yield docker_engine
    left = docker_engine.command("ps", "--all", "--quiet").split()
    if left:
        docker_engine.command("rm", "--force", *left)
    docker_engine.command("network", "prune", "--force")


@contextmanager
def manager(server: Server, engine: DockerEngine, *options: str) -> Iterator[None]:
    """The command, as an operator starts it; it must end well when it is asked to."""
    log = server.directory / "manager.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "manager", "local-docker"),
                *("--image", WorkerImage.reference, "--min", "0", "--max", "3"),
                *("--sleep-time", "0.5", "--worker-idle-seconds", "4", *options),
            ],
            env=server.env | engine.env,
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def names(engine: DockerEngine, *options: str) -> list[str]:
    return engine.command("ps", *WORKERS, *options, "--format", "{{.Names}}").split()


def inspected(engine: DockerEngine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.command("inspect", name))[0]
    return found


def test_sixty_bundles_drain_though_a_worker_is_killed(
    hasty_server: Server, engine: DockerEngine
) -> None:
    server = hasty_server
    managers = Managers(server)
    with server.client() as client, manager(server, engine, "--runtime", "process"):
        assert names(engine, "--all") == []
        uuids = managers.stage(BUNDLES, command="sleep 0.2; echo hi >> said")

        def bundles() -> list[Bundle]:
            return list(client.search([f"uuid={','.join(uuids)}", ".limit=100"]))

        def ready() -> int:
            return sum(bundle.state == "ready" for bundle in bundles())

        eventually(lambda: ready() >= BUNDLES // 4, "a quarter of the bundles")
        running = names(engine)
        assert 1 <= len(running) <= 3
        said = engine.command("inspect", *running)
        token = (server.home.path / "jobs" / "local-docker" / running[0] / "secrets").read_text()
        assert token.split("=")[1].strip() not in said
        engine.command("kill", running[0])
        eventually(lambda: all(bundle.final for bundle in bundles()), "the end of all bundles")
        assert [bundle for bundle in bundles() if bundle.state != "ready"] == []
        eventually(lambda: not names(engine), "the workers leave")
        with_docker = Managers(server)
        with_docker.server.env = server.env | engine.env
        (pool,) = with_docker.json("status", "--output", "json")["pools"]
    ended = {job["id"]: job["cause"] for job in pool["jobs"]}
    assert ended.pop(running[0]) == "killed by others"
    assert set(ended.values()) == {"finished"}
    assert {server.output("cat", f"{uuid}/said") for uuid in uuids} == {"hi\n"}
    for name in ended:
        assert not (server.home.path / "jobs" / "local-docker" / name / "work").exists()


def test_a_worker_that_dies_in_its_container_carries_on_with_the_containers_of_its_bundles(
    server: Server, engine: DockerEngine
) -> None:
    managers = Managers(server)
    command = "while [ ! -e go ]; do sleep 0.05; done; echo once >> times"
    with server.client() as client, manager(server, engine, "--worker-idle-seconds", "2"):
        (uuid,) = managers.stage(command=command, request_docker_image=IMAGE)
        eventually(lambda: client.bundle(uuid).state == "running", "the bundle runs")
        (worker,) = names(engine)
        assert inspected(engine, worker)["HostConfig"]["NetworkMode"] == "host"
        place = server.home.path / "jobs" / "local-docker" / worker / "work"
        eventually(lambda: [*place.glob(f"workers/*/runs/{uuid}*/files")], "its directory is here")
        (files,) = place.glob(f"workers/*/runs/{uuid}*/files")
        init = inspected(engine, worker)["State"]["Pid"]
        killed = _worker_process(init)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: _worker_process(init) not in (None, killed), "the worker is back")
        (files / "go").touch()
        eventually(lambda: client.bundle(uuid).final, "the bundle ends")
        assert client.bundle(uuid).state == "ready"
        assert server.output("cat", f"{uuid}/times") == "once\n"
        eventually(lambda: not names(engine), "the worker leaves")
    assert inspected(engine, worker)["State"]["ExitCode"] == 0
    assert engine.command("ps", "--all", "--filter", "label=worker-manager.run", "--quiet") == ""


def _worker_process(init: int) -> int | None:
    """The Python process under a container's PID 1."""
    for process in psutil.Process(init).children(recursive=True):
        try:
            words = process.cmdline()
            if "--work-dir" in words and "python" in words[0]:
                return process.pid
        except psutil.Error:
            continue
    return None


def test_what_is_wrong_is_said_at_once_and_nothing_is_launched(
    server: Server, engine: DockerEngine
) -> None:
    managers = Managers(server)
    managers.stage()
    server.env |= engine.env
    done = managers.command(
        *("local-docker", "--image", "no/such:image", "--network", "nowhere", "--once")
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("worker-manager: ")]
    assert len(lines) == 2
    assert "--image" in lines[0]
    assert "docker pull no/such:image" in lines[0]
    assert "--network" in lines[1]
    assert "nowhere" in lines[1]
    done = managers.command("local-docker", "--image", IMAGE, "--cpus", "9999", "--once")
    assert done.returncode == 2
    assert "--cpus: 9999 of one worker" in done.stderr
    server.env |= {"DOCKER_HOST": "unix:///no/such/socket"}
    done = managers.command("local-docker", "--image", IMAGE, "--once")
    assert done.returncode == 1
    assert "unix:///no/such/socket" in done.stderr
    assert names(engine, "--all") == []


def test_a_worker_s_words_can_be_read_and_it_can_be_ended_by_name(
    server: Server, engine: DockerEngine
) -> None:
    managers = Managers(server)
    server.env |= engine.env
    image = ("local-docker", "--image", WorkerImage.reference, "--runtime", "process")
    done = managers.command(*image, "--min", "1", "--once")
    assert done.returncode == 0, done.stderr
    (worker,) = names(engine)
    eventually(lambda: "started" in managers.command("logs", worker).stdout.lower(), "it speaks")
    done = managers.command("terminate", worker)
    assert (done.returncode, done.stdout) == (0, f"{worker} was asked to end\n")
    eventually(lambda: not names(engine), "it ends")
    (pool,) = managers.json("status", "-o", "json")["pools"]
    assert [(job["id"], job["state"]) for job in pool["jobs"]] == [(worker, "ended")]
    done = managers.command("terminate", worker, "local-docker-9-00000000")
    assert done.returncode == 2
    assert "'local-docker-9-00000000'" in done.stderr
