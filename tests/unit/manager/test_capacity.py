"""Fitting bundles into workers, beside the same thing done one by one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.capacity import (
    MOST_KINDS,
    UNBOUNDED,
    Need,
    Offer,
    Room,
    Shelf,
    coarse_demand,
    coarse_offers,
    largest_first,
    place,
    total,
)

GIB = 1024**3

amounts = st.integers(0, 6)
times = st.sampled_from((0, 0, 60, 3600))
needs = st.builds(
    Need,
    st.builds(Room, st.integers(0, 2), amounts, amounts, amounts, times),
    st.sampled_from(("", "", "a", "b")),
)
offers = st.builds(
    Offer,
    st.builds(
        Room,
        st.integers(0, 2),
        amounts,
        amounts,
        amounts | st.just(UNBOUNDED),
        times | st.just(UNBOUNDED),
    ),
    st.sampled_from(("", "a")),
    st.booleans(),
)
counts = st.integers(1, 9)


def one_by_one(demand: dict[Need, int], free: dict[Offer, int]) -> dict[Need, int]:
    """Each bundle into the tightest worker that takes it, that of its likes before it first."""
    workers = [offer for offer, number in free.items() for _ in range(number)]
    workers = [offer for offer in workers if any(offer.room[:3])]
    left: dict[Need, int] = {}
    for need, number in largest_first(demand):
        order = sorted(range(len(workers)), key=lambda position: _size(workers[position]))
        for _ in range(number):
            for position in order:
                if workers[position].takes(need):
                    workers[position] = workers[position].without(need, 1)
                    break
            else:
                left[need] = left.get(need, 0) + 1
    return left


def _size(offer: Offer) -> tuple[object, ...]:
    """Who lives short is used before who has more memory, and lives long."""
    gpus, cpus, memory_bytes, disk_bytes, time_seconds = offer.room
    return gpus, cpus, time_seconds, memory_bytes, disk_bytes


@given(st.dictionaries(needs, counts, max_size=6), st.dictionaries(offers, counts, max_size=6))
def test_groups_of_likes_are_placed_as_if_one_by_one(
    demand: dict[Need, int], free: dict[Offer, int]
) -> None:
    plain = {
        Offer(offer.room, "", False): number for offer, number in free.items()
    }  # with one tag the order of the workers is that of their room
    of_any = {need: number for need, number in demand.items() if any(need.room[:3])}
    assert place(of_any, Shelf(plain)) == one_by_one(of_any, plain)


@given(st.dictionaries(needs, counts, max_size=6), st.dictionaries(offers, counts, max_size=6))
def test_nothing_is_left_over_that_one_of_the_workers_would_take_untouched(
    demand: dict[Need, int], free: dict[Offer, int]
) -> None:
    left = place(demand, Shelf(free))
    assert all(0 < number <= demand[need] for need, number in left.items())
    if left == demand:
        real = [offer for offer in free if any(offer.room[:3])]
        assert not any(offer.takes(need) for offer in real for need in demand)


def many_needs(chance: random.Random) -> dict[Need, int]:
    return {
        Need(
            Room(
                chance.choice((0, 0, 1)),
                chance.choice((1, 2, 4)),
                chance.randrange(1, 40 * GIB),
                chance.choice((0, chance.randrange(1, 300 * GIB))),
            ),
            chance.choice(("", "a")),
        ): chance.randrange(1, 4)
        for _ in range(MOST_KINDS * 4)
    }


@pytest.mark.parametrize("seed", range(5))
def test_rounded_bundles_fit_the_very_shapes_that_they_fitted(seed: int) -> None:
    chance = random.Random(seed)
    demand = many_needs(chance)
    shapes = [
        Room(1, 4, chance.randrange(1, 33) * GIB + chance.randrange(GIB), disk)
        for disk in (UNBOUNDED, 100 * GIB, 7 * GIB + 5)
    ]
    rounded = coarse_demand(demand, shapes)
    assert len(rounded) < len(demand) / 2
    assert total(rounded) == total(demand)
    for shape in shapes:
        for tag, exclusive in (("", False), ("a", False), ("a", True)):
            offer = Offer(shape, tag, exclusive)
            before = sum(number for need, number in demand.items() if offer.takes(need))
            assert sum(n for need, n in rounded.items() if offer.takes(need)) == before


@pytest.mark.parametrize("seed", range(5))
def test_rounded_workers_have_no_more_room_than_they_had(seed: int) -> None:
    chance = random.Random(seed)
    whole = Room(2, 16, 64 * GIB, UNBOUNDED)
    free = {
        Offer(Room(0, 8, chance.randrange(64 * GIB), chance.randrange(10**13)), "a"): 1
        for _ in range(MOST_KINDS * 4)
    }
    for demand in (many_needs(chance), {Need(Room(0, 1, GIB)): 5}):
        rounded = coarse_offers(free, whole, demand)
        assert len(rounded) <= MOST_KINDS
        assert sum(rounded.values()) == len(free)
        memory = sorted(offer.room.memory_bytes for offer in free)
        less = sorted(o.room.memory_bytes for o, number in rounded.items() for _ in range(number))
        assert all(a <= b for a, b in zip(less, memory, strict=True))
        assert max(o.room.disk_bytes for o in rounded) <= max(o.room.disk_bytes for o in free)


def test_disks_that_nobody_asks_about_do_not_keep_likes_apart() -> None:
    free = {Offer(Room(0, 8, 16 * GIB, disk)): 1 for disk in range(10**12, 10**12 + MOST_KINDS * 2)}
    rounded = coarse_offers(free, Room(0, 8, 16 * GIB, UNBOUNDED), {Need(Room(0, 1, GIB)): 5})
    assert [offer.room.cpus for offer in rounded] == [8]


def test_few_kinds_are_as_they_are() -> None:
    demand = {Need(Room(0, 1, 12345, 678)): 3}
    free = {Offer(Room(0, 1, 54321, 987)): 2}
    assert coarse_demand(demand, [Room(1, 1, 1, 1)]) == demand
    assert coarse_offers(free, Room(1, 1, 1, 1), demand) == free
