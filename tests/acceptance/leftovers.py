"""One assertion for every test that breaks something: nothing is left that nobody owns.

    nothing_left(workers, server=client)                     # processes
    nothing_left(workers, server=client, engine=engine)      # containers

Call it when the workers have left.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from worker_process import WorkerProcess

from bundles.client import Client

SETTLE_SECONDS = 20.0
WORKER_LABEL = "worker-manager.worker"


class ContainerEngine(Protocol):
    def command(self, *arguments: str) -> str: ...


def nothing_left(
    workers: Sequence[WorkerProcess],
    *,
    server: Client | None = None,
    engine: ContainerEngine | None = None,
) -> None:
    """No process, container, network, mount, lock or file of the workers, save the cache of
    dependencies; and every bundle of the server's in a final state.

    What the kernel and an engine remove on their own is waited for."""
    deadline = time.monotonic() + SETTLE_SECONDS
    pause = threading.Event()
    while left := _left(workers, engine):
        assert time.monotonic() < deadline, f"this is left: {left}"
        pause.wait(0.1)
    if server is not None:
        unfinished = [
            f"{bundle.uuid} is {bundle.state}" for bundle in server.search() if not bundle.final
        ]
        assert unfinished == [], unfinished


def _left(workers: Sequence[WorkerProcess], engine: ContainerEngine | None) -> list[str]:
    left: list[str] = []
    for worker in workers:
        left += [f"the process {command}" for command in worker.stray_commands()]
    for directory in {worker.work_directory for worker in workers}:
        left += _of_directory(directory)
    if engine is not None:
        ours = ("--filter", f"label={WORKER_LABEL}")
        for name in engine.command("ps", "--all", *ours, "--format", "{{.Names}}").split():
            left.append(f"the container {name}")
        for name in engine.command("network", "ls", *ours, "--format", "{{.Name}}").split():
            left.append(f"the network {name}")
    return left


def _of_directory(directory: Path) -> Iterable[str]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    yield from (f"the mount {place}" for place in mounts if place.startswith(f"{directory}/"))
    cache = directory / "dependencies"
    for path in directory.rglob("*"):
        if path.parent.name == "locks" and path.parent.parent == cache:
            if _is_locked(path):
                yield f"the lock {path}"
            elif not (cache / "ready" / path.name).exists():
                yield f"the lock file {path}, which is no dependency's"
        elif cache / "ready" in path.parents or path in (cache, *cache.glob("*")):
            continue
        elif path != directory / "workers":
            yield f"the file {path}"


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
