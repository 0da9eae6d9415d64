"""A bundle as it goes over the wire: states, dependencies, resources. Values only, no I/O."""

from __future__ import annotations

import math
import re
import uuid as uuid_module
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bundles.errors import UsageError
from bundles.sizes import parse_duration, parse_size

UUID_PATTERN = re.compile(r"0x[0-9a-f]{32}")

DEFAULT_CPUS = 1
DEFAULT_GPUS = 0
DEFAULT_MEMORY_BYTES = 2 * 1024**3

TIME_STEPS = ((600, 10), (5 * 3600, 60), (48 * 3600, 600), (math.inf, 3600))
"""Times up to so many seconds are rounded up to multiples of so many."""


class State(StrEnum):
    """Where a bundle is in its life; names are CodaLab's."""

    UPLOADING = "uploading"
    CREATED = "created"
    STAGED = "staged"
    MAKING = "making"
    STARTING = "starting"
    PREPARING = "preparing"
    RUNNING = "running"
    FINALIZING = "finalizing"
    READY = "ready"
    FAILED = "failed"
    KILLED = "killed"
    WORKER_OFFLINE = "worker_offline"


FINAL_STATES = frozenset({State.READY, State.FAILED, State.KILLED})

ASSIGNED_STATES = frozenset(
    {State.STARTING, State.PREPARING, State.RUNNING, State.FINALIZING, State.WORKER_OFFLINE}
)
"""States in which a bundle has a current claim of some worker."""


def new_uuid() -> str:
    """A bundle's name for itself: `0x` and 32 hex digits."""
    return "0x" + uuid_module.uuid4().hex


@dataclass(frozen=True, slots=True)
class Dependency:
    """A bundle, or a path in one, that appears as ``child_path`` beside the child's command."""

    child_path: str
    parent_uuid: str
    parent_path: str = ""
    parent_name: str = ""
    child_uuid: str = ""
    location: str | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Dependency:
        return cls(
            child_path=document["child_path"],
            parent_uuid=document["parent_uuid"],
            parent_path=document.get("parent_path") or "",
            parent_name=document.get("parent_name") or "",
            child_uuid=document.get("child_uuid") or "",
            location=document.get("location"),
        )

    def to_document(self) -> dict[str, Any]:
        return {
            "child_uuid": self.child_uuid,
            "child_path": self.child_path,
            "parent_uuid": self.parent_uuid,
            "parent_path": self.parent_path,
            "parent_name": self.parent_name,
            "location": self.location,
        }


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run asks for. ``disk_bytes`` and ``time_seconds`` of 0 mean no limit."""

    cpus: int = DEFAULT_CPUS
    gpus: int = DEFAULT_GPUS
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    disk_bytes: int = 0
    time_seconds: float = 0
    docker_image: str = ""
    network: bool = True
    queue: str = ""

    @property
    def worker_seconds(self) -> int:
        """How much of its life a worker must have left, 0: any. Not by the second: bundles that ask
        for the same are placed together, and of those whose times were reckoned for each there
        would be as many kinds as bundles."""
        step = next(step for up_to, step in TIME_STEPS if self.time_seconds <= up_to)
        return math.ceil(self.time_seconds / step) * step

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Resources:
        """From the `request_*` fields of a bundle; empty ones get CodaLab's defaults.

        Raises UsageError when a number or size cannot be read or is negative.
        """
        return cls(
            cpus=_count(metadata, "request_cpus", DEFAULT_CPUS),
            gpus=_count(metadata, "request_gpus", DEFAULT_GPUS),
            memory_bytes=parse_size(metadata.get("request_memory") or DEFAULT_MEMORY_BYTES),
            disk_bytes=parse_size(metadata.get("request_disk") or 0),
            time_seconds=parse_duration(metadata.get("request_time") or 0),
            docker_image=metadata.get("request_docker_image") or "",
            network=metadata.get("request_network", True) is not False,
            queue=queue_tag(metadata.get("request_queue") or ""),
        )

    @classmethod
    def from_run_message(cls, document: Mapping[str, Any]) -> Resources:
        """From the `resources` of a `run` message."""
        return cls(
            cpus=int(document["cpus"]),
            gpus=int(document["gpus"]),
            memory_bytes=int(document["memory"]),
            disk_bytes=int(document["disk"] or 0),
            time_seconds=float(document["time"] or 0),
            docker_image=document.get("docker_image") or "",
            network=bool(document.get("network", True)),
            queue=document.get("tag") or "",
        )

    def to_run_message(self) -> dict[str, Any]:
        """The ten fields of `resources` in a `run` message."""
        return {
            "cpus": self.cpus,
            "gpus": self.gpus,
            "docker_image": self.docker_image,
            "time": self.time_seconds,
            "memory": self.memory_bytes,
            "disk": self.disk_bytes,
            "network": self.network,
            "tag": self.queue,
            "tag_exclusive": False,
            "runs_left": None,
        }


def _count(metadata: Mapping[str, Any], key: str, default: int) -> int:
    value = metadata.get(key)
    if value is None or value == "":
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or isinstance(value, float):
        raise UsageError(f"{key} is {value!r}: it must be a whole number, 0 or more")
    return number


def queue_tag(request_queue: str) -> str:
    """The worker tag that a `request_queue` names: `tag=gpu` and `gpu` both mean `gpu`."""
    return request_queue.removeprefix("tag=")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle as a server describes it (`GET /rest/bundles`)."""

    uuid: str
    bundle_type: str
    state: str
    command: str = ""
    owner_id: str = ""
    owner_name: str = ""
    state_details: str = ""
    args: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dependencies: tuple[Dependency, ...] = ()
    claim: int = 0

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], users: Mapping[str, str] | None = None
    ) -> Bundle:
        """From one element of `data`; ``users`` maps user ids to names (from `included`)."""
        attributes = document["attributes"]
        owner = ((document.get("relationships") or {}).get("owner") or {}).get("data") or {}
        owner_id = str(owner.get("id", ""))
        return cls(
            uuid=attributes.get("uuid") or document["id"],
            bundle_type=attributes["bundle_type"],
            state=attributes["state"],
            command=attributes.get("command") or "",
            owner_id=owner_id,
            owner_name=(users or {}).get(owner_id, ""),
            state_details=attributes.get("state_details") or "",
            args=attributes.get("args") or "",
            metadata=attributes.get("metadata") or {},
            dependencies=tuple(
                Dependency.from_document(d) for d in attributes.get("dependencies") or ()
            ),
            claim=attributes.get("claim") or 0,
        )

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or "")

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def resources(self) -> Resources:
        return Resources.from_metadata(self.metadata)


@dataclass(frozen=True, slots=True)
class Shape:
    """Bundles that ask for the same: how many, and since when the oldest waits (epoch seconds)."""

    resources: Resources
    count: int
    oldest: float = 0.0
