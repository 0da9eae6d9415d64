"""Bundles in containers of an engine of the measurement's own, beside bare `docker run --rm`."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.engine import container_engine
from benchmarks.stand import Stand, cpu_seconds

MANY = 32
IDLE_SECONDS = 30.0
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Scene:
    """A server with a worker of ``slots`` whose bundles are containers of ``engine``."""

    stand: Stand
    engine: Any
    worker: subprocess.Popen[str]

    def drain(self, commands: list[str]) -> None:
        self.stand.drain(commands, request_docker_image=self.engine.image)

    def run_bare(self, command: str, *, times: int = 1) -> None:
        """`docker run --rm` of it, on a network as the worker's runs are, two at a time."""
        run = ["docker", "run", "--rm", "--network", "benchmark", self.engine.image]
        subprocess.run(
            ["xargs", "-P2", "-I{}", *run, "/bin/sh", "-c", command],
            input="x\n" * times,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | self.engine.env,
        )


def is_possible() -> bool:
    """Whether an engine can be started here."""
    return shutil.which("dockerd") is not None and os.geteuid() == 0


@contextmanager
def scene(slots: int) -> Iterator[Scene]:
    """Warm: the worker has run a bundle."""
    with container_engine() as engine, Stand() as stand:
        stand.environment |= engine.env
        engine.command("network", "create", "benchmark")
        worker = stand.start_worker("--cpus", str(slots), runtime="docker")
        made = Scene(stand, engine, worker)
        made.drain(["true"])
        yield made


def twenty_two_at_a_time() -> tuple[float, float]:
    """Median seconds of 20 × `echo hi`, two at a time: on a worker, and by `docker run`."""
    ours, theirs = [], []
    with scene(2) as found:
        for _ in range(3):  # by turns, so that a noisy moment hits both
            begin = time.perf_counter()
            found.run_bare("echo hi", times=20)
            theirs.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            found.drain(["echo hi"] * 20)
            ours.append(time.perf_counter() - begin)
    return statistics.median(ours), statistics.median(theirs)


def one_at_a_time(count: int) -> tuple[float, float]:
    """Median seconds of one bundle on a warm worker, and of `docker run`."""
    ours, theirs = [], []
    with scene(2) as found:
        for _ in range(count):
            begin = time.perf_counter()
            found.run_bare("echo hi")
            theirs.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            found.drain(["echo hi"])
            ours.append(time.perf_counter() - begin)
    return statistics.median(ours), statistics.median(theirs)


def many_at_once(seconds: float) -> float:
    """The share of a core that the worker takes while it has 32 bundles, from their start to their
    end, which sleep for so long."""
    with scene(MANY) as found:
        before = cpu_seconds(found.worker)
        begin = time.perf_counter()
        found.drain([f"sleep {seconds}"] * MANY)
        elapsed = time.perf_counter() - begin
        return (cpu_seconds(found.worker) - before) / elapsed


def nothing_to_do() -> tuple[float, float, float]:
    """Shares of a core: an idle worker; its engine meanwhile; and the engine with no worker."""
    with scene(2) as found:
        time.sleep(SETTLE_SECONDS)
        before, engine_before = cpu_seconds(found.worker), _engine_seconds(found.engine)
        time.sleep(IDLE_SECONDS)
        ours = (cpu_seconds(found.worker) - before) / IDLE_SECONDS
        with_worker = (_engine_seconds(found.engine) - engine_before) / IDLE_SECONDS
        found.stand.stop(found.worker)
        time.sleep(SETTLE_SECONDS)
        engine_before = _engine_seconds(found.engine)
        time.sleep(IDLE_SECONDS)
        alone = (_engine_seconds(found.engine) - engine_before) / IDLE_SECONDS
    return ours, with_worker, alone


def _engine_seconds(engine: Any) -> float:
    """Processor time of `dockerd` and its `containerd`."""
    daemon = psutil.Process(int((engine.directory / "pid").read_text()))
    processes = [daemon, *daemon.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)
