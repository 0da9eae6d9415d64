"""The contract that a backend is written against: five verbs, their values, their errors.

A backend turns launch requests into jobs of one compute service, lists them, ends them, reads
their output, and says what is wrong with its configuration. It decides nothing: how many workers
there should be is the manager's business. A backend imports its service's SDK inside its own
package only, and nothing else of this project.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

POOL_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,46}[A-Za-z0-9])?")
"""What a pool may be called: its name ends up in job names, labels and directory names."""

KEY = "@LAUNCH-KEY@"
"""Stands for the text of the launch key, in a request's ``argv`` and in a work directory."""

_KEY_PATTERN = re.compile(rf"({POOL_PATTERN.pattern})-(\d+)-([0-9a-f]{{8}})")


class BackendError(Exception):
    """A compute service did not do what was asked; the message is one sentence for a person.

    Every error of a service's SDK is mapped to exactly one of the subclasses, because the class
    decides what the manager does next: by the service's error code, not by the SDK's class.
    """


class Throttled(BackendError):
    """The service asks to be called less often: nothing was done, call again later.

    Raised after the backend's own bounded retries. ``retry_after_seconds``: the service's own
    word on when, None if it had none.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


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
    def make_row(cls, pool: str, first: int, number: int) -> list[LaunchKey]:
        """Keys of one random and consecutive sequences, which a job array can count off."""
        random = secrets.token_hex(4)
        return [cls(pool, first + offset, random) for offset in range(number)]

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

    ``argv`` is the worker's whole command line, with KEY wherever the key belongs, so that the
    requests of one launch differ in their keys alone; it never holds a secret. ``environment``
    may be shown and stored by the service; ``secrets`` may not: how they travel (a secret store,
    a 0600 file, the process environment) is the backend's choice.
    """

    key: LaunchKey
    argv: tuple[str, ...]
    resources: JobResources
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def command(self) -> tuple[str, ...]:
        """``argv`` with the key in its places."""
        return tuple(word.replace(KEY, str(self.key)) for word in self.argv)


def rows(requests: Sequence[LaunchRequest], longest: int) -> list[list[LaunchRequest]]:
    """``requests`` in order, cut into rows that one job array can launch: consecutive sequences
    of one random, alike but for their keys, at most ``longest`` each."""
    cut: list[list[LaunchRequest]] = []
    for request in requests:
        last = cut[-1][-1] if cut else None
        follows = (
            last is not None
            and len(cut[-1]) < longest
            and request.key == replace(last.key, sequence=last.key.sequence + 1)
            and replace(request, key=last.key) == last
        )
        if follows:
            cut[-1].append(request)
        else:
            cut.append([request])
    return cut


class JobState(StrEnum):
    """How far the service is with a job."""

    PENDING = "pending"
    """Accepted, and its worker does not run yet."""
    ACTIVE = "active"
    """Its worker's process runs."""
    ENDED = "ended"
    """Its worker does not run any more, or never will."""


class EndCause(StrEnum):
    """Why a job ended, as far as its service says."""

    FINISHED = "finished"
    """The worker left by itself with exit code 0."""
    FAILED = "failed"
    """The worker left with another code, or could not be started."""
    PREEMPTED = "preempted"
    """The service took the machine back, or lost it: nobody's fault, and a new one may do."""
    OUT_OF_CAPACITY = "out of capacity"
    """The service gave up waiting for a machine."""
    KILLED_BY_US = "killed by us"
    KILLED_BY_OTHERS = "killed by others"
    """Somebody else ended it: a person, an administrator, a time limit of the service."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Job:
    """One worker job as its service describes it. Times are seconds since the epoch.

    ``exit_code`` is the worker's, None while it runs or when nobody saw it. ``cause`` says why it
    ended, None while it has not; ``why`` is the service's own word on the state that it is in:
    what a pending one waits for, how an ended one ended. ``worker_id`` is the text of the key
    where there is a key.
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
    cause: EndCause | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a dry run would have asked of the service: text for a person, without any secret."""

    text: str


class Idempotency(StrEnum):
    """What makes a launch that is repeated with the same key the same job."""

    SERVICE = "service"
    """The service itself refuses or returns a second job of one key."""
    LOOKUP = "lookup"
    """The backend writes its intent down in its directory, and looks for a job of the key before
    it asks again, as well as the service can answer."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the manager may count on.

    ``launches_per_call``: how many workers one call to the service launches (job arrays).
    ``idempotency``: what makes a launch repeatable, also after a crash.
    ``ended_listed_seconds``: how long ended jobs stay in the list; 0 when they are never in it.
    ``listing_lag_seconds``: how long after its launch a job may be missing from the list.
    ``shares_files``: workers see this machine's files, so this installation can be their program;
    otherwise their program is the `bundle-worker` of their image.
    ``worker_runtime``: what the workers should run bundles with (`bundle-worker --runtime`).
    ``preemptible``: the service may take the machines back at any time.
    """

    launches_per_call: int
    idempotency: Idempotency
    ended_listed_seconds: float
    listing_lag_seconds: float = 0.0
    shares_files: bool = False
    worker_runtime: str = "auto"
    preemptible: bool = False


LaunchResult = Job | Preview | BackendError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` looked at.

    ``subject``: the option or place, such as `--job-queue`; ``sentence``: what was found, with
    its value; ``error``: None when all is well, else what a launch would meet. ``remedy``: what a
    person can do about it, "" when all is well.
    """

    subject: str
    sentence: str
    error: BackendError | None = None
    remedy: str = ""


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

    @property
    def work_directory(self) -> str:
        """Where a worker keeps its files, as its own machine names it, with KEY in it if every
        worker has one of its own. No I/O."""
        ...

    def check(self) -> list[Finding]:
        """What is right and wrong with this configuration. Changes nothing, and never raises."""
        ...

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        """Launch one job for each request: one result per request, in order.

        A key that was launched before gives the job that it has. An error concerns its own
        request only and is returned, never raised. Unreachable means that the job may exist;
        after any other error it does not. ``dry_run``: nothing is asked of the service or
        written; each result is a Preview, or the error that can be told beforehand.
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


@runtime_checkable
class OfAccount(Protocol):
    """A backend may say, beside the rest of the contract, whose calls its calls are counted with.

    Services bound how often an account may call them: pools of one account share one pace of
    calls (see manager.governor). One that does not say, or says "", has a pace of its own.
    """

    @property
    def account(self) -> str | None:
        """The same text for all pools that the service counts together; None when nobody counts
        the calls, since they do not leave this machine. No I/O, and no secret in it."""
        ...
