"""New bundles: what is asked for, checked as a whole, and then entered in the books."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bundles.archive import check_path
from bundles.errors import Conflict, UsageError
from bundles.model import Dependency, Resources, State, new_uuid
from bundles.server.accounts import Caller
from bundles.server.books import Books
from bundles.server.entries import GENERATED_METADATA, Entry, Past
from bundles.server.requests import BundleAttributes, parse

RUN_TYPE = "run"
UPLOADED_TYPES = frozenset({"dataset", "program"})

LARGEST_COUNT = 2**31 - 1
LARGEST_NUMBER = 2**62

_RUN_DEFAULTS: dict[str, Any] = {
    "description": "",
    "tags": [],
    "allow_failed_dependencies": False,
    "request_docker_image": "",
    "request_time": "",
    "request_memory": "2g",
    "request_disk": "",
    "request_cpus": 1,
    "request_gpus": 0,
    "request_queue": "",
    "request_priority": None,
    "request_network": True,
    "exclude_patterns": [],
    "store": "",
}
_UPLOAD_DEFAULTS: dict[str, Any] = {"description": "", "tags": [], "license": "", "source_url": ""}


@dataclass(frozen=True, slots=True)
class Draft:
    """A bundle that may be created, as far as it can be told without the books."""

    uuid: str
    has_own_uuid: bool
    bundle_type: str
    command: str
    metadata: dict[str, Any]
    dependencies: tuple[Dependency, ...]
    resources: Resources
    fingerprint: str


def draft_bundles(documents: Sequence[Mapping[str, Any]]) -> list[Draft]:
    """Check every bundle of a request. Raises UsageError for the first that makes no sense."""
    drafts = [_draft(document, index, len(documents)) for index, document in enumerate(documents)]
    uuids = {draft.uuid for draft in drafts}
    if len(uuids) < len(drafts):
        raise UsageError("two bundles of the request have the same uuid")
    _check_cycles(drafts, uuids)
    return drafts


def _draft(document: Mapping[str, Any], index: int, count: int) -> Draft:
    where = f"bundle {index + 1} of {count}" if count > 1 else ""
    found = parse(BundleAttributes, document, where)
    try:
        return _checked(found)
    except UsageError as error:
        raise UsageError(f"{where}: {error}" if where else str(error)) from None


def _checked(found: BundleAttributes) -> Draft:
    if found.bundle_type != RUN_TYPE and found.bundle_type not in UPLOADED_TYPES:
        raise UsageError(
            f"bundle_type is {found.bundle_type!r}: this server knows run, dataset and program"
        )
    is_run = found.bundle_type == RUN_TYPE
    command = found.command or ""
    if is_run and not command.strip():
        raise UsageError("the command is empty: a run needs one")
    if not is_run and found.dependencies:
        raise UsageError(f"a {found.bundle_type} is uploaded and cannot have dependencies")
    metadata = check_metadata(found.metadata, is_run=is_run, command=command)
    uuid = found.uuid or new_uuid()
    dependencies = tuple(
        Dependency(
            child_path=_check_key(dependency.child_path),
            parent_uuid=dependency.parent_uuid,
            parent_path=check_path(dependency.parent_path or ""),
            child_uuid=uuid,
        )
        for dependency in found.dependencies
    )
    _check_keys([dependency.child_path for dependency in dependencies])
    document = found.model_dump(mode="json", exclude={"uuid"})
    fingerprint = hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return Draft(
        uuid=uuid,
        has_own_uuid=found.uuid is not None,
        bundle_type=found.bundle_type,
        command=command,
        metadata=metadata,
        dependencies=dependencies,
        resources=Resources.from_metadata(metadata),
        fingerprint=fingerprint,
    )


def check_metadata(given: Mapping[str, Any], *, is_run: bool, command: str) -> dict[str, Any]:
    """The user's metadata with every default filled in. Raises UsageError."""
    defaults = _RUN_DEFAULTS if is_run else _UPLOAD_DEFAULTS
    metadata = {
        key: list(value) if isinstance(value, list) else value for key, value in defaults.items()
    }
    for key, value in given.items():
        if key in GENERATED_METADATA or (value is None and key in metadata):
            continue
        check_field(key, value)
        metadata[key] = value
    if not metadata.get("name"):
        metadata["name"] = _default_name(command) if is_run else "untitled"
    if is_run:
        check_resources(Resources.from_metadata(metadata))
    return metadata


def check_field(key: str, value: Any) -> None:
    """Raises UsageError when a known field is of the wrong kind or out of range."""
    if key in ("name", "description", "request_docker_image", "request_queue", "store"):
        if not isinstance(value, str):
            raise UsageError(f"{key} is {value!r}: it must be a string")
    elif key in ("tags", "exclude_patterns"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{key} is {value!r}: it must be a list of strings")
    elif key in ("allow_failed_dependencies", "request_network"):
        if not isinstance(value, bool):
            raise UsageError(f"{key} is {value!r}: it must be true or false")
    elif key in ("request_memory", "request_disk", "request_time"):
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UsageError(f"{key} is {value!r}: it must be a number with a unit, such as 2g")
    elif key in ("request_cpus", "request_gpus"):
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise UsageError(f"{key} is {value!r}: it must be a whole number, 0 or more")
    elif key == "request_priority" and value not in ("", None) and not _is_small_int(value):
        raise UsageError(f"request_priority is {value!r}: it must be a whole number")
    if key == "name" and ("/" in value or len(value) > 1000 or "\n" in value):
        raise UsageError(f"the name {value[:80]!r} must be one line without a slash")


def _is_small_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_COUNT


def check_resources(asked: Resources) -> None:
    """Raises UsageError for what no machine will ever have."""
    if max(asked.cpus, asked.gpus) > LARGEST_COUNT:
        raise UsageError(f"{max(asked.cpus, asked.gpus)} cpus or gpus are more than there are")
    if max(asked.memory_bytes, asked.disk_bytes, asked.time_seconds) > LARGEST_NUMBER:
        raise UsageError("the request for memory, disk or time is larger than there is")


def _default_name(command: str) -> str:
    word = posixpath.basename(command.split()[0])
    kept = "".join(letter for letter in word if letter.isalnum() or letter in "._-")
    return f"run-{kept[:60]}" if kept else "run"


def _check_key(child_path: str) -> str:
    path = check_path(child_path)
    if not path:
        raise UsageError("a dependency needs a key: the path under which the command finds it")
    return path


def _check_keys(keys: Sequence[str]) -> None:
    if len(keys) < 2:
        return
    normal = {key: posixpath.normpath(key) for key in keys}
    if len(set(normal.values())) < len(keys):
        twice = next(key for key in keys if list(normal.values()).count(normal[key]) > 1 or
                     keys.count(key) > 1)  # fmt: skip
        raise UsageError(f"the dependency key {twice!r} is given twice")
    for key, path in normal.items():
        parent = posixpath.dirname(path)
        while parent:
            if parent in normal.values():
                raise UsageError(f"the dependency key {key!r} lies inside another, {parent!r}")
            parent = posixpath.dirname(parent)


def _check_cycles(drafts: Sequence[Draft], uuids: set[str]) -> None:
    inside = {
        draft.uuid: {d.parent_uuid for d in draft.dependencies if d.parent_uuid in uuids}
        for draft in drafts
    }
    for uuid, parents in inside.items():
        if uuid in parents:
            raise UsageError(f"the bundle {uuid} depends on itself")
    children: dict[str, list[str]] = {}
    waiting = {uuid: len(parents) for uuid, parents in inside.items()}
    for uuid, parents in inside.items():
        for parent in parents:
            children.setdefault(parent, []).append(uuid)
    free = [uuid for uuid, count in waiting.items() if count == 0]
    seen = 0
    while free:
        seen += 1
        for child in children.get(free.pop(), ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                free.append(child)
    if seen < len(inside):
        stuck = next(uuid for uuid, count in waiting.items() if count)
        raise UsageError(f"the bundles of the request depend on each other in a cycle: see {stuck}")


def create(
    books: Books, caller: Caller, drafts: Sequence[Draft], *, wait_for_upload: bool
) -> list[str]:
    """Enter the drafts in the books; those that exist already, by the same document, stay as they
    are. Returns the uuids in order.

    Raises UsageError for a dependency that is not there (or not the caller's), Conflict for a uuid
    that another bundle has.
    """
    known = books.find_all(draft.uuid for draft in drafts if draft.has_own_uuid)
    new = []
    for draft in drafts:
        past = known.get(draft.uuid)
        if past is None:
            new.append(draft)
        elif past.owner_id != caller.id or past.fingerprint != draft.fingerprint:
            raise Conflict(
                f"there is another bundle {draft.uuid}: leave uuid out or make a new one"
            )
    drafted = {draft.uuid: draft for draft in new}
    parents = books.find_all(
        {d.parent_uuid for draft in new for d in draft.dependencies} - drafted.keys()
    )
    for draft in new:
        for dependency in draft.dependencies:
            _check_parent(caller, dependency.parent_uuid, parents, drafted)
    entries = []
    for draft in new:
        entry = _entry(books, caller, draft, parents, drafted, wait_for_upload)
        books.add(entry)
        entries.append(entry)
    for entry in entries:
        books.settle(entry)
    return [draft.uuid for draft in drafts]


def _check_parent(
    caller: Caller, uuid: str, parents: Mapping[str, Past], drafted: Mapping[str, Draft]
) -> None:
    if uuid in drafted:
        return
    past = parents.get(uuid)
    if past is None or not caller.may_use(past.owner_id):
        raise UsageError(f"the dependency {uuid} is unknown: there is no such bundle of yours")


def _entry(
    books: Books,
    caller: Caller,
    draft: Draft,
    parents: Mapping[str, Past],
    drafted: Mapping[str, Draft],
    wait_for_upload: bool,
) -> Entry:
    dependencies = tuple(
        Dependency(
            dependency.child_path,
            dependency.parent_uuid,
            dependency.parent_path,
            parents[dependency.parent_uuid].name
            if dependency.parent_uuid in parents
            else drafted[dependency.parent_uuid].metadata["name"],
            draft.uuid,
        )
        for dependency in draft.dependencies
    )
    is_run = draft.bundle_type == RUN_TYPE
    number = books.next_bundle_id
    books.next_bundle_id += 1
    words = [f"{d.child_path}:{d.parent_uuid}{'/' * bool(d.parent_path)}{d.parent_path}"
             for d in dependencies]  # fmt: skip
    return Entry(
        id=number,
        uuid=draft.uuid,
        owner_id=caller.id,
        bundle_type=draft.bundle_type,
        command=draft.command,
        args=" ".join(["run", *words, _quoted(draft.command)]) if is_run else "upload",
        state=State.CREATED if is_run and not wait_for_upload else State.UPLOADING,
        created=books.now,
        metadata={**draft.metadata, "created": int(books.now), "actions": []},
        dependencies=dependencies,
        resources=draft.resources,
        fingerprint=draft.fingerprint,
        parents={
            d.parent_uuid: parents[d.parent_uuid].state
            if d.parent_uuid in parents
            else State.CREATED
            for d in dependencies
        },
    )


def _quoted(command: str) -> str:
    return '"' + command.replace("\\", "\\\\").replace('"', '\\"') + '"'
