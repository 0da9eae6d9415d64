"""The manager as a whole, in random histories of faults.

`SIMULATION_SCHEDULES` says how many; those of the seeds from `SIMULATION_SEED` on are run. A seed
that fails is printed, with the story of its schedule, and can be run again alone.
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

SCHEDULES = int(os.environ.get("SIMULATION_SCHEDULES", "100000"))
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
