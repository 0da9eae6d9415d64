"""Containers of a real engine keep the promises that every backend keeps."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from docker_engine import IMAGE, DockerEngine
from engine_proxy import RETRY_AFTER_SECONDS, EngineProxy, Fault

from backends.base import Backend, Context, Job, LaunchRequest
from backends.conformance import Circumstance, Conformance, Harness, stand_in
from backends.local_docker.backend import LocalDocker
from backends.local_docker.options import Settings

pytestmark = [
    pytest.mark.engine("docker"),
    # The SDK leaves a socket that could not connect, or had no answer, to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FAULTS: dict[Circumstance, Fault] = {
    Circumstance.REPLY_LOST: "drop-reply",
    Circumstance.LIST_TORN: "tear",
    Circumstance.HANGING: "hang",
    Circumstance.UNAUTHORIZED: "refuse",
    Circumstance.THROTTLED: "throttle",
    Circumstance.BRIEFLY_THROTTLED: "throttle-twice",
    Circumstance.OUT_OF_CAPACITY: "full",
}


class DockerHarness(Harness):
    """An engine, and a socket in front of it."""

    worker = stand_in("/tmp")
    retry_after_seconds = RETRY_AFTER_SECONDS
    launched_at_scale = 12
    calls_per_launch = 2
    impossible: ClassVar = {
        Circumstance.HELD: "an engine starts a container at once or not at all",
        Circumstance.PREEMPTED: "nobody takes this machine back",
        Circumstance.QUOTA_EXCEEDED: "an engine has no accounts",
    }

    def __init__(self, engine: DockerEngine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self._proxy = EngineProxy(engine.directory / "proxy.sock", engine.socket)
        self._before = self._containers()

    def backend(self, context: Context) -> Backend:
        environment = {**context.environment, "DOCKER_HOST": f"unix://{self._proxy.path}"}
        context = replace(context, environment=environment)
        return LocalDocker(context, Settings(IMAGE, "docker", "none"), call_seconds=3)

    def finish(self, job: Job, exit_code: int) -> None:
        script = f"echo {exit_code} > /tmp/{job.key}.exit"
        self._engine.command("exec", job.id, "/bin/sh", "-c", script)

    def kill(self, job: Job) -> None:
        self._engine.command("kill", job.id)

    def preempt(self, job: Job) -> None:
        raise NotImplementedError

    def during(self, circumstance: Circumstance) -> AbstractContextManager[None]:
        if circumstance is Circumstance.UNREACHABLE:
            return self._proxy.away()
        return self._proxy.misbehaving(FAULTS[circumstance])

    def plant_neighbours(self, context: Context) -> list[str]:
        """By hand, named as ours; with some of our labels; with all of them in capitals."""
        name = f"{context.pool}-7-01234567"
        ours = {
            "worker-manager.owner": context.owner,
            "worker-manager.pool": context.pool,
            "worker-manager.key": name,
        }
        planted = []
        for number, labels in enumerate(
            (
                {},
                {**ours, "worker-manager.owner": context.owner.upper()},
                {**ours, "worker-manager.pool": f"{context.pool}-"},
                {name: value for name, value in ours.items() if name != "worker-manager.key"},
            )
        ):
            options = [f"--label={name}={value}" for name, value in labels.items()]
            planted.append(f"{context.pool}-{number}-01234567")
            run = ("run", "--detach", "--network=none", "--name", planted[-1])
            self._engine.command(*run, *options, IMAGE, "/bin/sleep", "1000")
        return planted

    def is_untouched(self, job_id: str) -> bool:
        status = self._engine.command("inspect", "--format", "{{.State.Status}}", job_id)
        return status.strip() == "running"

    def fill(self, backend: Backend, requests: Sequence[LaunchRequest]) -> None:
        """One container, and an engine that shows it once for each request."""
        backend.launch(requests[:1])
        self._proxy.multiplied = [str(request.key) for request in requests]

    def calls(self) -> int:
        return len(self._proxy.requests)

    def sent(self) -> str:
        return "\n".join(self._proxy.requests)

    def _containers(self) -> set[str]:
        return set(self._engine.command("ps", "--all", "--quiet").split())

    def close(self) -> None:
        gc.collect()
        self._proxy.close()
        self._proxy.path.unlink()
        left = self._containers() - self._before
        if left:
            self._engine.command("rm", "--force", *left)


class TestLocalDocker(Conformance):
    @pytest.fixture
    def harness(self, docker_engine: DockerEngine, tmp_path: Path) -> Iterator[DockerHarness]:
        made = DockerHarness(docker_engine, tmp_path)
        try:
            yield made
        finally:
            made.close()
