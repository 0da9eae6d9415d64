"""What bundles need, what workers offer, and how the one fits into the other. Pure arithmetic.

Everything is counted in groups of likes: ten thousand bundles that ask for the same, and as many
workers with the same room left, are one step each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

UNBOUNDED = 2**62
"""Room of which nobody knows how much there is."""
FINE_KINDS = 256
"""More kinds of needs or offers than this are rounded to steps, so that there are fewer: the
answer then errs to a worker too many, which the next tick sees."""
STEPS = 64


class Room(NamedTuple):
    """An amount of every resource: asked for, or free. A bundle that asks for no disk asks for 0;
    a worker whose disk is not known has UNBOUNDED."""

    gpus: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0

    def holds(self, asked: Room) -> bool:
        return (
            asked.gpus <= self.gpus
            and asked.cpus <= self.cpus
            and asked.memory_bytes <= self.memory_bytes
            and asked.disk_bytes <= self.disk_bytes
        )

    def times(self, asked: Room) -> int:
        """How often ``asked`` fits; UNBOUNDED when it asks for nothing at all."""
        number = UNBOUNDED
        if asked.gpus:
            number = self.gpus // asked.gpus
        if asked.cpus:
            number = min(number, self.cpus // asked.cpus)
        if asked.memory_bytes:
            number = min(number, self.memory_bytes // asked.memory_bytes)
        if asked.disk_bytes:
            number = min(number, self.disk_bytes // asked.disk_bytes)
        return number

    def less(self, asked: Room, number: int) -> Room:
        return Room(
            self.gpus - asked.gpus * number,
            self.cpus - asked.cpus * number,
            self.memory_bytes - asked.memory_bytes * number,
            self.disk_bytes - asked.disk_bytes * number,
        )


class Need(NamedTuple):
    """What bundles of one kind ask for. ``queue``: a worker's tag, "" for none."""

    room: Room
    queue: str = ""


class Offer(NamedTuple):
    """What one worker takes: bundles that fit ``room`` and are for ``tag``, or also for none."""

    room: Room
    tag: str = ""
    tag_exclusive: bool = False

    def is_for(self, need: Need) -> bool:
        if need.queue:
            return need.queue == self.tag
        return not (self.tag and self.tag_exclusive)

    def takes(self, need: Need) -> bool:
        return self.is_for(need) and self.room.holds(need.room)

    def without(self, need: Need, number: int) -> Offer:
        return Offer(self.room.less(need.room, number), self.tag, self.tag_exclusive)


Demand = Mapping[Need, int]
"""How many bundles there are of each kind."""


def largest_first(demand: Demand) -> list[tuple[Need, int]]:
    """In the order in which they are placed: what is hard to place has the choice."""
    return sorted(demand.items(), reverse=True)


class Shelf:
    """The offers of many workers, counted by kind and found by size.

    In the order of their room: what is tightest is used first, so that large workers stay free.
    """

    def __init__(self, offers: Mapping[Offer, int]) -> None:
        self._number: dict[Offer, int] = {}
        self._order: list[Offer] = []
        for offer, number in offers.items():
            self.add(offer, number)

    def put(self, need: Need, number: int) -> int:
        """Put up to ``number`` bundles of one kind into what is free; how many are left over."""
        start = bisect_left(self._order, need.room, key=lambda offer: offer.room)
        while number and start < len(self._order):
            offer = self._order[start]
            if offer.takes(need):
                number = self._fill(need, number, offer)
                # What is left of it stands before, where there is less room.
                start = bisect_left(self._order, offer.room, key=lambda o: o.room)
                if self._order[start : start + 1] == [offer]:
                    start += 1
            else:
                start += 1
        return number

    def _fill(self, need: Need, number: int, offer: Offer) -> int:
        each = offer.room.times(need.room)
        workers = self._number.pop(offer)
        del self._order[bisect_left(self._order, offer)]
        placed = min(number, each * workers)
        full, rest = divmod(placed, each)
        if full:
            self.add(offer.without(need, each), full)
        if rest:
            self.add(offer.without(need, rest), 1)
        self.add(offer, workers - full - (1 if rest else 0))
        return number - placed

    def add(self, offer: Offer, number: int) -> None:
        """There are so many workers more that offer this."""
        if number <= 0 or not (offer.room.cpus or offer.room.gpus or offer.room.memory_bytes):
            return
        if offer not in self._number:
            self._order.insert(bisect_left(self._order, offer), offer)
        self._number[offer] = self._number.get(offer, 0) + number


def place(demand: Demand, shelf: Shelf) -> dict[Need, int]:
    """Put bundles into the room that there is; those for which there is none."""
    left = {}
    for need, number in largest_first(demand):
        number = shelf.put(need, number)
        if number:
            left[need] = number
    return left


def open_workers(demand: Demand, shape: Offer, most: int) -> tuple[int, dict[Need, int]]:
    """Put bundles into as few new workers of ``shape`` as first-fit decreasing finds.

    Returns how many workers, ``most`` at most, and the bundles for which there is no room.
    """
    opened = 0
    left = {}
    shelf = Shelf({})
    for need, number in largest_first(demand):
        number = shelf.put(need, number)
        if number and shape.takes(need):
            each = shape.room.times(need.room)
            workers = min(-(-number // each), most - opened)
            if workers > 0:
                opened += workers
                shelf.add(shape, workers)
                number = shelf.put(need, number)
        if number:
            left[need] = number
    return opened, left


def coarse_demand(demand: Demand, shape: Room) -> dict[Need, int]:
    """The same bundles in fewer kinds: memory and disk rounded up to a STEPS-th of ``shape``."""
    if len(demand) <= FINE_KINDS:
        return dict(demand)
    rounded: dict[Need, int] = {}
    for need, number in demand.items():
        room = need.room
        kind = Need(
            Room(
                room.gpus,
                room.cpus,
                _up(room.memory_bytes, shape.memory_bytes),
                _up(room.disk_bytes, shape.disk_bytes),
            ),
            need.queue,
        )
        rounded[kind] = rounded.get(kind, 0) + number
    return rounded


def coarse_offers(offers: Mapping[Offer, int], shape: Room) -> dict[Offer, int]:
    """The same workers in fewer kinds: their free memory and disk rounded down likewise."""
    if len(offers) <= FINE_KINDS:
        return dict(offers)
    rounded: dict[Offer, int] = {}
    for offer, number in offers.items():
        room = offer.room
        kind = Offer(
            Room(
                room.gpus,
                room.cpus,
                _down(room.memory_bytes, shape.memory_bytes),
                _down(room.disk_bytes, shape.disk_bytes),
            ),
            offer.tag,
            offer.tag_exclusive,
        )
        rounded[kind] = rounded.get(kind, 0) + number
    return rounded


def _up(value: int, whole: int) -> int:
    step = max(1, whole // STEPS)
    up = -(-value // step) * step
    return value if value <= whole < up else up


def _down(value: int, whole: int) -> int:
    step = max(1, whole // STEPS)
    return value // step * step


def total(demand: Demand) -> int:
    """How many bundles."""
    return sum(demand.values())
