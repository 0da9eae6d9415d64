"""The manager as a whole, in random histories of faults.

At every launch: its key is new; the pool is not above its maximum; the jobs were wholly listed in
this tick, and the lease is held; no budget can be passed by it; no more workers come than bundles
and minimums need; of a pool whose workers never work three are launched, and then probes. At every
end: the job is of the pool, and its worker has no bundle, unless it drained for all of its grace.
In the end, when the faults stop: every bundle is done, every minimum was reached, no maximum is
passed, and the ledger holds for running what runs, and nothing else. What breaks each of these is
in test_mutants.

`SIMULATION_SCHEDULES` says how many, in CI 100,000; those of the seeds from `SIMULATION_SEED` on
are run. A seed that fails is printed, with the story of its schedule, and can be run again alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.campaign import run_campaign, tell
from simulation.conftest import REPORT
from simulation.schedule import Schedule
from simulation.stand import SimulatedLedger

SCHEDULES = int(os.environ.get("SIMULATION_SCHEDULES", "5000"))
FIRST_SEED = int(os.environ.get("SIMULATION_SEED", "0"))


@pytest.fixture(scope="module")
def ledger() -> Iterator[SimulatedLedger]:
    with closing(SimulatedLedger()) as made:
        yield made


@pytest.mark.timeout(1800)
def test_nothing_is_lost_or_twice_in_any_schedule(pytestconfig: pytest.Config) -> None:
    account, failures = run_campaign(FIRST_SEED, SCHEDULES)
    pytestconfig.stash[REPORT] += account.lines()
    if failures:
        first = min(failures, key=lambda failure: failure.seed)
        pytest.fail(
            f"SIMULATION_SEED={first.seed} SIMULATION_SCHEDULES=1 runs it again\n"
            f"{tell(first.seed)}\n{first.error}",
            pytrace=False,
        )
    assert account.schedules == SCHEDULES


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_nothing_is_lost_or_twice_in_schedules_that_can_be_made_shorter(
    chance: random.Random, ledger: SimulatedLedger
) -> None:
    random.seed(0)
    Schedule(chance, ledger).run()


def test_a_seed_is_the_same_history_every_time() -> None:
    assert tell(FIRST_SEED) == tell(FIRST_SEED)
    assert tell(FIRST_SEED) != tell(FIRST_SEED + 1)
