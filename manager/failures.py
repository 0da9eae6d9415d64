"""When launches fail one after another: how long to wait before the next, and what to say.

A failure is an intent that the backend refused, or a worker that left at its start with an exit
code that says it could not work. Pure; what the codes mean is in bundles.exits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from backends.base import EndCause, Job, JobState, LaunchKey
from bundles.exits import WorkerExit
from manager.ledger import Launch, Outcome

FIRST_HOLD_SECONDS = 5.0
LONGEST_HOLD_SECONDS = 300.0

_NOT_FAILED = frozenset(
    {WorkerExit.FINISHED, WorkerExit.REPLACED, WorkerExit.TERMINATED, WorkerExit.PREEMPTED}
)

_NOBODYS_FAULT = frozenset(
    {EndCause.PREEMPTED, EndCause.KILLED_BY_US, EndCause.KILLED_BY_OTHERS, EndCause.FINISHED}
)

_MEANINGS = {
    WorkerExit.FAILED: "something unforeseen",
    WorkerExit.USAGE: "an option makes no sense to it",
    WorkerExit.UNAUTHORIZED: "the server does not take its credentials",
    WorkerExit.UNREACHABLE: "it could not reach the server",
    WorkerExit.UNUSABLE: "its work directory cannot be used",
    WorkerExit.NO_RUNTIME: "its machine has no engine that answers",
    WorkerExit.WRONG_CLOCK: "its machine's clock is wrong",
    126: "its executable cannot be run",
    127: "its executable was not found",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """Launch nothing before ``until`` (seconds since the epoch), for ``reason``."""

    until: float = 0.0
    reason: str = ""


def hold(
    recent: Sequence[Launch], jobs: Sequence[Job], undecided: Collection[LaunchKey] = ()
) -> Hold:
    """The hold that the last launches (newest first) and their jobs call for.

    Every tick with nothing but failures since the last success doubles it; a worker that lived,
    or lives, ends it; one of the ``undecided``, which has yet to come, says nothing. Failures of
    one tick count once, or a large pool would be held at once.
    """
    by_key: dict[LaunchKey | None, Job] = {job.key: job for job in jobs}
    failures: list[tuple[float, str]] = []
    ticks: set[float] = set()
    for launch in recent:
        failure = _failure(launch, by_key.get(launch.key))
        if failure is None:
            if launch.outcome is Outcome.UNDONE or launch.key in undecided:
                continue
            break
        failures.append(failure)
        ticks.add(launch.requested)
    if not failures:
        return Hold()
    when, why = max(failures)
    length = min(FIRST_HOLD_SECONDS * 2 ** (len(ticks) - 1), LONGEST_HOLD_SECONDS)
    return Hold(until=when + length, reason=f"the last launch failed: {why}")


def _failure(launch: Launch, job: Job | None) -> tuple[float, str] | None:
    """When and why a launch failed; None when it did not, or not yet."""
    if launch.outcome is Outcome.REFUSED:
        return launch.requested, launch.error or "the backend refused"
    ended, exit_code, cause, why = launch.ended, launch.exit_code, launch.cause, launch.why
    if job is not None and job.state is JobState.ENDED:
        ended, exit_code, cause, why = job.ended, job.exit_code, job.cause, job.why
    if ended is None or cause in _NOBODYS_FAULT:
        return None
    if exit_code is None:
        if cause not in (EndCause.FAILED, EndCause.OUT_OF_CAPACITY):
            return None
        return ended, f"{launch.key} never came to work: {why or cause}"
    if exit_code in _NOT_FAILED or exit_code > 128:
        return None
    if exit_code == WorkerExit.FAILED and ended - launch.requested > LONGEST_HOLD_SECONDS:
        return None
    return ended, f"{launch.key} left with exit code {exit_code}{meaning(exit_code)}"


def meaning(exit_code: int) -> str:
    """` (…)` with what a worker's exit code says, "" when it says nothing in particular."""
    text = _MEANINGS.get(exit_code)
    return f" ({text})" if text else ""
