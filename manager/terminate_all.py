"""Ends the workers of one pool when its manager leaves (`--terminate-on-exit`).

Only our own: those that carry our mark in the backend's list, and those of our ledger that the
service does not list yet. Asks, as often as the time allows, and does not wait for the ends.
"""

from __future__ import annotations

import logging

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from backends.base import Backend, BackendError, Invalid, JobState, Unauthorized
from bundles.errors import BundlesError
from manager.ledger import Ledger
from manager.policy import count

ASKING_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 5.0

log = logging.getLogger("manager")


class WorkersLeft(BundlesError):
    """The manager leaves, and workers that it should have ended may go on."""


class Termination:
    """The end of a pool's workers. ``ledger`` knows those that are not listed yet."""

    def __init__(self, backend: Backend, ledger: Ledger, pool: str) -> None:
        self._backend = backend
        self._ledger = ledger
        self._pool = pool
        self._asked: set[str] = set()
        self._unanswered = 0

    def carry_out(self, within_seconds: float = ASKING_SECONDS) -> None:
        """Ask all of them to end. Raises WorkersLeft when some could not be asked in time."""
        patience = Retrying(
            stop=stop_after_delay(within_seconds),
            wait=wait_exponential(0.5, LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            patience(self._ask)
        except BackendError as error:
            raise WorkersLeft(
                f"not every worker was asked to end: {error}: `worker-manager status` shows those "
                "that are left, `worker-manager terminate` ends them"
            ) from error
        if self._unanswered:
            raise WorkersLeft(
                f"{count(self._unanswered, 'launch request')} got no answer and may still become "
                "workers: `worker-manager status` shows them"
            )
        log.info("%s asked to end", count(len(self._asked), "worker"))

    def _ask(self) -> None:
        """Raises an error when everybody was asked: one that may pass, if there is such."""
        jobs = self._backend.list_jobs()
        listed = {job.key for job in jobs}
        living = [job.id for job in jobs if job.state is not JobState.ENDED]
        living += [
            launch.job_id
            for launch in self._ledger.running(self._pool)
            if launch.key not in listed and launch.job_id is not None
        ]
        # What was launched without an answer is in a list that knows all, or it is nowhere.
        if self._backend.capabilities.listing_lag_seconds > 0:
            unsettled = self._ledger.unsettled(self._pool)
            self._unanswered = sum(launch.key not in listed for launch in unsettled)
        wanted = [job_id for job_id in living if job_id not in self._asked]
        if not wanted:
            return
        results = self._backend.terminate(wanted)
        self._asked |= {job_id for job_id, error in results.items() if error is None}
        errors = [error for error in results.values() if error is not None]
        if errors:
            raise next((error for error in errors if _may_pass(error)), errors[0])


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, BackendError) and not isinstance(error, Invalid | Unauthorized)
