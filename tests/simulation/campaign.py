"""Many schedules on every core, their account, and the seeds of those that went wrong."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import dataclass

from simulation.schedule import Account, Schedule
from simulation.stand import SimulatedLedger

CHUNK = 250
"""So many schedules are handed to a process at a time."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule in which an invariant did not hold, or the manager raised what it should not."""

    seed: int
    error: str


def schedule_of(seed: int, ledger: SimulatedLedger) -> Schedule:
    """The schedule that ``seed`` stands for."""
    random.seed(seed)  # the manager's own jitter
    return Schedule(random.Random(seed), ledger)


def tell(seed: int) -> str:
    """What happens in a schedule, a line each. The random part of keys is another every time."""
    with closing(SimulatedLedger()) as ledger:
        schedule = schedule_of(seed, ledger)
        story = schedule.timeline.story = []
        with suppress(Exception):
            schedule.run()
    return re.sub(r"-[0-9a-f]{8}\b", "", "\n".join(story))


def run_chunk(first: int, number: int) -> tuple[Account, Failure | None]:
    """So many schedules, or those before the first that fails."""
    account = Account()
    with closing(SimulatedLedger()) as ledger:
        for seed in range(first, first + number):
            try:
                account.add(schedule_of(seed, ledger).run())
            except Exception:
                return account, Failure(seed, traceback.format_exc())
    return account, None


def run_campaign(first: int, number: int) -> tuple[Account, list[Failure]]:
    """The schedules from seed ``first`` on, until one fails."""
    account = Account()
    failures: list[Failure] = []
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn")
    ) as executor:
        chunks = {
            executor.submit(run_chunk, start, min(CHUNK, first + number - start))
            for start in range(first, first + number, CHUNK)
        }
        try:
            for chunk in as_completed(chunks):
                done, failure = chunk.result()
                account.add(done)
                if failure is not None:
                    failures.append(failure)
                    break
        finally:  # whoever interrupts it does not wait for all of them
            executor.shutdown(cancel_futures=True)
    return account, failures
