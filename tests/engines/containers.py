"""A server, its worker and the engine that the worker's containers are in, for one test."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docker_engine import IMAGE, DockerEngine
from leftovers import nothing_left
from serving import Server
from worker_process import WorkerProcess

from bundles.archive import ChunkStream, unpack
from bundles.client import Client
from bundles.model import FINAL_STATES, Bundle, new_uuid
from worker.runtimes.docker import WORKER_LABEL

PATIENCE_SECONDS = 60.0


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"this does not happen: {what}"
        pause.wait(0.02)


def as_worker_of(engine: DockerEngine, worker: WorkerProcess) -> WorkerProcess:
    """The worker uses this engine, and nothing of the user's Docker configuration."""
    configuration = worker.directory / "docker-config"
    configuration.mkdir(exist_ok=True)
    worker.env |= {**engine.env, "DOCKER_CONFIG": str(configuration)}
    return worker


class Containers:
    """``workers``: by id, made when they are asked for. ``close`` ends them."""

    def __init__(self, directory: Path, server: Server, engine: DockerEngine) -> None:
        self.directory = directory
        self.work = directory / "of-workers" / "work"
        self.server = server
        self.engine = engine
        self.client: Client = server.client()
        self.workers: dict[str, WorkerProcess] = {}
        self._begin = self.client.changes(None).cursor

    def worker(self, worker_id: str = "w1") -> WorkerProcess:
        if worker_id not in self.workers:
            self.work.parent.mkdir(exist_ok=True)
            made = WorkerProcess(self.work.parent, self.server.url, worker_id=worker_id)
            made.env |= self.server.env
            made.env.pop("WORKER_MANAGER_TOKEN", None)
            self.workers[worker_id] = as_worker_of(self.engine, made)
        return self.workers[worker_id]

    def start(self, *options: str, worker_id: str = "w1") -> WorkerProcess:
        return self.worker(worker_id).start("--runtime", self.engine.runtime, *options)

    def run(
        self,
        command: str,
        *,
        image: str = IMAGE,
        dependencies: Sequence[tuple[str, str]] = (),
        **metadata: Any,
    ) -> str:
        """Queue a run; ``dependencies`` are (child_path, parent_uuid)."""
        created = self.client.create(
            [
                {
                    "uuid": new_uuid(),
                    "bundle_type": "run",
                    "command": command,
                    "dependencies": [
                        {"child_path": path, "parent_uuid": uuid, "parent_path": ""}
                        for path, uuid in dependencies
                    ],
                    "metadata": {
                        "name": "run",
                        "request_memory": "64m",
                        "request_priority": 0,
                        "request_docker_image": image,
                        **metadata,
                    },
                }
            ]
        )
        return created[0].uuid

    def until(self, uuid: str, *states: str) -> Bundle:
        """The bundle, once it has been in one of the states (or else, in a final one)."""
        wanted = set(states) | set(FINAL_STATES)
        deadline = time.monotonic() + PATIENCE_SECONDS
        cursor = self._begin
        while True:
            page = self.client.changes(cursor, wait_seconds=5, states=sorted(wanted))
            cursor = page.cursor
            if any(change.uuid == uuid for change in page.changes):
                return self.client.bundle(uuid)
            assert time.monotonic() < deadline, f"{self.client.bundle(uuid)}; {self.logs()}"

    def end(self, uuid: str) -> Bundle:
        bundle = self.until(uuid)
        assert bundle.final
        return bundle

    def read(self, uuid: str, path: str = "stdout") -> str:
        with self.client.download(uuid, path) as download:
            return b"".join(download.chunks()).decode()

    def files(self, uuid: str, into: Path) -> Path:
        with self.client.download(uuid) as download:
            into.mkdir()
            unpack(ChunkStream(download.chunks()), into)  # type: ignore[arg-type]
        return into

    def place(self, uuid: str) -> Path:
        """The directory of a run on its worker, while it has one."""
        return next(self.work.glob(f"workers/*/runs/{uuid}*/files"))

    def logs(self) -> str:
        return "\n".join(worker.log[-3000:] for worker in self.workers.values())

    def left(self) -> list[str]:
        """Containers and networks of our workers in the engine, which CodaLab's workers share."""
        ours = ("--filter", f"label={WORKER_LABEL}")
        containers = self.engine.command("ps", "--all", *ours, "--format", "{{.Names}}").split()
        networks = self.engine.command("network", "ls", *ours, "--format", "{{.Name}}").split()
        return containers + networks

    def inspect(self, uuid: str) -> dict[str, Any]:
        """What the engine knows of a run's container."""
        names = self.engine.command("ps", "--all", "--format", "{{.Names}}").split()
        name = next(name for name in names if uuid in name)
        found: dict[str, Any] = json.loads(self.engine.command("inspect", name))[0]
        return found

    def settle(self) -> None:
        """Wait until the workers know that their runs have ended: the server knows it first."""
        eventually(lambda: not [*self.work.glob("workers/*/runs/*")], "the runs are forgotten")

    def leave(self) -> None:
        """Every worker ends when asked to, and nothing of any is left."""
        self.settle()
        for worker in self.workers.values():
            code = worker.stop()
            assert code == 0, f"{code}: {worker.log}"
        nothing_left(list(self.workers.values()), server=self.client, engine=self.engine)

    def close(self) -> None:
        self.client.close()
        for worker in self.workers.values():
            worker.close()


def touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
