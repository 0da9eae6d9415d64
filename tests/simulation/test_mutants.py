"""The manager broken on purpose, in one place at a time: the simulation finds each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from backends.base import Backend, BackendError, Job, LaunchKey, LaunchRequest, LaunchResult
from manager import keeper, loop, sharing
from manager.alarm import Alarm
from manager.keeper import PoolKeeper
from manager.listing import Listed
from manager.loop import Manager
from manager.money import Account
from manager.observe import Observation, Observer
from manager.policy import Decision, PoolConfig
from manager.quiet import QuietList
from manager.snapshot import Snapshot
from manager.unlisted import Unlisted
from simulation import stand
from simulation.campaign import schedule_of
from simulation.faults import Violation
from simulation.service import Service
from simulation.stand import OneByOne, SimulatedLease, SimulatedLedger

SCHEDULES = 3000
"""A mutant that lives so long is not found."""

Patch = pytest.MonkeyPatch
MUTANTS: list[Callable[[Patch], None]] = []


def mutant(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS.append(change)
    return change


def seen_otherwise(patch: Patch, change: Callable[[Observation], Snapshot]) -> None:
    """Every observation with another snapshot."""
    observe = Observer.observe

    def changed(self: Observer, *arguments: Any) -> Observation:
        observation = observe(self, *arguments)
        return replace(observation, snapshot=change(observation))

    patch.setattr(Observer, "observe", changed)


def decided_otherwise(patch: Patch, change: Callable[[Snapshot], Snapshot]) -> None:
    """Every decision on another snapshot."""
    decide = sharing.decide

    def changed(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
        return decide(change(snapshot), config, now)

    patch.setattr(sharing, "decide", changed)


@mutant
def writes_no_intent(patch: Patch) -> None:
    patch.setattr(
        SimulatedLedger, "intend", lambda self, pool, number: LaunchKey.make_row(pool, 1, number)
    )


@mutant
def writes_the_intent_after_the_call(patch: Patch) -> None:
    """As far as a kill in between can tell: the intent is gone when its call is."""
    launch = Service.launch

    def launch_first(
        self: Service, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        ledger = LEDGERS[-1]
        try:
            return launch(self, requests)
        except BaseException:
            keys = [(str(request.key),) for request in requests]
            ledger._database.executemany("DELETE FROM launch WHERE key = ?", keys)
            raise

    patch.setattr(Service, "launch", launch_first)


@mutant
def takes_a_lost_answer_for_a_refusal(patch: Patch) -> None:
    patch.setattr(keeper, "Unreachable", type("Never", (BackendError,), {}))


@mutant
def launches_again_when_the_answer_was_lost(patch: Patch) -> None:
    launch = Service.launch

    def twice(
        self: Service, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        results = launch(self, requests)
        if any(isinstance(result, BackendError) for result in results):
            return launch(self, requests)
        return results

    patch.setattr(Service, "launch", twice)


@mutant
def ignores_the_lag_of_lists(patch: Patch) -> None:
    patch.setattr(Unlisted, "may_be", lambda self, launch, when: False)


@mutant
def counts_the_lag_from_the_intent(patch: Patch) -> None:
    patch.setattr(
        Unlisted,
        "may_be",
        lambda self, launch, when: when - launch.requested < self._lag_seconds,
    )


@mutant
def takes_an_unknown_list_for_an_empty_one(patch: Patch) -> None:
    one_by_one = OneByOne.list

    def unknown_is_zero(
        self: OneByOne, backends: Mapping[str, Backend], alarm: Alarm
    ) -> dict[str, Listed]:
        listed = one_by_one(self, backends, alarm)
        return {
            pool: [] if isinstance(jobs, BackendError) else jobs for pool, jobs in listed.items()
        }

    patch.setattr(OneByOne, "list", unknown_is_zero)


@mutant
def forgets_a_pool_that_goes_silent(patch: Patch) -> None:
    patch.setattr(Manager, "_last_known", lambda self, keeper: loop._NOTHING)


@mutant
def acts_on_an_old_list(patch: Patch) -> None:
    def kept(self: QuietList, *arguments: Any) -> list[Job] | None:
        return None if self._jobs is None else list(self._jobs)

    patch.setattr(QuietList, "jobs", kept)
    patch.setattr(Manager, "_is_acting_on", lambda self, *arguments: False)


@mutant
def forgets_that_what_is_ending_takes_its_place(patch: Patch) -> None:
    decided_otherwise(patch, lambda snapshot: replace(snapshot, ending=0))


@mutant
def forgets_that_what_is_draining_takes_its_place(patch: Patch) -> None:
    decided_otherwise(patch, lambda snapshot: replace(snapshot, draining=0))


@mutant
def counts_no_pending_workers(patch: Patch) -> None:
    seen_otherwise(patch, lambda seen: replace(seen.snapshot, pending=0))


@mutant
def withdraws_workers_that_run(patch: Patch) -> None:
    seen_otherwise(
        patch,
        lambda seen: replace(
            seen.snapshot, withdrawable=seen.snapshot.withdrawable + seen.snapshot.drainable
        ),
    )


@mutant
def gives_no_grace_to_those_that_drain(patch: Patch) -> None:
    config = stand._config

    def without(*arguments: Any) -> PoolConfig:
        return replace(config(*arguments), drain_grace_seconds=0.0)

    patch.setattr(stand, "_config", without)


@mutant
def keeps_no_minimum(patch: Patch) -> None:
    decide = sharing.decide

    def none(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
        return decide(snapshot, replace(config, min_workers=0), now)

    patch.setattr(sharing, "decide", none)


@mutant
def launches_one_too_many(patch: Patch) -> None:
    decide = sharing.decide

    def more(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
        decision = decide(snapshot, config, now)
        return replace(decision, launch=decision.launch + 1) if decision.launch else decision

    patch.setattr(sharing, "decide", more)


@mutant
def never_tries_again_after_a_failure(patch: Patch) -> None:
    decided_otherwise(
        patch,
        lambda snapshot: replace(snapshot, held_until=1e18) if snapshot.held_until else snapshot,
    )


@mutant
def never_finishes_what_a_dead_manager_left(patch: Patch) -> None:
    unsettled = SimulatedLedger.unsettled

    def ours(self: SimulatedLedger, pool: str) -> list[Any]:
        return [launch for launch in unsettled(self, pool) if launch.settled is not None]

    patch.setattr(PoolKeeper, "reconcile", _reconcile_with(ours))


def _reconcile_with(unsettled: Callable[..., list[Any]]) -> Callable[..., None]:
    reconcile = PoolKeeper.reconcile

    def changed(self: PoolKeeper, observation: Observation) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(self.ledger), "unsettled", unsettled)
            reconcile(self, observation)

    return changed


@mutant
def launches_without_its_lease(patch: Patch) -> None:
    patch.setattr(stand, "LeasedBackend", lambda backend, lease: backend)
    patch.setattr(SimulatedLease, "fence", lambda self, pool: 1)


@mutant
def spends_what_it_likes(patch: Patch) -> None:
    decided_otherwise(patch, lambda snapshot: replace(snapshot, affordable=None))


@mutant
def takes_workers_for_free_until_they_end(patch: Patch) -> None:
    cost = Account.forecast
    patch.setattr(
        Account, "forecast", lambda self, place, now: cost(replace(self, living=0), place, now)
    )


@mutant
def launches_for_ever_where_no_worker_works(patch: Patch) -> None:
    decided_otherwise(
        patch,
        lambda snapshot: replace(
            snapshot, held_until=0.0, is_on_probation=False, is_quarantined=False, trial=None
        ),
    )


@mutant
def lets_workers_that_never_register_live(patch: Patch) -> None:
    decided_otherwise(patch, lambda snapshot: replace(snapshot, unregistered=()))


@mutant
def asks_once_to_end(patch: Patch) -> None:
    patch.setattr(PoolKeeper, "_reluctant", lambda self, observation: [])


LEDGERS: list[SimulatedLedger] = []


@pytest.fixture
def ledger() -> Iterator[SimulatedLedger]:
    with closing(SimulatedLedger()) as made:
        LEDGERS.append(made)
        yield made
        LEDGERS.pop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("change", MUTANTS, ids=lambda change: change.__name__)
def test_a_manager_that_is_broken_is_found(
    change: Callable[[Patch], None], ledger: SimulatedLedger, monkeypatch: Patch
) -> None:
    change(monkeypatch)
    for seed in range(SCHEDULES):
        try:
            schedule_of(seed, ledger).run()
        except Violation:
            return
    pytest.fail(f"it {change.__name__.replace('_', ' ')}, and nobody noticed")
