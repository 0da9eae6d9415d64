"""What people do with bundles that exist: kill, write to, edit, end an upload, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import bindparam, update

from bundles.archive import check_path
from bundles.errors import Conflict, NotFound, NotPermitted, UsageError
from bundles.model import FINAL_STATES, State
from bundles.server import schema
from bundles.server.accounts import Caller
from bundles.server.books import Books
from bundles.server.creation import check_field
from bundles.server.entries import Entry, Past
from bundles.server.lifecycle import KILL_MESSAGE
from bundles.server.requests import Action, StateChange

EDITABLE = frozenset({"name", "description", "tags", "request_priority"})

_EDIT = (
    update(schema.bundle)
    .where(schema.bundle.c.id == bindparam("key"))
    .values(metadata=bindparam("new_metadata"), name=bindparam("new_name"))
)


def find_own(books: Books, caller: Caller, uuid: str) -> Past:
    """A bundle that the caller may act on. Raises NotFound, also for one that is not theirs."""
    past = books.find(uuid)
    if past is None or not caller.may_use(past.owner_id):
        raise NotFound(f"there is no bundle {uuid} of yours")
    return past


def act(books: Books, caller: Caller, actions: Sequence[Action]) -> None:
    """Do all of them or, if one makes no sense, none. Raises NotFound, Conflict, UsageError."""
    entries = [_check_action(books, caller, action) for action in actions]
    for action, entry in zip(actions, entries, strict=True):
        if action.type == "kill":
            if entry.state not in FINAL_STATES:  # the one before may have ended it
                _kill(books, entry, action.kill_message or KILL_MESSAGE)
        elif entry.worker_id is not None:
            books.send_write(entry, action.subpath, action.string)
        note = f"{action.type} {action.subpath}".strip()
        entry.metadata = {
            **entry.metadata,
            "actions": [*(entry.metadata.get("actions") or ()), note],
        }
        books.touch(entry)


def _check_action(books: Books, caller: Caller, action: Action) -> Entry:
    past = find_own(books, caller, action.uuid)
    entry = books.entries.get(action.uuid)
    if past.state in FINAL_STATES or entry is None:
        raise Conflict(
            f"the bundle {action.uuid} has ended ({past.state}) and takes no more actions"
        )
    if action.type == "write":
        if not check_path(action.subpath):
            raise UsageError("a write needs the path of a file in the bundle")
        if entry.state not in (State.PREPARING, State.RUNNING):
            raise Conflict(f"the bundle {action.uuid} is {entry.state}, not running: nobody reads")
    elif action.type != "kill":
        raise UsageError(f"the action {action.type!r} is unknown: it is kill or write")
    return entry


def _kill(books: Books, entry: Entry, message: str) -> None:
    is_out_of_reach = entry.state in (State.STARTING, State.WORKER_OFFLINE)
    if not entry.is_assigned or is_out_of_reach:
        # A worker that has begun it all the same, or comes back with it, is told to stop.
        books.end(entry, State.KILLED, message)
    elif entry.kill_message is None:
        entry.kill_message = message
        books.touch(entry)
        books.send_kill(entry)


def edit(books: Books, caller: Caller, changes: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Change what may be changed of a bundle's metadata: its name, description, tags, priority.

    Raises NotFound, UsageError for other fields and for values of the wrong kind.
    """
    pasts = []
    for uuid, fields in changes:
        pasts.append(find_own(books, caller, uuid))
        for key, value in fields.items():
            if key not in EDITABLE:
                raise UsageError(f"{key} cannot be changed: only {', '.join(sorted(EDITABLE))} can")
            check_field(key, value)
            if key == "name" and not value:
                raise UsageError("the name cannot be empty")
    for (uuid, fields), past in zip(changes, pasts, strict=True):
        entry = books.entries.get(uuid)
        if entry is not None:
            entry.metadata = {**entry.metadata, **fields}
            books.touch(entry)
            if entry.state is State.STAGED:
                books.scheduler.remove(uuid)
                books.scheduler.add(entry.waiting())
            continue
        row = books.reader.row(uuid)
        if row is not None:
            metadata = {**orjson.loads(row["metadata"]), **fields}
            books.statements.append((_EDIT, [edit_row(past.id, metadata)]))


def edit_row(bundle_id: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the statement that changes the metadata of a bundle that has ended."""
    return {
        "key": bundle_id,
        "new_metadata": orjson.dumps(metadata).decode(),
        "new_name": str(metadata.get("name") or ""),
    }


def delete(books: Books, caller: Caller, uuids: Sequence[str], *, force: bool) -> list[str]:
    """Delete bundles, or none of them. Returns their uuids, each once.

    Raises NotFound; Conflict for one that is at work, and, without ``force``, for one that another
    bundle (which is not deleted with it) depends on.
    """
    chosen = {uuid: find_own(books, caller, uuid) for uuid in uuids}
    for uuid, past in chosen.items():
        entry = books.entries.get(uuid)
        if entry is not None and entry.is_assigned:
            raise Conflict(f"the bundle {uuid} is {past.state}: kill it first")
    if not force:
        children = books.reader.children_of(chosen)
        for entry in books.new.values():
            for dependency in entry.dependencies:
                children.setdefault(dependency.parent_uuid, set()).add(entry.uuid)
        for uuid in chosen:
            others = children.get(uuid, set()) - chosen.keys() - books.deleted.keys()
            if others:
                raise Conflict(
                    f"the bundle {uuid} is what {min(others)} depends on: delete that one first, "
                    "or use force"
                )
    for uuid, past in chosen.items():
        entry = books.entries.get(uuid)
        location = entry.location if entry is not None else past.location
        if entry is not None and entry.state not in FINAL_STATES:
            # Its children, if there are any left, learn that it will never be ready.
            books.end(entry, State.KILLED, f"deleted by {caller.user.name}")
        books.deleted[uuid] = past.id
        if location is not None:
            books.effects.discards.append(location)
    return list(chosen)


def end_upload(books: Books, caller: Caller, uuid: str, change: StateChange) -> None:
    """`POST /bundles/<uuid>/state`: an upload has ended without its contents, or with.

    Raises NotFound, Conflict when the bundle is not being uploaded, UsageError.
    """
    find_own(books, caller, uuid)
    entry = books.entries.get(uuid)
    if entry is None or entry.state is not State.UPLOADING:
        raise Conflict(f"the bundle {uuid} is not being uploaded")
    try:
        state = State(change.state)
    except ValueError:
        state = State.UPLOADING
    if state not in FINAL_STATES:
        raise UsageError(f"state is {change.state!r}: it must be ready, failed or killed")
    if state is State.READY and entry.location is None:
        raise Conflict(f"the bundle {uuid} cannot be ready: nothing was uploaded")
    books.end(entry, state, change.failure_message)


def check_upload(books: Books, caller: Caller, uuid: str, claim: int | None) -> Entry:
    """The bundle whose contents the caller may put in place now.

    Raises NotFound, Conflict when the claim is not the current one or the contents are final.
    """
    entry = books.entries.get(uuid)
    past = books.find(uuid)
    if past is None:
        raise NotFound(f"there is no bundle {uuid}")
    if entry is not None and entry.is_assigned:
        worker = books.workers.get(entry.worker_id or "")
        is_its_worker = (
            worker is not None
            and worker.user_id == caller.id
            and (not caller.is_worker or worker.token_digest == caller.digest)
        )
        if claim is not None and claim != entry.claim:
            raise Conflict(f"claim {claim} of {uuid} is no longer current: its results are refused")
        if not is_its_worker:
            raise NotPermitted(f"the bundle {uuid} is not assigned to a worker of yours")
        return entry
    if claim is not None:
        raise Conflict(f"claim {claim} of {uuid} is no longer current: its results are refused")
    if not caller.may_use(past.owner_id):
        raise NotFound(f"there is no bundle {uuid} of yours")
    if entry is None or entry.state is not State.UPLOADING:
        raise Conflict(f"the bundle {uuid} is {past.state}: its contents cannot be replaced")
    return entry


def commit_upload(
    books: Books,
    caller: Caller,
    uuid: str,
    claim: int | None,
    *,
    location: str,
    is_directory: bool,
    size_bytes: int,
    finalize: bool,
) -> None:
    """Contents that lie complete in the store become the bundle's. Raises as check_upload."""
    entry = check_upload(books, caller, uuid, claim)
    books.drop_contents(entry)
    entry.location, entry.is_directory, entry.size_bytes = location, is_directory, size_bytes
    entry.metadata = {**entry.metadata, "data_size": size_bytes}
    books.touch(entry)
    if finalize and entry.state is State.UPLOADING:
        books.end(entry, State.READY)


def fail_upload(books: Books, caller: Caller, uuid: str, message: str) -> None:
    """An upload that was to make the bundle ready went wrong: the bundle has failed."""
    entry = check_upload(books, caller, uuid, None)
    if entry.state is State.UPLOADING:
        books.end(entry, State.FAILED, message)


def may_read_contents(books: Books, caller: Caller, uuid: str) -> bool:
    """Whether a worker of the caller runs a bundle that depends on this one."""
    for worker in books.workers.values():
        if worker.user_id != caller.id:
            continue
        if caller.is_worker and worker.token_digest != caller.digest:
            continue
        for child in worker.assigned:
            if any(d.parent_uuid == uuid for d in books.entries[child].dependencies):
                return True
    return False
