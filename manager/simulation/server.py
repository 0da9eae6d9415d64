"""The server of a simulation: which bundles wait, and which worker takes which.

As the embedded server assigns: to the user with the fewest running, then the oldest bundle; to
the worker that it fits most tightly, then the oldest worker.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from manager.capacity import Need, Offer
from manager.simulation.scenario import BundleScenario


@dataclass(slots=True)
class Bundle:
    """``kind``: its place in the scenario; ``came``: when it was staged for the first time."""

    kind: int
    came: float
    attempts: int = 0
    has_started: bool = False
    is_gone: bool = False


@dataclass(slots=True, eq=False)
class SimulatedWorker:
    """``number``: in the order of all launches. ``offer``: what it has left, None when it takes
    nothing: not yet, or not any more. Times are None for what has not been."""

    number: int
    pool: int
    requested: float
    offer: Offer | None = None
    started: float | None = None
    registered: float | None = None
    ended: float | None = None
    idle_since: float | None = None
    idle_seconds: float = 0.0
    has_run: bool = False
    running: dict[int, Bundle] = field(default_factory=dict)


@dataclass(slots=True)
class _Line:
    """The bundles of one kind that wait, the oldest first; ``gone``: some that were killed are
    still in it."""

    need: Need
    owner: str
    bundles: deque[Bundle] = field(default_factory=deque)
    number: int = 0


class SimulatedServer:
    """``take(worker, bundle)`` is called when a worker is given a bundle."""

    def __init__(
        self, kinds: list[BundleScenario], take: Callable[[SimulatedWorker, Bundle], None]
    ) -> None:
        self._take = take
        self.lines = [_Line(kind.need, kind.owner) for kind in kinds]
        self._running: dict[str, int] = {kind.owner: 0 for kind in kinds}
        self._places: dict[Offer, list[tuple[int, SimulatedWorker]]] = {}
        """The workers of each offer, the oldest on top; some have another by now."""
        self._free: dict[int, dict[Offer, int]] = {}

    @property
    def staged(self) -> int:
        return sum(line.number for line in self.lines)

    def demand(self) -> dict[Need, int]:
        """What waits, by what it asks for."""
        demand: dict[Need, int] = {}
        for line in self.lines:
            if line.number:
                demand[line.need] = demand.get(line.need, 0) + line.number
        return demand

    def free(self, pool: int) -> dict[Offer, int]:
        """The room that the workers of a pool have left."""
        return dict(self._free.get(pool, {}))

    # Bundles

    def stage(self, bundle: Bundle) -> bool:
        """One more bundle; whether it has to wait."""
        line = self.lines[bundle.kind]
        if not line.number:
            worker = self._best(line.need)
            if worker is not None:
                self._give(worker, bundle, line)
                return False
        line.bundles.append(bundle)
        line.number += 1
        return True

    def take_back(self, bundle: Bundle) -> None:
        """One that waits was killed."""
        bundle.is_gone = True
        self.lines[bundle.kind].number -= 1

    def ended(self, worker: SimulatedWorker, bundle: Bundle) -> None:
        """A bundle leaves its worker, which then has room for others."""
        self._running[self.lines[bundle.kind].owner] -= 1

    # Workers

    def offer(self, worker: SimulatedWorker, offer: Offer | None) -> None:
        """A worker has so much room now. It is given what waits and fits."""
        self._set(worker, offer)
        while worker.offer is not None:
            line = self._next(worker.offer)
            if line is None:
                return
            bundle = line.bundles.popleft()
            if bundle.is_gone:
                continue
            line.number -= 1
            self._give(worker, bundle, line)

    def _next(self, offer: Offer) -> _Line | None:
        """Whose bundle comes next of those that fit."""
        best: tuple[int, float] | None = None
        found = None
        for line in self.lines:
            if not line.number or not offer.takes(line.need):
                continue
            while line.bundles[0].is_gone:
                line.bundles.popleft()
            key = (self._running[line.owner], line.bundles[0].came)
            if best is None or key < best:
                best, found = key, line
        return found

    def _give(self, worker: SimulatedWorker, bundle: Bundle, line: _Line) -> None:
        assert worker.offer is not None
        self._running[line.owner] += 1
        self._set(worker, worker.offer.without(line.need, 1))
        self._take(worker, bundle)

    def _set(self, worker: SimulatedWorker, offer: Offer | None) -> None:
        free = self._free.setdefault(worker.pool, {})
        if worker.offer is not None and worker.offer in free:
            free[worker.offer] -= 1
            if not free[worker.offer]:
                del free[worker.offer]
        worker.offer = offer
        if offer is not None and (offer.room.cpus > 0 or offer.room.gpus > 0):
            free[offer] = free.get(offer, 0) + 1
            heapq.heappush(self._places.setdefault(offer, []), (worker.number, worker))

    def _best(self, need: Need) -> SimulatedWorker | None:
        tightest: tuple[bool, bool, int, int] | None = None
        found: list[tuple[int, SimulatedWorker]] | None = None
        for offer, places in list(self._places.items()):
            while places and places[0][1].offer != offer:
                heapq.heappop(places)
            if not places:
                del self._places[offer]
            elif offer.takes(need):
                room = offer.room
                key = (
                    not offer.tag_exclusive,
                    bool(room.gpus) and not need.room.gpus,
                    room.cpus,
                    room.memory_bytes,
                )
                if tightest is None or key < tightest:
                    tightest, found = key, places
        return found[0][1] if found else None
