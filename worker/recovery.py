"""What an earlier process of this worker left in its directory, taken up again."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from worker import records
from worker.held import Held
from worker.loop import Outcome
from worker.runs import Runs
from worker.runtimes.base import Runtime
from worker.trees import remove_tree

log = logging.getLogger(__name__)


def recover(directory: Path, runs: Runs) -> None:
    """Go on with the runs of ``directory``; what cannot be read, or belongs to none, is removed."""
    found: list[Held] = []
    for place in sorted(directory.iterdir()):
        try:
            run = records.load(place)
        except records.TornRecord as error:
            log.error("a run is lost, and will be staged again: %s", error)
            runs.chores.submit(partial(_obliterate, runs.runtime, place), _swept)
            continue
        found.append(Held(run, place))
    # All of them are held before the first one goes on: what one has, no other shall get.
    for held in found:
        runs.held[held.run.key] = held
    for held in found:
        runs.resume(held)
    runs.runtime.sweep(list(runs.held))
    if runs.held:
        log.info("carrying on with %d runs", len(runs.held))
    runs.chores.submit(runs.cache.sweep, _swept)


def _obliterate(runtime: Runtime, place: Path) -> None:
    runtime.end_all(place.name, place)
    remove_tree(place)


def _swept(outcome: Outcome[None]) -> None:
    if outcome.error is not None:
        log.warning("something of an earlier run stays behind: %s", outcome.error)
