"""Puts a scenario's server, services and manager on one clock, lets it run, and reports.

`simulate` is all that others need.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from random import Random

from backends.base import EndCause
from bundles.exits import WorkerExit
from manager.money import MINIMUM_SECONDS, Account, Book
from manager.simulation.agenda import Agenda
from manager.simulation.arrivals import Arrival
from manager.simulation.chance import draw
from manager.simulation.operator import SimulatedManager
from manager.simulation.report import Moment, PoolReport, Report, percentiles
from manager.simulation.scenario import Scenario
from manager.simulation.server import Bundle, SimulatedServer, SimulatedWorker
from manager.simulation.service import SimulatedService

MOMENTS = 480
KILLED_BY_MEMORY = 137


def simulate(scenario: Scenario) -> Report:
    """The same scenario gives the same report, each time."""
    return _World(scenario).run()


class _World:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        # The first of a month with 31 days, in the past: budgets see whole windows.
        midnight = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
        self._begin = midnight + scenario.starts_at_hour * 3600
        self._agenda = Agenda(self._begin)
        seeds = Random(scenario.seed)
        self._dice = Random(seeds.random())
        self._server = SimulatedServer(scenario.bundles, self._taken)
        numbers = count(1)
        self._services = [
            SimulatedService(
                index=index,
                scenario=pool,
                agenda=self._agenda,
                dice=Random(seeds.random()),
                numbers=numbers,
                register=self._registered,
                lose=self._lost,
                changed=self._changed,
            )
            for index, pool in enumerate(scenario.pools)
        ]
        self._books = [Book(self._begin) for _ in scenario.pools]
        self._booked = [0 for _ in scenario.pools]
        self._cost = [0.0 for _ in scenario.pools]
        self._manager = SimulatedManager(
            scenario, self._agenda, self._server, self._services, self._account
        )
        self._shapes = [pool.shape for pool in scenario.pools]
        self._runs = count(1)
        self._waited = array("d")
        self._running = self._came = self._done = self._failed = 0
        self._taken_back = self._restarts = 0
        self._moments: list[Moment] = []
        self._coming = len(scenario.bundles)
        """Kinds of which there will be more."""
        self._dice_of_kind = [Random(seeds.random()) for _ in scenario.bundles]

    def run(self) -> Report:
        scenario, agenda = self._scenario, self._agenda
        for kind, bundles in enumerate(scenario.bundles):
            arrivals = bundles.arrivals.arrivals(self._dice_of_kind[kind])
            self._expect(kind, arrivals)
        self._manager.start()
        agenda.at(self._begin, self._look)
        agenda.run(self._begin + scenario.duration_seconds + scenario.after_seconds, self._is_over)
        return self._report()

    def _is_over(self) -> bool:
        if self._coming or self._running:
            return False
        minimum = sum(pool.min_workers for pool in self._scenario.pools)
        living = sum(service.living for service in self._services)
        return not self._server.staged and living <= minimum

    # Bundles

    def _expect(self, kind: int, arrivals: Iterator[Arrival]) -> None:
        for when, number in arrivals:
            if when >= self._scenario.duration_seconds:
                break
            self._agenda.at(self._begin + when, self._come, kind, number, arrivals)
            return
        self._coming -= 1

    def _come(self, kind: int, number: int, arrivals: Iterator[Arrival]) -> None:
        now = self._agenda.now
        self._came += number
        patience = self._scenario.bundles[kind].taken_back_seconds
        waits = False
        for _ in range(number):
            bundle = Bundle(kind, now)
            if self._server.stage(bundle):
                waits = True
                if patience is not None:
                    self._agenda.at(now + draw(patience, self._dice), self._take_back, bundle)
        if waits:
            self._manager.heard()
        self._expect(kind, arrivals)

    def _take_back(self, bundle: Bundle) -> None:
        if not bundle.has_started:
            self._server.take_back(bundle)
            self._taken_back += 1
            self._manager.changed()

    def _taken(self, worker: SimulatedWorker, bundle: Bundle) -> None:
        """A worker is given a bundle."""
        now = self._agenda.now
        if not bundle.has_started:
            bundle.has_started = True
            self._waited.append(now - bundle.came)
        if worker.idle_since is not None:
            worker.idle_seconds += now - worker.idle_since
            worker.idle_since = None
        worker.has_run = True
        self._running += 1
        run = next(self._runs)
        worker.running[run] = bundle
        seconds = draw(self._scenario.bundles[bundle.kind].run_seconds, self._dice)
        self._agenda.at(now + seconds, self._run_over, worker, run)

    def _run_over(self, worker: SimulatedWorker, run: int) -> None:
        bundle = worker.running.get(run)
        if bundle is None:
            return  # its worker was lost meanwhile
        scenario = self._scenario.bundles[bundle.kind]
        if scenario.kills_worker:
            self._lost(worker, EndCause.FAILED)
            return
        del worker.running[run]
        self._running -= 1
        self._done += 1
        self._server.ended(worker, bundle)
        assert worker.offer is not None
        room = scenario.need.room
        offer = worker.offer
        self._server.offer(worker, offer._replace(room=offer.room.less(room, -1)))
        if not worker.running:
            self._idle(worker)

    # Workers

    def _changed(self) -> None:
        self._manager.changed()

    def _registered(self, worker: SimulatedWorker) -> None:
        self._server.offer(worker, self._shapes[worker.pool])
        if not worker.running:
            self._idle(worker)

    def _idle(self, worker: SimulatedWorker) -> None:
        now = self._agenda.now
        worker.idle_since = now
        patience = self._scenario.pools[worker.pool].worker_idle_seconds
        self._agenda.at(now + patience, self._bored, worker, now)

    def _bored(self, worker: SimulatedWorker, since: float) -> None:
        if worker.idle_since == since and worker.ended is None:
            self._leave(worker, WorkerExit.FINISHED, EndCause.FINISHED)

    def _lost(self, worker: SimulatedWorker, cause: EndCause) -> None:
        """Its machine is gone: what it ran waits again."""
        lost = list(worker.running.values())
        worker.running.clear()
        self._leave(worker, KILLED_BY_MEMORY if cause is EndCause.FAILED else None, cause)
        waits = False
        for bundle in lost:
            self._running -= 1
            self._server.ended(worker, bundle)
            bundle.attempts += 1
            scenario = self._scenario.bundles[bundle.kind]
            if scenario.kills_worker and bundle.attempts >= scenario.attempts:
                self._failed += 1
                continue
            self._restarts += 1
            waits = self._server.stage(bundle) or waits
        if waits:
            self._manager.heard()

    def _leave(self, worker: SimulatedWorker, exit_code: int | None, cause: EndCause) -> None:
        if worker.idle_since is not None:
            worker.idle_seconds += self._agenda.now - worker.idle_since
            worker.idle_since = None
        self._server.offer(worker, None)
        self._services[worker.pool].leave(worker, exit_code, cause)

    # Money

    def _account(self, index: int) -> Account:
        self._book(index)
        service = self._services[index]
        living: list[float | None] = [None] * len(service.waiting)
        living += [worker.started for worker in service.starting.values()]
        living += [worker.started for worker in service.active.values()]
        return self._books[index].account(
            self._scenario.pools[index].terms, living, self._agenda.now
        )

    def _book(self, index: int) -> None:
        """Enter those that ended since the last time."""
        ended = self._services[index].ended
        price = self._scenario.pools[index].price_per_hour / 3600
        for worker in ended[self._booked[index] :]:
            if worker.started is not None and worker.ended is not None:
                until = max(worker.ended, worker.started + MINIMUM_SECONDS)
                self._books[index].enter(worker.started, until)
                self._cost[index] += (until - worker.started) * price
        self._booked[index] = len(ended)

    # Looking on

    def _look(self) -> None:
        now = self._agenda.now
        cost = 0.0
        active = []
        for index, service in enumerate(self._services):
            self._book(index)
            price = self._scenario.pools[index].price_per_hour / 3600
            cost += self._cost[index]
            for workers in (service.starting, service.active):
                cost += sum(now - (w.started or now) for w in workers.values()) * price
            active.append(len(service.starting) + len(service.active))
        self._moments.append(
            Moment(
                seconds=now - self._begin,
                staged=self._server.staged,
                running=self._running,
                pending=sum(len(service.waiting) for service in self._services),
                active=tuple(active),
                cost=round(cost, 6),
            )
        )
        self._agenda.at(now + self._scenario.duration_seconds / MOMENTS, self._look)

    def _report(self) -> Report:
        now = self._agenda.now
        self._look()
        pools = {
            pool.name: self._pool_report(index, now)
            for index, pool in enumerate(self._scenario.pools)
        }
        return Report(
            description=self._scenario.description,
            seconds=now - self._begin,
            ticks=self._manager.ticks,
            came=self._came,
            done=self._done,
            failed=self._failed,
            taken_back=self._taken_back,
            left=self._server.staged + self._running,
            restarts=self._restarts,
            waiting_seconds=percentiles(sorted(self._waited)),
            peak=self._manager.peak,
            pools=pools,
            moments=tuple(self._moments),
        )

    def _pool_report(self, index: int, now: float) -> PoolReport:
        service = self._services[index]
        living = [*service.starting.values(), *service.active.values()]
        started = [w for w in service.ended if w.started is not None] + living
        worker_seconds = sum(
            (now if w.ended is None else w.ended) - w.started
            for w in started
            if w.started is not None
        )
        idle_seconds = sum(w.idle_seconds for w in started)
        idle_seconds += sum(now - w.idle_since for w in living if w.idle_since is not None)
        price = self._scenario.pools[index].price_per_hour / 3600
        cost = self._cost[index] + price * sum(now - (w.started or now) for w in living)
        return PoolReport(
            launched=service.launched,
            refused=service.refused,
            withdrawn=service.withdrawn,
            workers=len(started),
            ran_nothing=sum(not w.has_run for w in started if w.ended is not None),
            preempted=service.preempted,
            died=service.died,
            peak=service.peak,
            worker_seconds=worker_seconds,
            idle_seconds=idle_seconds,
            cost=cost,
        )
