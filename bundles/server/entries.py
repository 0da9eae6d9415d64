"""What the server's books hold: bundles that have not ended, workers, leases, letters. Values.

They know themselves, and nothing of each other: what follows from a change is in books.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bundles.model import ASSIGNED_STATES, Dependency, Resources, State
from bundles.server.scheduler import NO_PRIORITY, Need, Waiting

LOST_WITH = "lost_with"
"""Of a bundle's metadata: the workers that were lost while they ran it, in that order."""

LASTING_METADATA = frozenset({"actions", "created", LOST_WITH})
"""Generated fields that survive when a bundle is staged again."""

GENERATED_METADATA = frozenset(
    {
        "actions", "cpu_usage", "memory_usage", "time", "time_user", "time_system", "memory",
        "memory_max", "started", "last_updated", "run_status", "staged_status",
        "time_preparing", "time_running", "time_cleaning_up", "time_uploading_results",
        "docker_image", "exitcode", "job_handle", "remote", "remote_history",
        "on_preemptible_worker", "created", "data_size", "failure_message", "disk_utilization",
        LOST_WITH,
    }
)  # fmt: skip
"""Fields of a run that only the server and the worker write."""


@dataclass(frozen=True, slots=True)
class Past:
    """A bundle in brief, as the database has it: most often one that has ended."""

    id: int
    uuid: str
    owner_id: str
    name: str
    state: State
    claim: int
    worker_id: str | None
    fingerprint: str
    location: str | None


@dataclass(slots=True)
class Entry:
    """A bundle that has not ended."""

    id: int
    uuid: str
    owner_id: str
    bundle_type: str
    command: str
    args: str
    state: State
    created: float
    metadata: dict[str, Any]
    dependencies: tuple[Dependency, ...]
    resources: Resources
    fingerprint: str
    claim: int = 0
    worker_id: str | None = None
    session: str | None = None
    kill_message: str | None = None
    staged_status: str | None = None
    location: str | None = None
    is_directory: bool | None = None
    size_bytes: int | None = None
    # From here on in memory only
    parents: dict[str, State] = field(default_factory=dict)
    is_acknowledged: bool = False
    """The worker has the run on its disk: from now on not listing it means that it is lost."""
    start_by: float | None = None
    kill_sent: float = 0.0
    deferred_until: float | None = None
    """While it is staged: others go first, until then."""
    runs_alone: bool = False
    """It was lost so often that it takes no others with it any more, nor is blamed for them."""

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or "")

    @property
    def is_assigned(self) -> bool:
        return self.state in ASSIGNED_STATES

    @property
    def is_begun(self) -> bool:
        """Its worker has the run, and may be at work on it."""
        return self.is_assigned and (self.is_acknowledged or self.state is not State.STARTING)

    @property
    def lost_with(self) -> tuple[str, ...]:
        """The workers that were lost while they ran it."""
        return tuple(self.metadata.get(LOST_WITH) or ())

    def past(self) -> Past:
        return Past(
            self.id, self.uuid, self.owner_id, self.name, self.state, self.claim, self.worker_id,
            self.fingerprint, self.location,
        )  # fmt: skip

    def need(self) -> Need:
        asked = self.resources
        return Need(
            self.owner_id, asked.cpus, asked.gpus, asked.memory_bytes, asked.disk_bytes,
            asked.queue, self.runs_alone, asked.worker_seconds,
        )  # fmt: skip

    def waiting(self) -> Waiting:
        priority = self.metadata.get("request_priority")
        return Waiting(
            self.uuid,
            self.id,
            self.need(),
            NO_PRIORITY if priority is None or priority == "" else float(priority),
            frozenset((d.parent_uuid, d.parent_path) for d in self.dependencies),
            self.deferred_until is not None,
        )


@dataclass(slots=True)
class Worker:
    """A worker that has checked in. ``facts``: what it said of itself that seldom changes."""

    id: str
    user_id: str
    token_digest: str | None = None
    session: str | None = None
    former_sessions: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    is_live: bool = True
    seen: float = 0.0
    drain_reason: str | None = None
    """Why its owner wants it to take nothing more; None: it may."""
    # From here on in memory only
    lease_end: float = 0.0
    sequence: int = -1
    free_disk_bytes: int = 0
    cached: frozenset[tuple[str, str]] = frozenset()
    runs_left: int | None = None
    end: float = math.inf
    """When it ends, by the monotonic clock."""
    is_terminating: bool = False
    assigned: set[str] = field(default_factory=set)
    listed: frozenset[str] = frozenset()
    polling_until: float = 0.0
    drain_letter: str | None = None
    """The id of the letter that says so, while it is on its way."""

    @property
    def is_heard(self) -> bool:
        """It has checked in since the books were read. Until then it is not known what it has
        left, so it gets nothing new and nobody is told that no worker can run a bundle."""
        return self.sequence >= 0

    @property
    def has_claims(self) -> bool:
        """It speaks docs/protocol.md; CodaLab's own worker does not."""
        return "claims" in (self.facts.get("features") or ())

    @property
    def is_preemptible(self) -> bool:
        return bool(self.facts.get("preemptible"))

    @property
    def is_draining(self) -> bool:
        """It finishes what it has and is given nothing more."""
        return self.drain_reason is not None

    @property
    def is_leaving(self) -> bool:
        """It was going to end in any case: that it is gone says nothing of what it ran."""
        return self.is_terminating or self.is_draining


@dataclass(slots=True)
class Lease:
    """The right to act in a name, of one user. ``fence`` grows whenever it changes hands;
    ``holder`` None: it was given back."""

    user_id: str
    name: str
    ttl_seconds: float
    fence: int = 0
    holder: str | None = None
    # In memory only
    end: float = 0.0


class Taken(NamedTuple):
    """The uuids of what was taken from a worker that is gone."""

    restaged: Sequence[str] = ()
    ended: Sequence[str] = ()
    """It was to be killed, or had been lost too often."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message for a worker. ``id`` is the same whenever the same thing is said again."""

    worker_id: str
    id: str
    message: Mapping[str, Any]


@dataclass(slots=True)
class Effects:
    """What the world is told once the batch is in the database, in this order."""

    superseded: list[tuple[str, str]] = field(default_factory=list)
    """(worker id, session) that another session took over from."""
    recalls: list[tuple[str, str]] = field(default_factory=list)
    """(worker id, letter id) that needs not be sent any more."""
    letters: list[Letter] = field(default_factory=list)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    discards: list[str] = field(default_factory=list)
    """Places in the store that no bundle refers to any more."""
    is_lease_free: bool = False
    """Some lease was given back: whoever waits for one is to look."""
