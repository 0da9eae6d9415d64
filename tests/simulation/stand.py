"""The real manager over the simulated world: made, killed, and made again over the same ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from backends.base import Backend, BackendError, JobResources
from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import Alarm
from manager.command import WorkerOptions
from manager.feed import ChangeFeed
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.launcher import Launcher
from manager.lease import Lease, LeasedBackend, LeaseLost
from manager.ledger import Ledger, Pool
from manager.listing import Listed, Lister
from manager.loop import Manager
from manager.money import FREE, NO_BUDGET, Terms
from manager.observe import Observer
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.staged import StagedBundles
from simulation.faults import Faults
from simulation.server import MEMORY_BYTES, Server
from simulation.service import Service
from simulation.timeline import Timeline

logging.getLogger("manager").setLevel(logging.CRITICAL)

_ALARM = Alarm()


class SimulatedLedger(Ledger):
    """The real one in memory, which outlives its managers and is emptied for each schedule."""

    def __init__(self) -> None:
        self.faults: Faults | None = None
        super().__init__(Path(":memory:"))

    def begin(self, timeline: Timeline, faults: Faults) -> None:
        self._clock = timeline.clock
        self.faults = faults
        self._database.execute("DELETE FROM launch")
        self._database.execute("DELETE FROM pool")

    def _transaction(self) -> Any:
        transaction = super()._transaction()
        return transaction if self.faults is None else _Hooked(transaction, self.faults)


class _Hooked:
    """A transaction before, in and after which the manager may die, or find the disk full."""

    def __init__(self, transaction: Any, faults: Faults) -> None:
        self._transaction = transaction
        self._faults = faults

    def __enter__(self) -> None:
        self._faults.point()
        self._transaction.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            try:
                self._faults.point()
                self._faults.strike_ledger()
            except BaseException as error:
                self._transaction.__exit__(type(error), error, None)
                raise
        self._transaction.__exit__(kind, *rest)
        if kind is None:
            self._faults.point()


class SimulatedJournal(Journal):
    """Keeps nothing but the story; the disk may be full."""

    def __init__(self, timeline: Timeline, faults: Faults) -> None:
        self._timeline = timeline
        self._faults = faults

    def write(
        self,
        now: float,
        snapshot: Mapping[str, Any] | None,
        decision: Mapping[str, Any] | None,
        results: Sequence[Mapping[str, Any]] = (),
        *,
        config: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> bool:
        self._faults.point()
        if self._faults.strike("journal", ("disk full",)):
            raise OSError("no space left on device")
        if self._timeline.story is not None:
            self._timeline.tell(error or _summary(snapshot or {}, decision or {}))
        return True


def _summary(snapshot: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    seen = {name: value for name, value in snapshot.items() if value}
    held = [reason["code"] for reason in decision["reasons"] if reason["held"]]
    done = {name: decision[name] for name in ("launch", "end", "drain") if decision[name]}
    return f"decided on {seen}: {done} by {held}"


class OneByOne(Lister):
    """Lists without threads, so that a seed is the same history every time."""

    def list(self, backends: Mapping[str, Backend], alarm: Alarm) -> dict[str, Listed]:
        listed: dict[str, Listed] = {}
        for pool, backend in backends.items():
            try:
                listed[pool] = backend.list_jobs()
            except BackendError as error:
                listed[pool] = error
        return listed


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What the operator wants of one pool."""

    low: int
    high: int
    min_seconds_between_workers: float = 0.0
    max_launches_per_minute: int | None = None
    patience_seconds: float | None = None
    drain_grace_seconds: float = 3600.0
    terms: Terms = FREE


class SimulatedLease(Lease):
    """May be lost whenever somebody looks whether it is held; then another manager has it."""

    def __init__(self, timeline: Timeline, faults: Faults) -> None:
        self._timeline = timeline
        self._faults = faults
        self._is_ours = False
        self._another_until = -math.inf

    @property
    def is_ours(self) -> bool:
        """Whether it is, with nobody looking."""
        return self._is_ours

    def may_be_lost(self) -> None:
        """Time has passed."""
        if self._is_ours and self._faults.strike("lease", ("lost",)):
            self._is_ours = False

    @property
    def is_held(self) -> bool:
        self.may_be_lost()
        return self._is_ours

    def take(self) -> None:
        self._faults.point()
        if not self._is_ours:
            if self._faults.strike("lease", ("with another",)):
                self._another_until = self._timeline.now
                raise LeaseLost("another manager keeps it")
            self._is_ours = True

    def fence(self, pool: str) -> int | None:
        if not self.is_held:
            raise LeaseLost(f"it is not sure any more that the pool {pool} is this manager's")
        return 1

    def seconds_since_another(self, pool: str) -> float:
        return self._timeline.now - self._another_until


class Stand:
    """Whatever outlives a manager: the world, and the ledger."""

    def __init__(
        self, ledger: SimulatedLedger, timeline: Timeline, faults: Faults, server: Server
    ) -> None:
        self.ledger = ledger
        self._timeline = timeline
        self._faults = faults
        self._server = server
        self._client = cast(Client, server)
        self.budget = NO_BUDGET
        self.lease: SimulatedLease | None = None

    def manager(self, services: Mapping[str, Service], plans: Mapping[str, PoolPlan]) -> Manager:
        """A new one for the pools of ``plans``, in their order, as after a start."""
        return Manager(
            keepers=[self._keeper(services[name], plan) for name, plan in plans.items()],
            staged=StagedBundles(self._client),
            client=self._client,
            ledger=self.ledger,
            alarm=_ALARM,
            make_feed=_no_feed,
            lease=self.lease,
            budget=self.budget,
            lister=OneByOne(),
            clock=self._timeline.clock,
        )

    def reload(
        self, manager: Manager, services: Mapping[str, Service], plans: Mapping[str, PoolPlan]
    ) -> None:
        """The same one with other plans, as after a change of its file."""
        keepers = []
        for name, plan in plans.items():
            keeper = manager.keeper_of(name) or self._keeper(services[name], plan)
            keeper.config = _config(services[name], plan)
            keepers.append(keeper)
        manager.configure(keepers)

    def _keeper(self, service: Service, plan: PoolPlan) -> PoolKeeper:
        pool = service.pool
        self.ledger.describe(Pool(pool, "simulated", "http://s", {}))
        queue = _queue(service)
        backend: Backend = service
        if self.lease is not None:
            backend = LeasedBackend(service, self.lease)
        return PoolKeeper(
            pool=pool,
            config=_config(service, plan),
            observer=Observer(self._client, backend, pool, queue),
            backend=backend,
            launcher=Launcher(
                "http://s",
                WorkerOptions(),
                JobResources(queue.cpus, 0, queue.memory_bytes),
                Credentials(username="u", password="p"),
            ),
            client=self._client,
            ledger=self.ledger,
            journal=SimulatedJournal(self._timeline, self._faults),
            alarm=_ALARM,
            terms=plan.terms,
            lease=self.lease,
            clock=self._timeline.clock,
        )


def _queue(service: Service) -> QueueConfig:
    return QueueConfig(cpus=service.cpus, gpus=0, memory_bytes=service.cpus * MEMORY_BYTES)


def _config(service: Service, plan: PoolPlan) -> PoolConfig:
    return PoolConfig(
        _queue(service).shape,
        plan.low,
        plan.high,
        plan.min_seconds_between_workers,
        plan.max_launches_per_minute,
        plan.patience_seconds,
        plan.drain_grace_seconds,
    )


def _no_feed() -> ChangeFeed:
    raise AssertionError("the server offers no changes")
