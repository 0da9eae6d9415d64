"""The manager of a simulation: sees what a manager would see, and asks the real rules what to do.

Nothing is decided here. `look` stands for one tick of `manager.loop`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from statistics import median

from manager.capacity import Demand, Offer, total
from manager.health import judge
from manager.loop import SETTLE_SECONDS
from manager.money import Account, Purse
from manager.observe import START_SECONDS, STARTS_REMEMBERED
from manager.policy import surplus
from manager.sharing import Allow, decide_set
from manager.simulation.agenda import Agenda
from manager.simulation.scenario import Scenario
from manager.simulation.server import SimulatedServer, SimulatedWorker
from manager.simulation.service import SimulatedService
from manager.snapshot import Snapshot

NEWS_SECONDS = 1.0
"""News of staged bundles that come one after another make one tick in so long."""


class SimulatedManager:
    """Looks again every ``sleep-time`` while something may change, and at news of the queue."""

    def __init__(
        self,
        scenario: Scenario,
        agenda: Agenda,
        server: SimulatedServer,
        services: list[SimulatedService],
        account: Callable[[int], Account],
    ) -> None:
        self._scenario = scenario
        self._agenda = agenda
        self._server = server
        self._services = services
        self._account = account
        self._configs = {pool.name: pool.config for pool in scenario.pools}
        self._has_budget = bool(
            scenario.purse[0] or any(pool.terms.budget for pool in scenario.pools)
        )
        self._surplus_since: dict[str, float | None] = dict.fromkeys(self._configs)
        self._last_launch: dict[str, float | None] = dict.fromkeys(self._configs)
        self._seen: deque[tuple[float, Demand]] = deque()
        self._due = math.inf
        self._before = self._last = -math.inf
        self.ticks = 0
        self.peak = 0

    # When

    def start(self) -> None:
        self._look_at(self._agenda.now)

    def heard(self) -> None:
        """A bundle waits."""
        if self._scenario.is_told:
            soon = max(self._agenda.now + SETTLE_SECONDS, self._last + NEWS_SECONDS)
            self._look_at(soon)
        else:
            self.changed()

    def changed(self) -> None:
        """Something is not as it was at the last look."""
        self._look_at(max(self._agenda.now, self._last + self._scenario.sleep_time))

    def _look_at(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self._agenda.at(when, self._look, when)

    def _look(self, when: float) -> None:
        if when != self._due:
            return  # there was an earlier one
        self._due = math.inf
        self._before, self._last = self._last, self._agenda.now
        self.ticks += 1
        if self._tick():
            self.changed()

    # What

    def _tick(self) -> bool:
        """Whether the next look may see something else although nothing happens."""
        now = self._agenda.now
        demand = self._demand(now)
        snapshots = {
            service.scenario.name: self._snapshot(index, demand, now)
            for index, service in enumerate(self._services)
        }
        allow = self._allowed(now)
        shares = decide_set(demand, snapshots, self._configs, now, allow=allow)
        is_waiting = bool(demand) or self._server.staged > 0
        for service in self._services:
            name = service.scenario.name
            decision, snapshot = shares[name].decision, shares[name].snapshot
            assert decision is not None
            self._remember_surplus(name, snapshot, now)
            for number in decision.end:
                service.withdraw(int(number))
            launched = 0
            if decision.launch:
                self._last_launch[name] = now
                launched = service.launch(decision.launch)
            is_waiting = is_waiting or bool(decision.launch) or snapshot.pending > 0
            snapshots[name] = replace(
                snapshots[name],
                pending=snapshots[name].pending + launched,
                held_until=math.inf,
                hold_reason="launched in this tick",
            )
            if launched < decision.launch:
                allow = self._allowed(now)
                shares = decide_set(demand, snapshots, self._configs, now, allow=allow)
        self.peak = max(self.peak, sum(service.living for service in self._services))
        return is_waiting or any(
            reason.held and reason.code in ("held", "probation", "slow_start", "budget")
            for share in shares.values()
            if share.decision is not None
            for reason in share.decision.reasons
        )

    def _demand(self, now: float) -> Demand:
        """The queue as old as the scenario wants it."""
        demand = self._server.demand()
        age = self._scenario.queue_age_seconds
        if not age:
            return demand
        self._seen.append((now, demand))
        while len(self._seen) > 1 and self._seen[1][0] <= now - age:
            self._seen.popleft()
        when, seen = self._seen[0]
        return seen if when <= now - age else {}

    def _allowed(self, now: float) -> Allow | None:
        if not self._has_budget:
            return None
        budget, soft_fraction = self._scenario.purse
        accounts = {
            service.scenario.name: self._account(index)
            for index, service in enumerate(self._services)
        }
        return Purse(accounts, now, budget, soft_fraction).allowance

    def _remember_surplus(self, name: str, snapshot: Snapshot, now: float) -> None:
        if not surplus(snapshot, self._configs[name]):
            self._surplus_since[name] = None
        elif self._surplus_since[name] is None:
            self._surplus_since[name] = now

    def _settling(self, service: SimulatedService, now: float) -> list[SimulatedWorker]:
        """Those that came since the last look, or since the queue was as it is seen."""
        since = min(self._before, now - self._scenario.queue_age_seconds)
        found = []
        for worker in reversed(service.active.values()):  # in the order in which they came
            if worker.registered is None or worker.registered <= since:
                break
            found.append(worker)
        return found

    def _free(self, index: int, settling: list[SimulatedWorker]) -> dict[Offer, int]:
        free = self._server.free(index)
        for worker in settling:
            if worker.offer in free:
                free[worker.offer] -= 1
        return {offer: number for offer, number in free.items() if number}

    def _snapshot(self, index: int, demand: Demand, now: float) -> Snapshot:
        service = self._services[index]
        scenario = service.scenario
        young = sum(
            now - (worker.started or 0.0) < START_SECONDS for worker in service.starting.values()
        )
        pending = len(service.waiting) + young
        settling = self._settling(service, now)
        unfit = total({n: k for n, k in demand.items() if not scenario.shape.takes(n)})
        snapshot = Snapshot(
            demand=demand,
            unfit=unfit,
            pending=pending,
            active=service.living - pending,
            free=self._free(index, settling),
            settling=len(settling),
            withdrawable=tuple(map(str, reversed(service.waiting))),
            last_launch=self._last_launch[scenario.name],
            surplus_since=self._surplus_since[scenario.name],
            impatient=_impatient(service, now),
            start_seconds=_start_seconds(service.started_lately),
        )
        return judge(service.record(), now).on(snapshot)


def _impatient(service: SimulatedService, now: float) -> int:
    patience_seconds = service.scenario.patience_seconds
    if patience_seconds is None:
        return 0
    # Both are in the order of their launches: the old ones come first.
    old = 0
    for workers in (service.waiting, service.starting):
        for worker in workers.values():
            if now - worker.requested <= patience_seconds:
                break
            old += 1
    return old


def _start_seconds(lately: deque[SimulatedWorker]) -> float | None:
    lasted = [worker.started - worker.requested for worker in lately if worker.started is not None]
    return median(islice(lasted, STARTS_REMEMBERED)) if lasted else None
