"""Which staged bundles a pool's workers could run, by what they ask for."""

from __future__ import annotations

from dataclasses import replace

from backends.registry import lifetime_seconds
from bundles.model import Resources
from manager.capacity import Need, Room
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.sharing import decide_set
from manager.snapshot import Snapshot
from manager.staged import demand_of

GIB = 1024**3
HOUR = 3600
NOW = 1_000_000.0
QUEUE = QueueConfig(cpus=4, gpus=0, memory_bytes=8 * GIB)
SHORT = replace(QUEUE, lifetime_seconds=1.0 * HOUR)
LONG = replace(QUEUE, lifetime_seconds=10.0 * HOUR)


def asking(hours: float) -> Resources:
    return Resources.from_metadata({"request_cpus": 1, "request_time": f"{round(hours * 60)}m"})


def test_a_bundle_that_takes_longer_than_a_worker_lives_fits_none() -> None:
    counted = [(asking(0), 5), (asking(0.5), 3), (asking(2), 7)]
    demand, unfit = demand_of(counted, [SHORT])
    assert sum(demand.values()) == 8
    assert unfit == [7]
    assert demand_of(counted, [QUEUE])[1] == [0]


def test_bundles_of_like_times_are_one_kind_that_asks_for_no_more_than_a_new_worker_has() -> None:
    counted = [(asking(minutes / 60), 1) for minutes in range(1200)]
    demand, unfit = demand_of(counted, [LONG, SHORT, QUEUE])
    kinds = {need.room.time_seconds: number for need, number in demand.items()}
    powers = {2**n for n in range(6, 18)}
    assert set(kinds) == {0, 1 * HOUR, 10 * HOUR} | powers
    assert (kinds[0], kinds[64], kinds[1 * HOUR]) == (1, 1, 60 - 2048 // 60)
    assert unfit == [599, 1139, 0]


def test_time_is_no_matter_where_workers_live_as_long_as_they_like() -> None:
    demand, unfit = demand_of([(asking(1), 1), (asking(100), 1)], [QUEUE, QUEUE])
    assert list(demand.values()) == [2]
    assert unfit == [0, 0]


def test_a_long_bundle_goes_to_the_pool_whose_workers_live_long_enough() -> None:
    queues = {"short": SHORT, "long": LONG}
    demand, _ = demand_of([(asking(2), 2), (asking(0.5), 4)], list(queues.values()))
    snapshots = {name: Snapshot({}, 0, 0, 0) for name in queues}
    configs = {name: PoolConfig(queue.shape, 0, 10) for name, queue in queues.items()}
    shares = decide_set(demand, snapshots, configs, NOW)
    assert shares["short"].decision.launch == 1
    assert shares["short"].snapshot.staged == 4
    assert shares["long"].decision.launch == 1


def test_without_the_prefilter_it_counts_as_one_that_takes_a_whole_worker() -> None:
    demand, unfit = demand_of([(asking(2), 3)], [replace(SHORT, prefilter=False)])
    assert demand == {Need(Room(0, 4, 8 * GIB)): 3}
    assert unfit == [0]


def test_how_long_workers_live_is_said_by_their_backends_options() -> None:
    assert lifetime_seconds("slurm", {"time": "2:00:00"}) == 2 * HOUR - 120 - 60
    assert lifetime_seconds("slurm", {"time": "0:04:00"}) == 240 - 60 - 30
    assert lifetime_seconds("slurm", {"time": "UNLIMITED"}) is None
    assert lifetime_seconds("aws-batch", {"timeout": 3600}) == HOUR
    assert lifetime_seconds("aws-batch", {"timeout": None}) is None
    assert lifetime_seconds("gcp-batch", {"max_run_hours": 1.5}) == 1.5 * HOUR
    for of_an_earlier_version in ("slurm", "aws-batch", "gcp-batch", "local-process"):
        assert lifetime_seconds(of_an_earlier_version, {}) is None
    assert lifetime_seconds("a-plugin-that-is-gone", {}) is None
