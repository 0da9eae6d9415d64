"""Which state follows which, and how a run that ended is judged: pure tables. No I/O."""

from __future__ import annotations

from bundles.model import FINAL_STATES, State

_ENDS = FINAL_STATES
_AT_WORK = frozenset({State.PREPARING, State.RUNNING, State.FINALIZING})

NEXT_STATES: dict[State | None, frozenset[State]] = {
    None: frozenset({State.UPLOADING, State.CREATED}),
    State.UPLOADING: _ENDS,
    State.CREATED: frozenset({State.STAGED, State.FAILED, State.KILLED}),
    State.STAGED: frozenset({State.STARTING, State.FAILED, State.KILLED}),
    # A worker may report any later state first: what came between was overtaken.
    State.STARTING: _AT_WORK | _ENDS | {State.STAGED, State.WORKER_OFFLINE},
    State.PREPARING: (_AT_WORK - {State.PREPARING}) | _ENDS | {State.STAGED, State.WORKER_OFFLINE},
    State.RUNNING: frozenset({State.FINALIZING, State.STAGED, State.WORKER_OFFLINE}) | _ENDS,
    State.FINALIZING: _ENDS | {State.STAGED, State.WORKER_OFFLINE},
    State.WORKER_OFFLINE: _AT_WORK | _ENDS | {State.STAGED},
    State.READY: frozenset(),
    State.FAILED: frozenset(),
    State.KILLED: frozenset(),
}
"""From (None: not there yet) → to. A change that is not here is a fault of the server's own."""

_PROGRESS = {State.STARTING: 0, State.PREPARING: 1, State.RUNNING: 2, State.FINALIZING: 3}

KILL_MESSAGE = "Kill requested"


def may_follow(before: State | None, after: State) -> bool:
    """Whether a bundle may go from one state to the other."""
    return after in NEXT_STATES[before]


def advances(present: State, reported: State) -> bool:
    """Whether a worker's report moves its bundle on: forward, or back from being offline."""
    if present is State.WORKER_OFFLINE:
        return reported in _PROGRESS
    return _PROGRESS.get(reported, -1) > _PROGRESS.get(present, 99)


def judge_end(
    exitcode: int | None, failure_message: str | None, kill_message: str | None
) -> tuple[State, str | None]:
    """The final state of a run and why it failed, from what its worker says of its end.

    ``kill_message``: what was asked when someone wanted the bundle killed, if anyone did.
    """
    if failure_message:
        asked = {KILL_MESSAGE, kill_message or KILL_MESSAGE}
        killed = any(message in failure_message for message in asked)
        return (State.KILLED if killed else State.FAILED), failure_message
    if exitcode:
        return State.FAILED, f"Exit code {exitcode}"
    return State.READY, None


def parents_verdict(
    parents: dict[str, State], allow_failed: bool
) -> tuple[State | None, str | None]:
    """What the ends of all parents make of their child: None when it has to wait on.

    Returns STAGED, or FAILED and the uuid of the parent that it failed for.
    """
    if not allow_failed:
        for uuid, state in parents.items():
            if state in (State.FAILED, State.KILLED):
                return State.FAILED, uuid
    if all(state in FINAL_STATES for state in parents.values()):
        return State.STAGED, None
    return None, None
