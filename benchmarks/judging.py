"""What a decision takes, of all the sizes that we hold ourselves to. Run by itself as a module it
prints one object, so that its memory is that of a manager and of nothing else."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import psutil

from backends.base import Job, JobState, LaunchKey
from bundles import client
from manager import metrics, service
from manager.capacity import Need, Offer, Room
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.sharing import decide_set
from manager.snapshot import Snapshot

BUNDLES, WORKERS, POOLS, RUNS = 10_000, 10_000, 5, 250
GIB = 1024**3
NOW = 1_000_000.0


@dataclass(frozen=True)
class Judged:
    """Of all runs, in seconds of a processor, and the memory of the process in bytes."""

    median_seconds: float
    slowest_percent_seconds: float
    memory_bytes: int


def judged() -> Judged:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.judging"], capture_output=True, check=True, text=True
    )
    return Judged(**json.loads(done.stdout))


def _pool(number: int) -> PoolConfig:
    cpus = 2 ** (number + 1)
    queue = QueueConfig(
        cpus=cpus,
        gpus=number // 2,
        memory_bytes=4 * cpus * GIB,
        tag="fast" if number == 3 else None,
    )
    return PoolConfig(queue.shape, 0, 2 * WORKERS, patience_seconds=300.0)


def _demand(chance: random.Random, kinds: int) -> dict[Need, int]:
    """BUNDLES bundles of so many kinds, some of which fit the largest pools only."""
    rooms = [
        Room(
            chance.choice((0, 0, 0, 1, 2)),
            chance.choice((1, 1, 1, 2, 4, 8, 16)),
            chance.randrange(1, 64 * 1024) * 1024**2,
            chance.randrange(0, 100) * GIB,
        )
        for _ in range(kinds)
    ]
    demand: dict[Need, int] = {}
    for number in range(BUNDLES):
        need = Need(rooms[number % kinds], chance.choice(("", "", "", "fast")))
        demand[need] = demand.get(need, 0) + 1
    return demand


def _snapshot(chance: random.Random, config: PoolConfig, kinds: int) -> Snapshot:
    """A pool with its part of WORKERS, with so many kinds of room left in them."""
    whole = config.shape.room
    free: dict[Offer, int] = {}
    offers = [
        Offer(
            Room(
                chance.randrange(whole.gpus + 1),
                chance.randrange(1, whole.cpus + 1),
                chance.randrange(whole.memory_bytes),
                chance.randrange(500) * GIB,
            ),
            config.shape.tag,
        )
        for _ in range(kinds)
    ]
    workers = WORKERS // POOLS
    pending = chance.randrange(workers // 4)
    for number in range(workers - pending):
        offer = offers[number % kinds]
        free[offer] = free.get(offer, 0) + 1
    return Snapshot(
        demand={},
        unfit=0,
        pending=pending,
        active=workers - pending,
        free=free,
        withdrawable=tuple(str(number) for number in range(pending)),
        impatient=chance.randrange(pending + 1),
        affordable=chance.choice((None, 100)),
        budget_reason="a budget",
    )


def _jobs() -> list[Job]:
    """What a tick holds beside: the lists of all jobs."""
    keys = LaunchKey.make_row("pool", 1, WORKERS)
    return [Job(str(key), key, str(key), JobState.ACTIVE, NOW, NOW) for key in keys]


def main() -> None:
    chance = random.Random(1)
    configs = {f"pool-{number}": _pool(number) for number in range(POOLS)}
    jobs = _jobs()
    seconds = []
    for _ in range(RUNS):
        kinds = chance.choice((1, 10, 100, 1000, BUNDLES))
        demand = _demand(chance, kinds)
        snapshots = {
            name: _snapshot(chance, config, chance.choice((1, 10, 100, 2000)))
            for name, config in configs.items()
        }
        begin = time.process_time()
        decide_set(demand, snapshots, configs, NOW)
        seconds.append(time.process_time() - begin)
    assert len(jobs) == WORKERS
    assert all((client, metrics, service)), "what a manager that runs has imported"
    print(
        json.dumps(
            {
                "median_seconds": statistics.median(seconds),
                "slowest_percent_seconds": statistics.quantiles(seconds, n=100)[98],
                "memory_bytes": psutil.Process().memory_info().rss,
            }
        )
    )


if __name__ == "__main__":
    main()
