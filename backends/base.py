"""The contract that a backend is written against: four verbs, their values, their errors.

A backend turns launch requests into jobs of one compute service, lists them, ends them and reads
their output. It decides nothing: how many workers there should be is the manager's business. A
backend imports its service's SDK inside its own module only, and nothing else of this project.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

POOL_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,46}[A-Za-z0-9])?")
"""What a pool may be called: its name ends up in job names, labels and directory names."""

_KEY_PATTERN = re.compile(rf"({POOL_PATTERN.pattern})-(\d+)-([0-9a-f]{{8}})")


class BackendError(Exception):
    """A compute service did not do what was asked; the message is one sentence for a person.

    Every error of a service's SDK is mapped to exactly one of the subclasses, because the class
    decides what the manager does next.
    """


class Throttled(BackendError):
    """The service asks to be called less often: nothing was done, call again later."""


class OutOfCapacity(BackendError):
    """The service has no such machine at the moment: nothing was done, another place may do."""


class QuotaExceeded(BackendError):
    """The account may not have more: nothing was done, and waiting alone may not help."""


class Unauthorized(BackendError):
    """The service does not accept the credentials: a person has to act."""


class Invalid(BackendError):
    """The request will never work as it is: a person has to change an option."""


class Unreachable(BackendError):
    """No answer. What was asked may have been done: the next list tells."""


@dataclass(frozen=True, slots=True)
class LaunchKey:
    """The name of one intent to launch, made before the service is called.

    ``sequence`` grows within a pool; ``random`` (8 hex digits) keeps pools of one name apart.
    Its text, `<pool>-<sequence>-<random>`, is at most 64 characters of letters, digits, `-` and
    `_`, and rides on the job wherever the service can de-duplicate or search by it.
    """

    pool: str
    sequence: int
    random: str

    @classmethod
    def make(cls, pool: str, sequence: int) -> LaunchKey:
        return cls(pool, sequence, secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> LaunchKey | None:
        """The key that ``text`` spells, or None when it spells none."""
        match = _KEY_PATTERN.fullmatch(text)
        return cls(match[1], int(match[2]), match[3]) if match else None

    def __str__(self) -> str:
        return f"{self.pool}-{self.sequence}-{self.random}"


@dataclass(frozen=True, slots=True)
class JobResources:
    """What one worker job is given."""

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One worker to launch: what to run, and with what.

    ``argv`` is the worker's whole command line; it never holds a secret. ``environment`` may be
    shown and stored by the service; ``secrets`` may not: how they travel (a secret store, a 0600
    file, the process environment) is the backend's choice.
    """

    key: LaunchKey
    argv: tuple[str, ...]
    resources: JobResources
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class JobState(StrEnum):
    """How far the service is with a job."""

    PENDING = "pending"
    """Accepted, and its worker does not run yet."""
    ACTIVE = "active"
    """Its worker's process runs."""
    ENDED = "ended"
    """Its worker does not run any more, or never will."""


@dataclass(frozen=True, slots=True)
class Job:
    """One worker job as its service describes it. Times are seconds since the epoch.

    ``exit_code`` is the worker's, None while it runs or when nobody saw it; ``why`` is the
    service's own word on an end. ``worker_id`` is the text of the key where there is a key.
    """

    id: str
    key: LaunchKey | None
    worker_id: str
    state: JobState
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the manager may count on.

    ``launches_per_call``: how many workers one call to the service launches (job arrays).
    ``repeatable``: a launch repeated with the same key is the same job, even after a crash.
    ``ended_listed_seconds``: how long ended jobs stay in the list; 0 when they are never in it.
    ``listing_lag_seconds``: how long after its launch a job may be missing from the list.
    """

    launches_per_call: int
    repeatable: bool
    ended_listed_seconds: float
    listing_lag_seconds: float = 0.0


LaunchResult = Job | BackendError


@dataclass(frozen=True, slots=True)
class Context:
    """Whose jobs a backend handles, and what it is given to do so.

    ``directory``: of this backend alone, for what it must keep on this machine; made when needed.
    ``owner``: the mark of this manager installation (16 hex digits): with ``pool`` it says whose
    a job is. ``environment``: this process's, without any credentials.
    ``work_directory_prefix``: where the user wants the workers to keep their files, if anywhere.
    """

    directory: Path
    owner: str
    pool: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    work_directory_prefix: str | None = None


class Backend(Protocol):
    """One compute service. Every call has a time-out; no call waits for a worker to do something.

    Used by one thread at a time, and by `status` in another process at the same time.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def work_directory(self, key: LaunchKey) -> str:
        """Where the worker of this key keeps its files, as its own machine names it. No I/O."""
        ...

    def launch(self, requests: Sequence[LaunchRequest]) -> list[LaunchResult]:
        """Launch one job for each request: one result per request, in order.

        A key that was launched before gives the job that it has (where ``repeatable``). An error
        concerns its own request only and is returned, never raised. Unreachable means that the
        job may exist; after any other error it does not.
        """
        ...

    def list_jobs(self) -> list[Job]:
        """Every job that carries our mark and pool, whole, ended ones as ``capabilities`` says.

        Changes nothing. A job whose details cannot be read is listed with what is known. Raises
        BackendError when the list could not be read to its end: a shorter list is never returned.
        """
        ...

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        """Ask jobs to end: for each id None, or the error. Does not wait for the end.

        Ending what is gone is success; what is not ours is Invalid and left alone. Asking again
        for a job that did not follow within the service's grace ends it by force.
        """
        ...

    def logs(self, job_id: str) -> str:
        """The worker's own output, the last MiB of it. Raises BackendError; Invalid: no such."""
        ...
