"""The compute service of a simulated pool: it starts machines, late or never, and takes them back.

It knows launches and workers, and nothing of bundles.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random

from backends.base import EndCause, LaunchKey
from bundles.exits import WorkerExit
from manager.ledger import Launch, Outcome, PoolRecord
from manager.observe import RECENT_LAUNCHES, STARTS_REMEMBERED
from manager.simulation.agenda import Agenda
from manager.simulation.chance import draw
from manager.simulation.scenario import PoolScenario
from manager.simulation.server import SimulatedWorker

PREEMPTED, DIED = EndCause.PREEMPTED, EndCause.FAILED


class SimulatedService:
    """``register(worker)`` is called when a worker is there, ``lose(worker)`` when its machine
    goes although it did not leave, ``changed()`` when the list of jobs is another."""

    def __init__(
        self,
        index: int,
        scenario: PoolScenario,
        agenda: Agenda,
        dice: Random,
        numbers: count[int],
        register: Callable[[SimulatedWorker], None],
        lose: Callable[[SimulatedWorker, EndCause], None],
        changed: Callable[[], None],
    ) -> None:
        self.scenario = scenario
        self._index = index
        self._agenda = agenda
        self._dice = dice
        self._numbers = numbers
        self._register, self._lose, self._changed = register, lose, changed
        self._begin = agenda.now
        self._sequence = 0
        self.waiting: dict[int, SimulatedWorker] = {}
        """Launched, and without a machine yet."""
        self.starting: dict[int, SimulatedWorker] = {}
        """Their machine runs, and they have not come yet."""
        self.active: dict[int, SimulatedWorker] = {}
        self.launches: dict[int, Launch] = {}
        """The last ones, by the number of their worker or, refused, by a negative one."""
        self.ended: list[SimulatedWorker] = []
        self.launched = self.refused = self.withdrawn = 0
        self.preempted = self.died = self.peak = 0
        self.started_lately: deque[SimulatedWorker] = deque(maxlen=STARTS_REMEMBERED)
        self._accepted: float | None = None
        self._proven: float | None = None
        self._ready: list[tuple[int, SimulatedWorker]] = []
        """Those whose time to start has come, and that wait for a machine."""
        for _, until in scenario.stock_outs:
            agenda.at(self._begin + until, self._use_capacity)

    @property
    def living(self) -> int:
        return len(self.waiting) + len(self.starting) + len(self.active)

    def record(self) -> PoolRecord:
        """What a ledger would tell of the pool."""
        fates = [self._as_known(number) for number in reversed(self.launches)]
        return PoolRecord(
            fates=tuple(fate for fate in fates if fate is not None),
            in_doubt=len(self.waiting) + len(self.starting),
            accepted=self._accepted,
            proven=self._proven,
        )

    def _as_known(self, number: int) -> Launch | None:
        launch, worker = self.launches[number], self.active.get(number)
        if worker is None:
            is_over = launch.ended is not None or launch.outcome is Outcome.REFUSED
            return launch if is_over else None
        first_bundle = worker.registered if worker.has_run else None
        return replace(launch, registered=worker.registered, first_bundle=first_bundle)

    def is_out_of_stock(self) -> bool:
        elapsed = self._agenda.now - self._begin
        return any(since <= elapsed < until for since, until in self.scenario.stock_outs)

    def _has_machine(self) -> bool:
        capacity = self.scenario.capacity
        used = len(self.starting) + len(self.active)
        return not self.is_out_of_stock() and (capacity is None or used < capacity)

    # Asked of it

    def launch(self, number: int) -> int:
        """Ask for workers; how many were accepted."""
        accepted = 0
        for _ in range(number):
            self._sequence += 1
            error = self._refusal(accepted)
            worker_number = next(self._numbers)
            self._note(worker_number, error)
            if error:
                self.refused += 1
                continue
            accepted += 1
            worker = SimulatedWorker(worker_number, self._index, self._agenda.now)
            self.waiting[worker.number] = worker
            wait_seconds = draw(self.scenario.start_seconds, self._dice)
            self._agenda.at(self._agenda.now + wait_seconds, self._machine_due, worker)
        self.launched += accepted
        self.peak = max(self.peak, self.living)
        return accepted

    def _refusal(self, accepted: int) -> str:
        if self.scenario.refuses:
            capacity = self.scenario.capacity
            if self.is_out_of_stock():
                return "OutOfCapacity"
            if capacity is not None and self.living >= capacity:
                return "OutOfCapacity"
        if self._dice.random() < self.scenario.launch_failures:
            return "Throttled"
        return ""

    def _note(self, worker_number: int, error: str) -> None:
        self.launches[worker_number] = Launch(
            key=LaunchKey(self.scenario.name, self._sequence, "00000000"),
            requested=self._agenda.now,
            outcome=Outcome.REFUSED if error else Outcome.LAUNCHED,
            error=error or None,
            error_kind=error or None,
            settled=self._agenda.now,
        )
        if not error:
            self._accepted = self._agenda.now
        while len(self.launches) > RECENT_LAUNCHES:
            del self.launches[next(iter(self.launches))]

    def withdraw(self, number: int) -> None:
        """End a worker that has no machine yet."""
        worker = self.waiting.pop(number, None)
        if worker is not None:
            self.withdrawn += 1
            self._end(worker, EndCause.KILLED_BY_US, None)

    def leave(self, worker: SimulatedWorker, exit_code: int | None, cause: EndCause) -> None:
        """A worker is gone, by itself or with its machine."""
        del self.active[worker.number]
        self.preempted += cause is PREEMPTED
        self.died += cause is DIED
        self._end(worker, cause, exit_code)
        self._use_capacity()

    def _end(self, worker: SimulatedWorker, cause: EndCause, exit_code: int | None) -> None:
        worker.ended = self._agenda.now
        self.ended.append(worker)
        launch = self.launches.get(worker.number)
        if launch is not None:
            self.launches[worker.number] = Launch(
                key=launch.key,
                requested=launch.requested,
                outcome=launch.outcome,
                ended=self._agenda.now,
                exit_code=exit_code,
                cause=cause,
                why=str(cause),
                started=worker.started,
                registered=worker.registered,
                first_bundle=worker.registered if worker.has_run else None,
            )
        self._changed()

    # By itself

    def _machine_due(self, worker: SimulatedWorker) -> None:
        if worker.number in self.waiting:
            heapq.heappush(self._ready, (worker.number, worker))
            self._use_capacity()

    def _use_capacity(self) -> None:
        while self._ready and self._has_machine():
            _, worker = heapq.heappop(self._ready)
            if self.waiting.pop(worker.number, None) is None:
                continue
            worker.started = self._agenda.now
            self.starting[worker.number] = worker
            self.started_lately.appendleft(worker)
            wait_seconds = draw(self.scenario.registration_seconds, self._dice)
            self._agenda.at(self._agenda.now + wait_seconds, self._worker_due, worker)
            if self.scenario.preemptions_per_hour:
                life_seconds = self._dice.expovariate(self.scenario.preemptions_per_hour / 3600)
                self._agenda.at(self._agenda.now + life_seconds, self._preempt, worker)
            self._changed()

    def _worker_due(self, worker: SimulatedWorker) -> None:
        if self.starting.pop(worker.number, None) is None:
            return
        self.active[worker.number] = worker
        if self._dice.random() < self.scenario.bad_starts:
            self.leave(worker, WorkerExit.UNUSABLE, DIED)
            return
        worker.registered = worker.idle_since = self._proven = self._agenda.now
        self._changed()
        self._register(worker)

    def _preempt(self, worker: SimulatedWorker) -> None:
        if self.starting.pop(worker.number, None) is not None:
            self.active[worker.number] = worker
            self.leave(worker, WorkerExit.PREEMPTED, PREEMPTED)
        elif worker.number in self.active:
            self._lose(worker, PREEMPTED)
