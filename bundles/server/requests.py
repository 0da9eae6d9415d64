"""What clients and workers send, checked: pydantic models and the sentence for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bundles.errors import UsageError

Uuid = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{32}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**31)]

M = TypeVar("M", bound="Document")


class Document(BaseModel):
    """Unknown fields are ignored, as CodaLab does; wrong types are not."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class DependencyAttributes(Document):
    child_path: str
    parent_uuid: Uuid
    parent_path: str | None = ""


class BundleAttributes(Document):
    bundle_type: str = "run"
    command: str | None = None
    uuid: Uuid | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    dependencies: list[DependencyAttributes] = Field(default_factory=list)


class CheckinRun(Document):
    """What a worker says of one of its runs (CodaLab's BundleCheckinState, and ``claim``)."""

    uuid: Uuid
    state: str
    claim: int | None = None
    run_status: str = ""
    bundle_start_time: float | None = None
    container_time_total: float = 0.0
    container_time_user: float = 0.0
    container_time_system: float = 0.0
    docker_image: str | None = None
    exitcode: int | None = None
    failure_message: str | None = None
    bundle_profile_stats: dict[str, Any] = Field(default_factory=dict)
    cpu_usage: float | None = None
    memory_usage: float | None = None
    disk_utilization: int | None = None


class Checkin(Document):
    """A check-in without its runs, which are read one by one: a bad one must not hide the rest."""

    dependencies: list[tuple[str, str]]
    runs: list[dict[str, Any]]
    tag: str | None = None
    group_name: str | None = None
    cpus: Count = 0
    gpus: Count = 0
    memory_bytes: Bytes = 0
    free_disk_bytes: Bytes | None = None
    hostname: str = ""
    shared_file_system: bool = False
    tag_exclusive: bool = False
    exit_after_num_runs: int | None = None
    is_terminating: bool = False
    is_draining: bool = False
    seconds_left: Annotated[float, Field(ge=0)] | None = None
    preemptible: bool = False
    # docs/protocol.md
    features: list[str] = Field(default_factory=list)
    session: str | None = None
    sequence: Annotated[int, Field(ge=0)] = 0
    acknowledged: list[str] = Field(default_factory=list)
    wait_seconds: Annotated[float, Field(ge=0, le=60)] | None = None


class Checkout(Document):
    session: str | None = None
    reason: str = ""


class Drain(Document):
    is_draining: bool = True
    reason: Annotated[str, StringConstraints(max_length=1000)] = ""


class WantedLeases(Document):
    names: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    holder: Name
    ttl_seconds: Annotated[float, Field(ge=1, le=3600)]
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0


class HeldLeases(Document):
    holder: Name
    fences: Annotated[dict[Name, int], Field(min_length=1, max_length=1000)]


class LeaseProof(Document):
    lease: Name
    fence: int


class StartBundle(Document):
    hostname: str = ""
    start_time: float | None = None


class NewUser(Document):
    user_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class NewGroup(Document):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class NewMember(Document):
    user_name: str


class Action(Document):
    type: str
    uuid: Uuid
    subpath: str = ""
    string: str = ""
    kill_message: str | None = None


class StateChange(Document):
    state: str
    failure_message: str | None = None


def parse(model: type[M], document: Any, where: str = "") -> M:
    """The document as a value. Raises UsageError that names the first field that is wrong."""
    if not isinstance(document, Mapping):
        raise UsageError(f"{where or 'the document'} must be a JSON object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def explain(error: ValidationError, where: str = "") -> str:
    """One sentence of the first thing that pydantic found."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"])
    if len(shown) > 80:
        shown = shown[:77] + "..."
    if first["type"] == "missing":
        return f"{_joined(where, path)} is missing"
    return f"{_joined(where, path)} is {shown}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def attributes(document: Any, kind: str) -> list[Mapping[str, Any]]:
    """The `attributes` of every element of `data`, be it a list or one object.

    Raises UsageError when the document is not of that shape.
    """
    data = document.get("data") if isinstance(document, Mapping) else None
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, list):
        raise UsageError(f'the document must be {{"data": [{{"type": "{kind}", …}}]}}')
    found: list[Mapping[str, Any]] = []
    for element in data:
        inner = element.get("attributes") if isinstance(element, Mapping) else None
        if not isinstance(inner, Mapping):
            raise UsageError(f"every element of data must have attributes, as {kind} have")
        found.append(inner)
    return found


def attributes_of_one(document: Any, kind: str) -> Mapping[str, Any]:
    """As ``attributes``, of a document that must hold exactly one."""
    found = attributes(document, kind)
    if len(found) != 1:
        raise UsageError(f"the document holds {len(found)} {kind}: send exactly one")
    return found[0]


def _joined(where: str, path: str) -> str:
    return f"{where}: {path}" if where and path else where or path or "the document"
