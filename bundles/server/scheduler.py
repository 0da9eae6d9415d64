"""Which staged bundle runs on which worker: a pure index over plain values, no I/O, no clock.

Bundles that ask for the same wait in one group, so that ten thousand that fit nowhere cost as much
as one. After ``match`` no waiting group fits any worker; only what changed since (a new group, a
worker with more room) is looked at again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bundles.sizes import format_duration, format_size

KEPT_PART = 4
"""At most one of so many workers is kept empty for bundles that are to be alone."""
NO_PRIORITY = -0.5
"""The rank of a bundle without a priority: behind 0 and more, before the negative ones."""


@dataclass(frozen=True, slots=True)
class Need:
    """What the bundles of one group ask for, and whose they are. ``queue``: a worker's tag.

    ``time_seconds``: how long they say that they take at most, 0: they do not.
    ``alone``: no other bundle may be on the worker meanwhile.
    """

    owner_id: str
    cpus: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    queue: str = ""
    alone: bool = False
    time_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A staged bundle. Of two, the one with the smaller ``order`` was created first.

    ``is_deferred``: every other that fits goes first, whatever its priority and its user.
    """

    uuid: str
    order: int
    need: Need
    priority: float = NO_PRIORITY
    parents: frozenset[tuple[str, str]] = frozenset()
    is_deferred: bool = False

    @property
    def place(self) -> tuple[bool, float, int, str]:
        """Where it stands in its group."""
        return self.is_deferred, -self.priority, self.order, self.uuid


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker has in total and takes; room is what its bundles leave of it.

    ``serves``: the ids of the users whose bundles it takes, None for everyone's.
    ``runs_left``: how many more bundles it takes, None for any number. ``end``: when it ends, by
    the clock that ``match`` and ``judge`` are told: what says that it takes longer is not for it.
    """

    worker_id: str
    cpus: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    tag: str = ""
    tag_exclusive: bool = False
    serves: frozenset[str] | None = None
    cached: frozenset[tuple[str, str]] = frozenset()
    runs_left: int | None = None
    accepting: bool = True
    end: float = math.inf


class Match(NamedTuple):
    """A bundle and the worker it goes to."""

    uuid: str
    worker_id: str


@dataclass(slots=True)
class _Group:
    need: Need
    heap: list[tuple[bool, float, int, str]] = field(default_factory=list)
    count: int = 0
    judged: bool = False
    verdict: str | None = None
    judged_until: float = math.inf
    """When the worker that could run it can do so no more."""


@dataclass(slots=True)
class _Worker:
    offer: Offer
    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    taken: int = 0
    """Bundles matched to it since it last made an offer."""
    bundles: dict[str, Need] = field(default_factory=dict)
    loners: int = 0
    """How many of its bundles are to be alone: none or one."""
    kept_for: Need | None = None
    """It gets nothing until a bundle of this group, which is to be alone, has it."""

    @property
    def is_shared(self) -> bool:
        """Whether others may come beside what it has."""
        return not self.loners and self.kept_for is None

    def has_room(self, need: Need) -> bool:
        offer = self.offer
        is_open = not self.bundles if need.alone else not self.loners
        return (
            is_open
            and self.kept_for in (None, need)
            and need.cpus <= offer.cpus - self.cpus
            and need.gpus <= offer.gpus - self.gpus
            and need.memory_bytes <= offer.memory_bytes - self.memory_bytes
            and (not need.disk_bytes or need.disk_bytes <= offer.disk_bytes - self.disk_bytes)
        )


class Scheduler:
    """The staged bundles and the workers at work."""

    def __init__(self) -> None:
        self._groups: dict[Need, _Group] = {}
        self._waiting: dict[str, Waiting] = {}
        self._workers: dict[str, _Worker] = {}
        self._running: dict[str, int] = {}
        self._new_groups: set[Need] = set()
        self._freed: set[str] = set()
        self._offers_changed = False
        self._is_judged = True
        self._judged_until = math.inf
        """When the first of the groups is to be judged anew."""
        self._alone: dict[Need, str | None] = {}
        """The groups of those that are to be alone, and the worker that is kept for each."""

    # Bundles

    def add(self, bundle: Waiting) -> None:
        """A bundle is staged."""
        if bundle.uuid in self._waiting:
            return
        self._waiting[bundle.uuid] = bundle
        group = self._groups.get(bundle.need)
        if group is None:
            group = self._groups[bundle.need] = _Group(bundle.need)
            self._new_groups.add(bundle.need)
            self._is_judged = False
            if bundle.need.alone:
                self._alone.setdefault(bundle.need)
        group.count += 1
        heapq.heappush(group.heap, bundle.place)

    def remove(self, uuid: str) -> None:
        """A bundle is no longer staged, for whatever reason but a match."""
        bundle = self._waiting.pop(uuid, None)
        if bundle is None:
            return
        group = self._groups[bundle.need]
        group.count -= 1
        if group.count == 0:
            del self._groups[bundle.need]
            self._new_groups.discard(bundle.need)

    def __len__(self) -> int:
        return len(self._waiting)

    def verdict(self, uuid: str) -> str | None:
        """The sentence of the bundle's group, as ``judge`` left it."""
        bundle = self._waiting.get(uuid)
        return None if bundle is None else self._groups[bundle.need].verdict

    # Workers

    def offer(self, offer: Offer) -> None:
        """A worker is there, or offers something else than before."""
        worker = self._workers.get(offer.worker_id)
        if worker is None:
            self._workers[offer.worker_id] = _Worker(offer)
            self._freed.add(offer.worker_id)
            self._offers_changed = True
            return
        if worker.taken and offer.runs_left is not None:
            self._freed.add(offer.worker_id)
        worker.taken = 0
        if worker.offer != offer:
            before, worker.offer = worker.offer, offer
            self._freed.add(offer.worker_id)
            if _capacity(before) != _capacity(offer):
                self._offers_changed = True

    def withdraw(self, worker_id: str) -> None:
        """A worker is gone; what it runs no longer counts."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        self._offers_changed = True
        self._freed.discard(worker_id)
        for need in worker.bundles.values():
            self._count(need.owner_id, -1)

    def occupy(self, worker_id: str, uuid: str, need: Need) -> None:
        """A worker has a bundle; the same one twice counts once."""
        worker = self._workers.get(worker_id)
        if worker is None or uuid in worker.bundles:
            return
        worker.bundles[uuid] = need
        worker.cpus += need.cpus
        worker.gpus += need.gpus
        worker.memory_bytes += need.memory_bytes
        worker.disk_bytes += need.disk_bytes
        worker.loners += need.alone
        self._count(need.owner_id, 1)

    def release(self, worker_id: str, uuid: str) -> None:
        """A worker no longer has a bundle."""
        worker = self._workers.get(worker_id)
        need = worker.bundles.pop(uuid, None) if worker else None
        if worker is None or need is None:
            return
        worker.cpus -= need.cpus
        worker.gpus -= need.gpus
        worker.memory_bytes -= need.memory_bytes
        worker.disk_bytes -= need.disk_bytes
        worker.loners -= need.alone
        self._count(need.owner_id, -1)
        self._freed.add(worker_id)

    def in_use(self, worker_id: str) -> tuple[int, int, int]:
        """The cpus, gpus and bytes of memory that a worker's bundles asked for: all that it has
        while nothing else may come beside its bundle."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return 0, 0, 0
        held = worker if worker.is_shared else worker.offer
        return held.cpus, held.gpus, held.memory_bytes

    def _count(self, owner_id: str, step: int) -> None:
        self._running[owner_id] = self._running.get(owner_id, 0) + step

    # Decisions

    def match(self, now: float = 0.0) -> list[Match]:
        """Every assignment that is possible now, carried out in this index, best first.

        ``now``: in seconds, by the clock of the offers' ``end``. What fits no worker now fits none
        later for the time that has passed, so that nothing is looked at again because of it.

        Bundles go by priority, then to the user with the fewest running, then by age. One that is
        to be alone would wait for ever where others always come first: once it is not deferred, a
        worker that has bundles is kept for it until it has none.
        """
        self._let_go(now)
        freed = [
            self._workers[worker_id]
            for worker_id in sorted(self._freed)
            if _takes_more(self._workers[worker_id])
        ]
        everyone = list(self._workers.values()) if self._new_groups else freed
        if freed:
            candidates = [
                group
                for need, group in self._groups.items()
                if need in self._new_groups or any(_fits(need, worker, now) for worker in freed)
            ]
        else:
            candidates = [self._groups[need] for need in self._new_groups]
        heads = [(self._key(group), index) for index, group in enumerate(candidates)]
        heapq.heapify(heads)
        matches: list[Match] = []
        while heads:
            key, index = heapq.heappop(heads)
            group = candidates[index]
            present = self._key(group)
            if present > key:  # this user got a bundle to run since the key was made
                heapq.heappush(heads, (present, index))
                continue
            bundle = self._waiting[group.heap[0][-1]]
            workers = everyone if group.need in self._new_groups else freed
            worker = _best(bundle, workers, now)
            if worker is None:
                continue
            matches.append(Match(bundle.uuid, worker.offer.worker_id))
            heapq.heappop(group.heap)
            del self._waiting[bundle.uuid]
            group.count -= 1
            worker.taken += 1
            self.occupy(worker.offer.worker_id, bundle.uuid, bundle.need)
            if group.count == 0:
                del self._groups[group.need]
            else:
                heapq.heappush(heads, (self._key(group), index))
        self._freed.clear()
        self._new_groups.clear()
        self._keep(now)
        return matches

    def _let_go(self, now: float) -> None:
        """Workers that are kept for no good reason any more are free again."""
        for need, worker_id in list(self._alone.items()):
            worker = self._workers.get(worker_id) if worker_id is not None else None
            if worker is None or worker.kept_for != need:  # it left, and may have come anew
                self._alone[need] = None
            elif not (self._is_due(need) and _may_be_kept(worker, need, now)):
                worker.kept_for = self._alone[need] = None
                self._freed.add(worker.offer.worker_id)
            if need not in self._groups:
                del self._alone[need]

    def _keep(self, now: float) -> None:
        """Keep one worker for each group of bundles that are to be alone and found none."""
        kept = sum(worker_id is not None for worker_id in self._alone.values())
        for need, worker_id in self._alone.items():
            if kept >= max(1, len(self._workers) // KEPT_PART):
                return
            if worker_id is None and self._is_due(need) and not self._groups[need].verdict:
                worker = min(
                    (
                        worker
                        for worker in self._workers.values()
                        if worker.is_shared and _may_be_kept(worker, need, now)
                    ),
                    key=lambda worker: (len(worker.bundles), worker.offer.worker_id),
                    default=None,
                )
                if worker is not None:
                    worker.kept_for = need
                    self._alone[need] = worker.offer.worker_id
                    kept += 1

    def _is_due(self, need: Need) -> bool:
        """Whether one of the group waits and is not deferred."""
        group = self._groups.get(need)
        return group is not None and not self._key(group)[0]

    def _key(self, group: _Group) -> tuple[bool, float, int, int]:
        # What was removed is still in the heap, also if it was added again with another place.
        while (bundle := self._waiting.get(group.heap[0][-1])) is None or (
            bundle.place != group.heap[0]
        ):
            heapq.heappop(group.heap)
        is_deferred, rank, order, _ = group.heap[0]
        return is_deferred, rank, self._running.get(group.need.owner_id, 0), order

    def judge(self, now: float = 0.0) -> list[tuple[str, str | None]]:
        """Bundles about which the answer to "can any worker ever run it?" has changed.

        With a sentence when none can, None when one can. While there is no worker at all nothing
        is known and nothing changes. ``now``: as in ``match``.
        """
        is_current = self._is_judged and not self._offers_changed and now <= self._judged_until
        if not self._workers or is_current:
            return []
        changed: dict[Need, str | None] = {}
        for group in self._groups.values():
            if group.judged and not self._offers_changed and now <= group.judged_until:
                continue
            group.judged = True
            offers = [worker.offer for worker in self._workers.values()]
            able = next((offer for offer in offers if _can_ever(group.need, offer, now)), None)
            verdict, group.judged_until = None, math.inf
            if able is None:
                verdict = group.verdict or _why_never(group.need, offers, now)
            elif group.need.time_seconds:
                group.judged_until = able.end - group.need.time_seconds
            if verdict != group.verdict:
                group.verdict = verdict
                changed[group.need] = verdict
        self._offers_changed = False
        self._is_judged = True
        untils = (group.judged_until for group in self._groups.values())
        self._judged_until = min(untils, default=math.inf)
        if not changed:
            return []
        return [
            (uuid, changed[bundle.need])
            for uuid, bundle in self._waiting.items()
            if bundle.need in changed
        ]


def _capacity(offer: Offer) -> tuple[object, ...]:
    return (
        offer.cpus,
        offer.gpus,
        offer.memory_bytes,
        offer.disk_bytes // 1024**3,
        offer.tag,
        offer.tag_exclusive,
        offer.serves,
        offer.end,
    )


def _takes_more(worker: _Worker) -> bool:
    offer = worker.offer
    return offer.accepting and (offer.runs_left is None or offer.runs_left > worker.taken)


def _is_for(need: Need, offer: Offer) -> bool:
    if offer.serves is not None and need.owner_id not in offer.serves:
        return False
    if need.queue:
        return need.queue == offer.tag
    return not (offer.tag_exclusive and offer.tag)


def _lives_long_enough(need: Need, offer: Offer, now: float) -> bool:
    return not need.time_seconds or now + need.time_seconds <= offer.end


def _fits(need: Need, worker: _Worker, now: float) -> bool:
    return (
        _takes_more(worker)
        and worker.has_room(need)
        and _is_for(need, worker.offer)
        and _lives_long_enough(need, worker.offer, now)
    )


def _can_ever(need: Need, offer: Offer, now: float) -> bool:
    return (
        _is_for(need, offer)
        and need.cpus <= offer.cpus
        and need.gpus <= offer.gpus
        and need.memory_bytes <= offer.memory_bytes
        and need.disk_bytes <= offer.disk_bytes
        and _lives_long_enough(need, offer, now)
    )


def _may_be_kept(worker: _Worker, need: Need, now: float) -> bool:
    return _takes_more(worker) and _can_ever(need, worker.offer, now)


def _best(bundle: Waiting, workers: Iterable[_Worker], now: float) -> _Worker | None:
    fitting = (worker for worker in workers if _fits(bundle.need, worker, now))
    return min(fitting, key=lambda worker: _cost(bundle, worker), default=None)


def _cost(bundle: Waiting, worker: _Worker) -> tuple[bool, bool, int, int, int, str]:
    """CodaLab's order: workers kept for this tag first, gpus kept for those who ask, dependencies
    that are there already, then the tightest fit, so that large and idle workers stay free."""
    offer = worker.offer
    return (
        not offer.tag_exclusive,
        bool(offer.gpus) and not bundle.need.gpus,
        -len(bundle.parents & offer.cached),
        offer.cpus - worker.cpus - bundle.need.cpus,
        offer.memory_bytes - worker.memory_bytes,
        offer.worker_id,
    )


def _why_never(need: Need, offers: list[Offer], now: float) -> str:
    """One sentence: which demand no worker meets."""
    able = [offer for offer in offers if _is_for(need, offer)]
    if not able:
        if need.queue:
            return f"No worker can run this: none that you may use has the tag {need.queue!r}."
        return "No worker can run this: there is none that takes your bundles without a tag."
    for asked, most, words in _demands(need, able):
        if asked > most:
            return f"No worker can run this: it asks for {words}."
    if not any(_lives_long_enough(need, offer, now) for offer in able):
        words = f"up to {format_duration(need.time_seconds)} of time, and all of them end sooner"
        return f"No worker can run this: it asks for {words}."
    return "No worker can run this: no single one has all the resources that it asks for."


def _demands(need: Need, offers: list[Offer]) -> Iterator[tuple[int, int, str]]:
    cpus = max(offer.cpus for offer in offers)
    yield need.cpus, cpus, f"{need.cpus} cpus, and the largest worker has {cpus}"
    gpus = max(offer.gpus for offer in offers)
    yield need.gpus, gpus, f"{need.gpus} gpus, and the largest worker has {gpus}"
    memory = max(offer.memory_bytes for offer in offers)
    words = f"{format_size(need.memory_bytes)} of memory"
    yield need.memory_bytes, memory, f"{words}, and the largest worker has {format_size(memory)}"
    disk = max(offer.disk_bytes for offer in offers)
    words = f"{format_size(need.disk_bytes)} of disk"
    yield need.disk_bytes, disk, f"{words}, and no worker has more than {format_size(disk)} free"
