"""Workers in containers of the image that deploy/Dockerfile makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Containers, eventually
from docker_engine import IMAGE, DockerEngine, Registry
from worker_image import WorkerImage

from bundles import __version__
from bundles.exits import WorkerExit
from bundles.model import Bundle
from worker.runtimes.docker import WORKER_LABEL

pytestmark = [
    pytest.mark.engine("docker"),
    pytest.mark.engine("docker-registry"),
    pytest.mark.timeout(600),  # the first one waits until the image is built
]

USER = 1000
PROBE = (
    "import importlib.util as u, sys;"
    "sys.exit(sum(u.find_spec(name) is not None for name in ('pip', 'setuptools')))"
)


class ContainedWorker:
    """A worker in a container of its own, beside the stand's server. ``close`` removes it."""

    def __init__(self, stand: Containers, image: str, *options: str) -> None:
        self._stand = stand
        self._image = image
        self._options = options
        self.name = "contained"
        self.work = stand.directory / "work"
        self.work.mkdir()
        self.work.chmod(0o777)

    def start(self, *arguments: str) -> None:
        token = (self._stand.server.home.path / "token").read_text().strip()
        environment = self._stand.directory / "environment"
        environment.write_text(f"WORKER_MANAGER_TOKEN={token}\n")
        self._stand.engine.command(
            *("run", "--detach", "--name", self.name, "--network", "host", *self._options),
            *("--env-file", str(environment), "--volume", f"{self.work}:{self.work}"),
            *(self._image, "--server", self._stand.server.url, "--work-dir", str(self.work)),
            *("--id", "contained", *arguments),
        )

    def end(self, uuid: str) -> Bundle:
        """The bundle, once it has ended; what the worker said, if it does not."""
        try:
            return self._stand.end(uuid)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.log}") from error

    def wait(self) -> int:
        return int(self._stand.engine.command("wait", self.name))

    @property
    def log(self) -> str:
        """What it wrote, all of which goes to its stderr."""
        return subprocess.run(
            ["docker", "logs", self.name],
            env=os.environ | self._stand.engine.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stderr


@pytest.fixture
def stand(containers: Containers) -> Iterator[Containers]:
    yield containers
    for name in containers.engine.command("ps", "--all", "--format", "{{.Names}}").split():
        if name == "contained":
            containers.engine.command("rm", "--force", name)


def test_the_image_is_a_worker_of_its_own_user_without_what_built_it(
    worker_image: WorkerImage, docker_engine: DockerEngine
) -> None:
    run = ("run", "--rm", "--network", "none")
    said = docker_engine.command(*run, worker_image.reference, "--version")
    assert said == f"bundle-worker {__version__}\n"
    python = "/opt/worker-manager/bin/python"
    docker_engine.command(*run, "--entrypoint", python, worker_image.reference, "-c", PROBE)
    about = json.loads(docker_engine.command("image", "inspect", worker_image.reference))[0]
    assert about["Config"]["User"] == f"{USER}:{USER}"
    assert about["Config"]["Labels"]["org.opencontainers.image.title"] == "bundle-worker"
    assert "Healthcheck" not in about["Config"]


def test_a_pulled_worker_runs_bundles_as_processes_inside_its_container(
    worker_image: WorkerImage, registry: Registry, stand: Containers
) -> None:
    reference = worker_image.push(registry)
    worker = ContainedWorker(stand, reference)
    parent = stand.run("echo hi; echo $UID > user")
    child = stand.run("cat parent/stdout; (sleep 1000 &)", dependencies=[("parent", parent)])
    worker.start("--runtime", "process", "--exit-when-idle", "--idle-seconds", "2")
    assert worker.end(parent).state == "ready", worker.log
    assert worker.end(child).state == "ready", worker.log
    assert stand.read(child) == "hi\n"
    assert stand.read(parent, "user") == f"{USER}\n"
    assert worker.wait() == WorkerExit.FINISHED
    assert [*worker.work.glob("workers/*")] == []
    stand.engine.command("rm", worker.name)
    stand.engine.command("rmi", reference)


def test_a_worker_with_the_engines_socket_runs_bundles_in_containers_beside_it(
    worker_image: WorkerImage, stand: Containers
) -> None:
    worker = ContainedWorker(stand, worker_image.reference, *worker_image.socket_options())
    worker.start("--runtime", "docker", "--cpus", "2")
    locked = stand.run("mkdir -p d/e; echo x > d/e/f; chmod 0 d/e/f d/e d .", image=IMAGE)
    assert worker.end(locked).state == "ready"
    assert stand.read(locked, "d/e/f") == "x\n"
    first = [stand.run(f"echo {n} > out", image=IMAGE) for n in range(3)]
    last = stand.run(
        "cat p*/out; echo $UID; ls /var/run/docker.sock || echo none",
        image=IMAGE,
        dependencies=[(f"p{n}", uuid) for n, uuid in enumerate(first)],
    )
    bundle = worker.end(last)
    assert bundle.state == "ready", f"{bundle.metadata} {worker.log}"
    assert stand.read(last) == f"0\n1\n2\n{USER}\nnone\n"
    eventually(lambda: not [*worker.work.glob("workers/*/runs/*")], "the runs are forgotten")
    stand.engine.command("stop", worker.name)
    assert worker.wait() == WorkerExit.FINISHED, worker.log
    ours = ("--filter", f"label={WORKER_LABEL}", "--quiet")
    assert stand.engine.command("ps", "--all", *ours) == ""
    assert stand.engine.command("network", "ls", *ours) == ""
    assert [*worker.work.glob("workers/*")] == []


def test_a_worker_whose_container_is_killed_is_carried_on_by_the_next(
    worker_image: WorkerImage, stand: Containers, tmp_path: Path
) -> None:
    worker = ContainedWorker(stand, worker_image.reference, *worker_image.socket_options())
    worker.start("--runtime", "docker")
    run = stand.run(": > here; while [ ! -e go ]; do sleep 0.05; done; echo once >> times")
    stand.until(run, "running")
    place = next(worker.work.glob(f"workers/*/runs/{run}*/files"))
    eventually((place / "here").exists, "the command runs")
    stand.engine.command("kill", worker.name)
    assert worker.wait() == 137
    (place / "go").touch()
    stand.engine.command("start", worker.name)
    bundle = worker.end(run)
    assert bundle.state == "ready", f"{bundle.metadata} {worker.log}"
    assert bundle.claim == 1
    assert stand.read(run, "times") == "once\n"
    eventually(lambda: not [*worker.work.glob("workers/*/runs/*")], "it is forgotten")
    stand.engine.command("stop", worker.name)
    assert worker.wait() == WorkerExit.FINISHED, worker.log
