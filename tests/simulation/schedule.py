"""One schedule: a random history of what goes wrong, and then calm, in which all comes right."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from backends.base import LaunchKey
from bundles.errors import NotAuthenticated
from manager.health import FIRST_QUARANTINE_SECONDS, WASTED_ALLOWED
from manager.loop import Manager
from manager.money import FREE, MINIMUM_SECONDS, Budget, Terms
from manager.observe import START_SECONDS
from simulation.faults import Faults, Killed, Violation
from simulation.server import Server
from simulation.service import Fate, Service, ServiceJob
from simulation.stand import PoolPlan, SimulatedLease, SimulatedLedger, Stand
from simulation.timeline import Timeline

CALM_TICKS = 60
STEP_SECONDS = 15.0
LONGEST_CALM_SECONDS = 300.0


@dataclass
class Account:
    """What a number of schedules did."""

    schedules: int = 0
    ticks: int = 0
    launches: int = 0
    bundles: int = 0
    counted: Counter[str] = field(default_factory=Counter)

    def add(self, other: Account) -> None:
        self.schedules += other.schedules
        self.ticks += other.ticks
        self.launches += other.launches
        self.bundles += other.bundles
        self.counted.update(other.counted)

    def lines(self) -> list[str]:
        """For people."""
        faults = ", ".join(f"{kind} {number}" for kind, number in sorted(self.counted.items()))
        return [
            f"{self.schedules} schedules, {self.ticks} ticks, {self.launches} launches, "
            f"{self.bundles} bundles",
            faults,
        ]


class Schedule:
    """The history that ``chance`` makes, over an emptied ``ledger``."""

    def __init__(self, chance: random.Random, ledger: SimulatedLedger) -> None:
        self.chance = chance
        self.timeline = Timeline()
        self.faults = Faults(chance, self.timeline)
        ledger.begin(self.timeline, self.faults)
        self.is_plain = chance.random() < 0.4
        """Every bundle takes a worker, and there is no minimum: then it is known how many workers
        there should be at any moment."""
        self.shows_workers = self.is_plain or chance.random() < 0.9
        self.server = Server(
            self.timeline,
            self.faults,
            features=frozenset(
                feature
                for feature in ("shapes", "checkout", "tokens", "drain")
                if chance.random() < 0.8
            ),
            shows_workers=self.shows_workers,
            idle_seconds=chance.choice((20.0, 120.0, 600.0)),
            checkin_seconds=chance.choice((0.0, 1.0, 15.0)),
            offline_seconds=chance.choice((60.0, 300.0)),
        )
        self.stand = Stand(ledger, self.timeline, self.faults, self.server)
        self.ledger = ledger
        names = "abc"[: chance.choice((1, 2, 3) if self.is_plain else (1, 1, 1, 2, 2, 3))]
        self.sick = chance.choice(names) if chance.random() < 0.2 else ""
        """A pool none of whose workers can work, until there is calm."""
        self.services = {
            name: Service(
                name,
                self.timeline,
                self.faults,
                self.server,
                partial(self._fate, name),
                self,
                cpus=1 if self.is_plain else chance.choice((1, 2, 4)),
                lag_seconds=chance.choice((0.0, 10.0, 60.0)),
                ended_listed_seconds=(
                    3600.0 if name == self.sick else chance.choice((30.0, 300.0, 3600.0))
                ),
            )
            for name in names
        }
        if chance.random() < 0.3:
            self.stand.lease = SimulatedLease(self.timeline, self.faults)
        self.is_priced = self.is_plain and chance.random() < 0.5
        self.terms = {name: self._terms() if self.is_priced else FREE for name in self.services}
        if self.is_priced and chance.random() < 0.7:
            dearest = max(terms.price_per_hour for terms in self.terms.values())
            self.stand.budget = Budget(per_hour=dearest * chance.choice((1.0, 1.5, 3.0)))
        self.plans: dict[str, PoolPlan] = {}
        self.account = Account(schedules=1, counted=self.faults.counted)
        self.manager: Manager | None = None
        self.quiet_changes = self.quiet_launches = self.quiet_missing = 0
        self.quiet_until = 0.0
        self.reached: set[str] = set()
        """The pools that had their minimum when there was calm."""

    def run(self) -> Account:
        """Raises Violation."""
        chance = self.chance
        self._configure(list(self.services))
        self._stage(chance.randint(1, 6))
        self.faults.level = chance.choice((0.05, 0.2, 0.5))
        self.faults.slowness = chance.choice((0.0, 0.0, 0.05))
        for _ in range(chance.randint(3, 6)):
            self._step()
        self._calm()
        return self.account

    # What happens

    def _step(self) -> None:
        chance = self.chance
        what = chance.random()
        if what < 0.15:
            self._stage(chance.randint(1, 4))
        elif what < 0.4:
            share = 1.0 if self.is_priced else 0.8  # one that is not kept costs what it likes
            names = [name for name in self.services if chance.random() < share]
            chance.shuffle(names)
            self._configure(names)
        elif what < 0.5:
            living = [
                job
                for name, service in self.services.items()
                for job in service.living()
                if name != self.sick
            ]
            if living:
                job = chance.choice(living)
                self.services[job.key.pool].preempt(job)
        if chance.random() < 0.25:
            self.faults.kill_after(chance.randint(1, 24))
        self._tick()
        self.faults.kill_after(None)
        self.timeline.advance(chance.choice((0.0, 1.0, 5.0, 5.0, 20.0, 70.0, 400.0)))

    def _stage(self, number: int) -> None:
        largest = max(service.cpus for service in self.services.values())
        for _ in range(number):
            cpus = self.chance.randint(1, largest)
            self.server.stage(cpus, self.chance.choice((1.0, 20.0, 120.0)))
        self.account.bundles += number

    def _configure(self, names: list[str]) -> None:
        """Other limits for these pools, in this order; no others are kept."""
        chance = self.chance
        self.plans = {}
        for name in names:
            high = chance.choice((1, 1, 2, 3, 5))
            self.plans[name] = PoolPlan(
                0 if self.is_plain else chance.choice((0, 0, 1, high)),
                high,
                chance.choice((0.0, 0.0, 0.0, 30.0)),
                chance.choice((None, None, 2)),
                None if self.is_plain else chance.choice((None, 120.0)),
                chance.choice((60.0, 3600.0)),
                self.terms[name],
            )
        self.timeline.changes += 1
        self.timeline.tell("configured:", self.plans)
        for name, service in self.services.items():
            service.maximum = self.plans[name].high if name in self.plans else 0
        if self.manager is None:
            return
        if chance.random() < 0.5:
            self.manager = None
        else:
            try:
                self.stand.reload(self.manager, self.services, self.plans)
            except sqlite3.Error:
                self.manager = None

    def _terms(self) -> Terms:
        price = self.chance.choice((0.5, 1.0, 3.0))
        if self.chance.random() < 0.3:
            return Terms(price)
        return Terms(price, Budget(per_hour=price * self.chance.choice((1.0, 2.0, 3.5))))

    def _fate(self, pool: str) -> Fate:
        chance = self.chance
        if not self.faults.level:
            return Fate(5.0, 5.0)
        if pool == self.sick:
            if self.shows_workers and chance.random() < 0.5:
                return Fate(0.0, None)  # otherwise nobody knows that it has not come
            return Fate(chance.choice((0.0, 3.0)), None, 1.0, chance.choice((1, 3, 9, 127, 137)))
        starts = chance.choice((0.0, 0.0, 3.0, 30.0, 300.0, None))
        registers = chance.choice((0.0, 2.0, 2.0, 40.0, 90.0, None))
        ending = chance.choice((0.0, 0.0, 10.0, 90.0))
        ill = chance.random()
        if ill < 0.1:
            return Fate(starts, None, 1.0, chance.choice((1, 2, 3, 4, 5, 9, 10, 127, 137)), ending)
        if ill < 0.2:
            return Fate(starts, registers, chance.uniform(1.0, 300.0), None, ending)
        return Fate(starts, registers, None, None, ending, chance.random() < 0.2)

    def _tick(self) -> None:
        self.account.ticks += 1
        self.timeline.tell("tick")
        for service in self.services.values():
            service.begin_tick()
        self.server.shown_staged, self.server.shown_idle = 0, frozenset()
        try:
            if self.manager is None:
                self.manager = self.stand.manager(self.services, self.plans)
            self.manager._guarded_tick()
        except (Killed, NotAuthenticated, sqlite3.Error):
            self.manager = None

    # What may be done

    def asked(self) -> None:
        if self.stand.lease is not None and not self.stand.lease.is_ours:
            raise Violation("something was launched or ended without the lease")

    def accepted(self, job: ServiceJob) -> None:
        self.account.launches += 1
        if job.key.pool == self.sick and self.faults.level:
            self._waste(job)
        if self.is_priced:
            self._check_budgets()
        if self.is_plain:
            coming, needed = self._coming(), self.server.shown_staged
        elif self.shows_workers:
            coming, needed = self._count_quietly(job)
        else:
            return  # a worker that is just starting is taken for one that has come
        if coming > needed:
            raise Violation(f"{job.key} makes {coming} on their way, {needed} are needed")

    def listed(self) -> None:
        if self.stand.lease is not None:
            self.stand.lease.may_be_lost()

    def _check_budgets(self) -> None:
        """Nobody's hour may cost more than is budgeted, this one nor the next, if every worker
        stays."""
        now = self.timeline.now
        hour = now // 3600 * 3600
        spent: dict[str, float] = {}
        staying: dict[str, float] = {}
        for name, service in self.services.items():
            price = self.terms[name].price_per_hour / 3600
            living = len(service.living())
            spent[name] = price * living * (hour + 3600 - now)
            spent[name] += price * sum(_seconds(job, hour, now) for job in service.jobs.values())
            staying[name] = price * living * 3600
            _check_budget(name, max(spent[name], staying[name]), self.terms[name].budget)
        together = max(sum(spent.values()), sum(staying.values()))
        _check_budget("the set", together, self.stand.budget)

    def _waste(self, job: ServiceJob) -> None:
        """Of a pool whose workers do nothing only so many are launched, and then probes."""
        wasted = [one for one in self.services[self.sick].jobs.values() if not one.asked_to_end]
        if len(wasted) > WASTED_ALLOWED:
            pause = job.created - wasted[-2].created
            if pause < FIRST_QUARANTINE_SECONDS:
                raise Violation(f"{job.key} is wasted {pause} s after the last of {len(wasted)}")

    def _coming(self) -> int:
        """How many workers are on their way and to stay, in the pools that are kept."""
        coming = 0
        for name, plan in self.plans.items():
            draining = self._draining(name)
            staying = [
                job
                for job in self.services[name].living()
                if not job.asked_to_end and job.key not in draining
            ]
            here = sum(
                job.worker is None and self.timeline.now - job.created < START_SECONDS
                for job in staying
            )
            come = sum(job.worker is not None for job in staying)
            coming += min(here, max(0, plan.high - come))
        return coming

    def _count_quietly(self, job: ServiceJob) -> tuple[int, int]:
        """The launches of a time in which nothing changes and no worker is late, and how many may
        be needed at most."""
        timeline = self.timeline
        if timeline.changes != self.quiet_changes or timeline.now >= self.quiet_until:
            self.quiet_changes = timeline.changes
            self.quiet_until = timeline.now + START_SECONDS
            self.quiet_launches = 0
            self.quiet_missing = self._missing(job)
        self.quiet_launches += 1
        # One tells of each pool that starts slowly whether it is faster again.
        slow = sum(plan.patience_seconds is not None for plan in self.plans.values())
        return self.quiet_launches, self.quiet_missing + self.server.shown_staged + slow

    def _draining(self, pool: str) -> set[LaunchKey]:
        return {one.key for one in self.ledger.running(pool) if one.draining is not None}

    def _missing(self, new: ServiceJob) -> int:
        """How many workers the pools had less than their minimum before this one."""
        missing = 0
        for name, plan in self.plans.items():
            draining = self._draining(name)
            staying = sum(
                not job.asked_to_end and job is not new and job.key not in draining
                for job in self.services[name].living()
            )
            missing += max(0, plan.low - staying)
        return missing

    def ended_busy(self, job: ServiceJob) -> None:
        if str(job.key) in self.server.shown_idle:
            return
        launch = self.ledger.launch(job.key)
        plan = self.plans.get(job.key.pool)
        since = None if launch is None else launch.draining
        grace = 60.0 if plan is None else plan.drain_grace_seconds
        if since is None or self.timeline.now - since < grace:
            raise Violation(f"{job.key} has bundles and is ended")

    # In the end

    def _calm(self) -> None:
        self.faults.level = 0.0
        if not self.plans.keys() >= self.services.keys():
            self._configure(list(self.services))
        for service in self.services.values():
            service.calm(registers=not self.shows_workers)
        pause = STEP_SECONDS
        wrong = ""
        self.reached.clear()
        for _ in range(CALM_TICKS):
            launches = self.account.launches
            self._tick()
            wrong = self._wrong()
            if not wrong:
                return
            # What was launched is looked at before it can have come and gone.
            is_new = self.account.launches > launches
            pause = STEP_SECONDS if is_new else min(2 * pause, LONGEST_CALM_SECONDS)
            self.timeline.advance(pause)
        raise Violation(f"in the end: {wrong}")

    def _is_listed(self, key: LaunchKey) -> bool:
        """Whether every list has it by now, as long as it has any ended one."""
        service = self.services[key.pool]
        job = service.jobs.get(key)
        lag_seconds = service.capabilities.listing_lag_seconds
        return job is None or self.timeline.now - job.created >= lag_seconds

    def _wrong(self) -> str:
        """What has not come right yet, "" when all has."""
        if self.server.undone:
            return f"{self.server.undone} bundles are not done"
        for name, plan in self.plans.items():
            living = {job.key for job in self.services[name].living()}
            if len(living) >= plan.low:
                self.reached.add(name)  # once: workers that are idle leave, and others come
            if name not in self.reached or len(living) > plan.high:
                return f"{name} has {len(living)} workers of {plan.low} to {plan.high}"
            if self.ledger.unsettled(name):
                return f"the ledger has open intents of {name}"
            running = {launch.key for launch in self.ledger.running(name)}
            if living - running:
                return f"the ledger does not know {', '.join(map(str, living - running))}"
            unseen = [key for key in running - living if self._is_listed(key)]
            if unseen:
                return f"the ledger has not seen {', '.join(map(str, unseen))} end"
        return ""


def _seconds(job: ServiceJob, hour: float, now: float) -> float:
    """How much of an hour that has begun a job has cost."""
    if job.started is None:
        return 0.0
    ended = now if job.ended is None else max(job.ended, job.started + MINIMUM_SECONDS)
    return max(0.0, ended - max(job.started, hour))


def _check_budget(whose: str, amount: float, budget: Budget) -> None:
    if budget.per_hour is not None and amount > budget.per_hour * (1 + 1e-9):
        raise Violation(f"{whose} may spend {amount} of {budget.per_hour} in an hour")
