"""Why a worker left, as its exit code: written by the worker, read by whoever launched it."""

from __future__ import annotations

from enum import IntEnum


class WorkerExit(IntEnum):
    """Exit codes of `bundle-worker`; 0 to 2 as everywhere, the others out of the shells' way."""

    FINISHED = 0
    """Idle, or it ran as many bundles as it should."""
    FAILED = 1
    """Something unforeseen; the last log lines say what."""
    USAGE = 2
    """An option makes no sense."""
    UNAUTHORIZED = 3
    """The server does not take the credentials."""
    UNREACHABLE = 4
    """The server could not be reached at the start."""
    UNUSABLE = 5
    """The work directory cannot be used: not writable, or no space."""
    REPLACED = 6
    """Another worker took over this worker's id, or holds its directory."""
    TERMINATED = 7
    """Asked to by a signal, before it was idle."""
    PREEMPTED = 8
    """Its machine goes away, as the cloud said beforehand."""
    NO_RUNTIME = 9
    """What should run bundles does not answer: the engine that was asked for is not there."""
    WRONG_CLOCK = 10
    """This machine's clock is too far from the server's."""
