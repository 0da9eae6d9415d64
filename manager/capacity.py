"""What bundles need, what workers offer, and how the one fits into the other. Pure arithmetic.

Everything is counted in groups of likes: ten thousand bundles that ask for the same, and as many
workers with the same room left, are one step each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import NamedTuple

UNBOUNDED = 2**62
"""Room of which nobody knows how much there is."""
MOST_KINDS = 512
"""More kinds of needs or offers than this are rounded to steps, and to coarser ones while there are
still more: the answer then errs to a worker too many, which the next tick sees."""
STEPS = (64, 16, 4)
"""To such parts of the largest machine's memory; disk to eight times as large parts of the most
that is asked for."""
ROOMY = 64
"""A disk that holds so many times what anybody asks for is no larger than that."""


class Room(NamedTuple):
    """An amount of every resource: asked for, or free. A bundle that asks for no disk asks for 0;
    a worker whose disk is not known has UNBOUNDED. ``time_seconds``: how long a worker has to
    live, and lives; it is not used up."""

    gpus: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    time_seconds: int = 0

    def holds(self, asked: Room) -> bool:
        return (
            asked.gpus <= self.gpus
            and asked.cpus <= self.cpus
            and asked.memory_bytes <= self.memory_bytes
            and asked.disk_bytes <= self.disk_bytes
            and asked.time_seconds <= self.time_seconds
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
            self.time_seconds,
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
    They lie in boxes of equal gpus, cpus, time and tag, each by its memory and then its disk.
    """

    def __init__(self, offers: Mapping[Offer, int]) -> None:
        self._boxes: dict[_Box, list[tuple[int, int, int]]] = {}
        """(memory bytes, disk bytes, number), ascending."""
        self._order: list[_Box] = []
        self._largest_disk: dict[_Box, int] = {}
        """That ever lay in a box: no worker in it has more."""
        for offer, number in offers.items():
            self.add(offer, number)

    def put(self, need: Need, number: int) -> int:
        """Put up to ``number`` bundles of one kind into what is free; how many are left over."""
        asked, order = need.room, self._order
        position = bisect_left(order, asked[:2])
        while number and position < len(order):
            box = order[position]
            position += 1
            _, cpus, time_seconds, tag, tag_exclusive = box
            if cpus < asked.cpus or time_seconds < asked.time_seconds:
                continue
            if need.queue != tag if need.queue else tag and tag_exclusive:
                continue
            if self._boxes[box][-1][0] < asked.memory_bytes:
                continue
            if self._largest_disk[box] < asked.disk_bytes:
                continue
            number = self._fill(need, number, box)
            # What is left of it lies before, where there is less room.
            position = bisect_left(order, box)
            if position < len(order) and order[position] == box:
                position += 1
        return number

    def _fill(self, need: Need, number: int, box: _Box) -> int:
        """Put bundles into the workers of a box; how many are left over."""
        gpus, cpus, time_seconds, tag, tag_exclusive = box
        asked, workers = need.room, self._boxes[box]
        rests: list[tuple[Offer, int]] = []
        position = bisect_left(workers, (asked.memory_bytes,))
        while number and position < len(workers):
            memory_bytes, disk_bytes, there = workers[position]
            if disk_bytes < asked.disk_bytes:
                position += 1
                continue
            del workers[position]
            room = Room(gpus, cpus, memory_bytes, disk_bytes, time_seconds)
            offer = Offer(room, tag, tag_exclusive)
            each = offer.room.times(asked)
            placed = min(number, each * there)
            full, rest = divmod(placed, each)
            rests.append((offer.without(need, each), full))
            rests.append((offer.without(need, rest), 1 if rest else 0))
            rests.append((offer, there - full - (1 if rest else 0)))
            number -= placed
        if not workers:
            del self._boxes[box]
            del self._order[bisect_left(self._order, box)]
        for offer, there in rests:
            self.add(offer, there)
        return number

    def add(self, offer: Offer, number: int) -> None:
        """There are so many workers more that offer this."""
        gpus, cpus, memory_bytes, disk_bytes, time_seconds = offer.room
        if number <= 0 or not (cpus or gpus or memory_bytes):
            return
        box = (gpus, cpus, time_seconds, offer.tag, offer.tag_exclusive)
        workers = self._boxes.get(box)
        if workers is None:
            workers = self._boxes[box] = []
            self._order.insert(bisect_left(self._order, box), box)
            self._largest_disk[box] = disk_bytes
        elif self._largest_disk[box] < disk_bytes:
            self._largest_disk[box] = disk_bytes
        position = bisect_left(workers, (memory_bytes, disk_bytes))
        if position < len(workers) and workers[position][:2] == (memory_bytes, disk_bytes):
            number += workers.pop(position)[2]
        workers.insert(position, (memory_bytes, disk_bytes, number))


_Box = tuple[int, int, int, str, bool]
"""Gpus, cpus, seconds of life, tag, exclusive."""


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


def coarse_demand(demand: Demand, shapes: Collection[Room]) -> dict[Need, int]:
    """The same bundles in fewer kinds: memory and disk rounded up, but not to more than a worker
    of one of the ``shapes`` offers that holds what is asked for."""
    if len(demand) <= MOST_KINDS:
        return dict(demand)
    wholes = sorted({shape.memory_bytes for shape in shapes})
    disks = sorted({shape.disk_bytes for shape in shapes})
    most = max(need.room.disk_bytes for need in demand)
    kinds: dict[tuple[int, int, int, int, int, str], int] = {}
    for (room, queue), number in demand.items():
        kinds[*room, queue] = number
    for steps in STEPS:
        memory_step = max(1, max(wholes, default=1) // steps)
        disk_step = max(1, most * 8 // steps)
        rounded: dict[tuple[int, int, int, int, int, str], int] = {}
        for (gpus, cpus, memory_bytes, disk_bytes, seconds, queue), number in kinds.items():
            kind = (
                gpus,
                cpus,
                _up(memory_bytes, memory_step, wholes),
                _up(disk_bytes, disk_step, disks),
                seconds,
                queue,
            )
            rounded[kind] = rounded.get(kind, 0) + number
        kinds = rounded
        if len(kinds) <= MOST_KINDS:
            break
    return {Need(Room(*room), queue): number for (*room, queue), number in kinds.items()}


def coarse_offers(offers: Mapping[Offer, int], shape: Room, demand: Demand) -> dict[Offer, int]:
    """The same workers in fewer kinds: their free memory and disk rounded down, and no more disk
    than matters to what the demand asks for."""
    if len(offers) <= MOST_KINDS:
        return dict(offers)
    most = max((need.room.disk_bytes for need in demand), default=0)
    kinds: dict[tuple[int, int, int, int, int, str, bool], int] = {}
    for (room, tag, tag_exclusive), number in offers.items():
        kinds[*room, tag, tag_exclusive] = number
    for steps in STEPS:
        memory_step = max(1, shape.memory_bytes // steps)
        disk_step = max(1, most * 8 // steps)
        rounded: dict[tuple[int, int, int, int, int, str, bool], int] = {}
        for one, number in kinds.items():
            gpus, cpus, memory_bytes, disk_bytes, seconds, tag, tag_exclusive = one
            kind = (
                gpus,
                cpus,
                memory_bytes // memory_step * memory_step,
                min(disk_bytes, most * ROOMY) // disk_step * disk_step,
                seconds,
                tag,
                tag_exclusive,
            )
            rounded[kind] = rounded.get(kind, 0) + number
        kinds = rounded
        if len(kinds) <= MOST_KINDS:
            break
    return {
        Offer(Room(*room), tag, tag_exclusive): number
        for (*room, tag, tag_exclusive), number in kinds.items()
    }


def _up(value: int, step: int, wholes: list[int]) -> int:
    """A multiple of the step, or the first of ``wholes`` that comes before it."""
    up = -(-value // step) * step
    first = bisect_left(wholes, value)
    return wholes[first] if first < len(wholes) and wholes[first] < up else up


def total(demand: Demand) -> int:
    """How many bundles."""
    return sum(demand.values())
