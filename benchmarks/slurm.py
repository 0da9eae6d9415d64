"""A thousand workers on a real Slurm cluster: what launching and watching them takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import Context, JobResources
from backends.slurm.backend import Slurm
from backends.slurm.settings import Options
from benchmarks.stand import Stand
from bundles.home import Credentials
from manager.alarm import Alarm
from manager.command import WorkerOptions
from manager.feed import ChangeFeed
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.launcher import Launcher
from manager.ledger import Ledger, Pool
from manager.loop import Manager
from manager.observe import Observer
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.staged import StagedBundles

ENGINES = Path(__file__).resolve().parents[1] / "tests" / "engines"
WORKERS = 1000
TIMES = 15


@dataclass(frozen=True)
class Thousand:
    """Seconds: the tick that launches them and one that has them, medians, and Slurm's own
    commands beside each."""

    launch: float
    sbatch: float
    tick: float
    squeue: float


def thousand() -> Thousand:
    """Jobs wait meanwhile: what is measured is the manager, not two cores that start them."""
    with cluster() as slurm, Stand() as stand:
        slurm.command("scontrol", "update", "partitionname=main", "state=down")
        options = ("-o", "/dev/null", "--mem=1", "--wrap", "true")
        sbatch = _seconds(lambda: _run(slurm, "sbatch", f"--array=0-{WORKERS - 1}", *options))
        slurm.command("scancel", "--user=root")
        manager = _manager(stand, slurm)
        launch = _seconds(manager.tick)
        tick = statistics.median(_seconds(manager.tick) for _ in range(TIMES))
        squeue = statistics.median(
            _seconds(lambda: _run(slurm, "squeue", "--array", "--noheader")) for _ in range(TIMES)
        )
        manager.ledger.close()
        manager.keepers[0].backend.terminate(
            [job.id for job in manager.keepers[0].backend.list_jobs()]
        )
    return Thousand(launch, sbatch, tick, squeue)


@contextmanager
def cluster() -> Iterator[Any]:
    """A `slurm_cluster.SlurmCluster` that runs."""
    sys.path.append(str(ENGINES))
    try:
        from slurm_cluster import SlurmCluster  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ENGINES))
    made = SlurmCluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _manager(stand: Stand, slurm: Any) -> Manager:
    """One that wants a thousand, whatever is queued."""
    resources = JobResources(1, 0, 2 * 1024**2)
    context = Context(stand.path / "jobs", "0123456789abcdef", "p", {**os.environ, **slurm.reach})
    backend = Slurm(context, Options(resources))
    ledger = Ledger(stand.path / "ledger.db")
    ledger.describe(Pool("p", "slurm", stand.url, {}))
    ledger.prove("p", time.time())  # a new pool would start with two
    queue = QueueConfig(cpus=1, gpus=0, memory_bytes=resources.memory_bytes)
    alarm = Alarm()
    keeper = PoolKeeper(
        pool="p",
        config=PoolConfig(queue.shape, WORKERS, WORKERS),
        observer=Observer(stand.client, backend, "p", queue),
        backend=backend,
        launcher=Launcher(stand.url, WorkerOptions(), resources, Credentials(token="unused")),
        client=stand.client,
        ledger=ledger,
        journal=Journal(stand.path / "p.jsonl", "p"),
        alarm=alarm,
    )
    return Manager(
        [keeper],
        staged=StagedBundles(stand.client),
        client=stand.client,
        ledger=ledger,
        alarm=alarm,
        make_feed=lambda: ChangeFeed(stand.client, alarm),
    )


def _run(slurm: Any, *words: str) -> None:
    subprocess.run(words, env=slurm.env, stdout=subprocess.DEVNULL, check=True, timeout=60)


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
