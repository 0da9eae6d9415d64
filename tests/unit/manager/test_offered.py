"""Workers that turn out to have less than their pool says, and bundles that ask for more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_fakes import GIB, NOW, SolePool
from pool_stand import Stand

from backends.base import EndCause, JobState
from manager.capacity import UNBOUNDED, Room
from manager.offered import ENOUGH_WORKERS, FIRST_SECONDS, LONGEST_SECONDS, Offered

OFFER = {
    "cpus": 1,
    "cpus_in_use": 0,
    "gpus": 0,
    "gpus_in_use": 0,
    "memory_bytes": 2 * GIB,
    "memory_bytes_in_use": 0,
    "free_disk_bytes": 50 * GIB,
}

THREE = [{**OFFER, "worker_id": f"w{number}"} for number in range(ENOUGH_WORKERS)]


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def come(stand: Stand, **facts: Any) -> None:
    """Every worker that was launched comes, with what an OFFER says but for ``facts``."""
    stand.server.workers = [job.worker_id for job in stand.backend.jobs]
    for name in stand.server.workers:
        stand.server.offers.setdefault(name, {**OFFER, **facts})


def launched(stand: Stand, manager: SolePool, ticks: int = 20, seconds: float = 30.0) -> int:
    """How many workers are launched in so many ticks, when each comes and takes nothing."""
    before = len(stand.backend.launched)
    for _ in range(ticks):
        manager.tick()
        come(stand)
        stand.now += seconds
    return len(stand.backend.launched) - before


def leave(stand: Stand) -> None:
    stand.server.workers = []
    for position, job in enumerate(stand.backend.jobs):
        stand.backend.jobs[position] = replace(
            job, state=JobState.ENDED, ended=stand.now, exit_code=0, cause=EndCause.FINISHED
        )


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        ({"request_disk": "100g"}, {}),
        ({"request_memory": "2g"}, {"memory_bytes": 2 * GIB - 1}),
    ],
)
def test_for_a_bundle_that_no_new_worker_had_room_for_a_few_are_launched_and_no_more(
    stand: Stand, asked: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    manager = stand.start(high=9)
    stand.server.stage(**asked)
    for _ in range(20):
        manager.tick()
        come(stand, **facts)
        stand.now += 20.0
    assert len(stand.backend.launched) == ENOUGH_WORKERS
    unfit = manager.tick().reason("unfit")
    assert unfit.held
    assert unfit.sentence == "1 staged bundle would not fit a worker of this pool"
    stand.server.stage(request_memory="1g")
    for worker in stand.server.workers:
        stand.server.offers[worker]["cpus_in_use"] = 1
    assert manager.tick().launch == 1, "others go on"


def test_one_machine_in_disrepair_says_nothing_of_the_others(stand: Stand) -> None:
    manager = stand.start(high=9)
    stand.server.stage(request_memory="2g")
    manager.tick()
    come(stand, memory_bytes=GIB)
    assert launched(stand, manager, 2) == 1, "there may be others with room for it"


def test_a_machine_with_more_may_come_so_it_is_tried_again_after_a_while(stand: Stand) -> None:
    manager = stand.start(high=9)
    stand.server.stage(request_disk="100g")
    assert launched(stand, manager, seconds=20.0) == ENOUGH_WORKERS
    leave(stand)
    assert manager.tick().launch == 0
    stand.now += FIRST_SECONDS
    manager.tick()
    assert manager.tick().launch == 1
    come(stand, free_disk_bytes=200 * GIB)
    manager.tick()
    stand.server.stage(request_disk="100g")
    stand.server.offers[stand.backend.jobs[-1].worker_id]["cpus_in_use"] = 1
    assert manager.tick().launch == 2, "the one that came has taken neither"


def test_what_was_seen_is_believed_for_longer_each_time_and_for_a_day_at_most() -> None:
    offered, now = Offered(), NOW
    for seconds in (FIRST_SECONDS, 2 * FIRST_SECONDS, *[LONGEST_SECONDS] * 3):
        if seconds == LONGEST_SECONDS:
            for _ in range(10):
                offered.see(THREE, now := now + LONGEST_SECONDS)
        offered.see(THREE, now)
        offered.see([], now + seconds - 1)
        assert offered.room is not None
        offered.see([], now := now + seconds)
        assert offered.room is None


def test_what_a_worker_has_left_beside_what_it_did_says_nothing_of_a_new_one(
    stand: Stand,
) -> None:
    manager = stand.start(high=5)
    stand.server.stage()
    manager.tick()
    come(stand, run_uuids=["0x1"], cpus_in_use=1, free_disk_bytes=GIB)
    stand.server.bundles.clear()
    stand.server.stage(request_disk="40g")
    manager.tick()
    assert manager.tick().launch == 1


def test_a_pool_with_other_options_is_not_judged_by_its_old_workers(stand: Stand) -> None:
    manager = stand.start(high=9)
    stand.server.stage(request_disk="100g")
    assert launched(stand, manager, 5) == ENOUGH_WORKERS
    stand.now += 1
    stand.settings = {"partition": "with-large-disks"}
    manager = stand.start(high=9)
    assert manager.tick().launch == 1


def test_it_is_the_most_of_each_that_was_seen() -> None:
    offered = Offered()
    assert offered.room is None
    silent = [{"worker_id": f"of a server that says nothing {n}"} for n in range(9)]
    offered.see([*silent, *({**worker, "cpus": None} for worker in THREE)], NOW)
    assert offered.room is None
    offered.see([THREE[0]] * 9, NOW)
    assert offered.room is None, "it is one"
    offered.see([THREE[1], {**THREE[2], "cpus": 4, "free_disk_bytes": GIB}], NOW)
    assert offered.room == Room(0, 4, 2 * GIB, 50 * GIB, UNBOUNDED)
    offered.see([{**OFFER, "worker_id": "w9", "gpus": 1}], NOW + FIRST_SECONDS - 1)
    assert offered.room == Room(1, 4, 2 * GIB, 50 * GIB, UNBOUNDED)
    offered.see([], NOW + FIRST_SECONDS)
    assert offered.room is None
