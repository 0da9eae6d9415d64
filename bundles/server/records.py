"""The books as rows: read whole when the server starts, and written batch by batch after that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from bundles.model import FINAL_STATES, Dependency, Resources, State
from bundles.server import schema
from bundles.server.accounts import Accounts, Group, Token, User
from bundles.server.books import Books, Clock
from bundles.server.entries import Entry, Lease, Past, Worker

T = TypeVar("T")
Row = Mapping[str, Any]

CHUNK = 500
"""Values in one IN list: well under every database's limit."""
HISTORY_TICKS = 1_000_000
"""The first transition of a database has its time in microseconds as its id, so that a cursor of
an earlier database is seen to be none of this one."""

_BUNDLE = schema.bundle.c
_PAST_COLUMNS = (
    _BUNDLE.id,
    _BUNDLE.uuid,
    _BUNDLE.owner_id,
    _BUNDLE.name,
    _BUNDLE.state,
    _BUNDLE.claim,
    _BUNDLE.worker_id,
    _BUNDLE.fingerprint,
    _BUNDLE.location,
)

_VARIABLE = (
    "name",
    "state",
    "metadata",
    "claim",
    "worker_id",
    "session",
    "kill_message",
    "staged_status",
    "location",
    "is_directory",
    "size_bytes",
)
_UPDATE_BUNDLE = (
    update(schema.bundle)
    .where(_BUNDLE.id == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in _VARIABLE})
)


def as_mapping(row: Any) -> Row:
    """A row by its columns' names."""
    mapping: Row = row._mapping
    return mapping


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """The values in lists that fit an IN list."""
    rest = iter(values)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


class DatabaseReader:
    """Answers what the books ask of the database, over the connection that also writes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find_bundles(self, uuids: Iterable[str]) -> dict[str, Past]:
        found: dict[str, Past] = {}
        for chunk in chunks(uuids):
            rows = self._connection.execute(select(*_PAST_COLUMNS).where(_BUNDLE.uuid.in_(chunk)))
            for row in rows:
                found[row.uuid] = Past(
                    row.id, row.uuid, row.owner_id, row.name, State(row.state), row.claim,
                    row.worker_id, row.fingerprint, row.location,
                )  # fmt: skip
        return found

    def children_of(self, uuids: Iterable[str]) -> dict[str, set[str]]:
        """The uuids of the bundles that depend on these."""
        found: dict[str, set[str]] = {}
        table = schema.dependency.c
        for chunk in chunks(uuids):
            rows = self._connection.execute(
                select(table.parent_uuid, _BUNDLE.uuid)
                .join(schema.bundle, _BUNDLE.id == table.child_id)
                .where(table.parent_uuid.in_(chunk))
            )
            for parent_uuid, uuid in rows:
                found.setdefault(parent_uuid, set()).add(uuid)
        return found

    def row(self, uuid: str) -> Mapping[str, Any] | None:
        row = self._connection.execute(select(schema.bundle).where(_BUNDLE.uuid == uuid)).first()
        return None if row is None else as_mapping(row)


# Reading


def read_books(
    connection: Connection, clock: Clock, worker_timeout_seconds: float, max_losses: int
) -> Books:
    """Everything that has not ended, as it is in the database, with full leases."""
    books = Books(DatabaseReader(connection), clock, worker_timeout_seconds, max_losses)
    books.accounts = read_accounts(connection)
    books.next_bundle_id = 1 + (connection.scalar(select(func.max(_BUNDLE.id))) or 0)
    last = connection.scalar(select(func.max(schema.transition.c.id)))
    books.next_transition_id = 1 + (last or int(clock.wall() * HISTORY_TICKS))
    for row in connection.execute(select(schema.worker)):
        worker = _worker(as_mapping(row))
        books.workers[worker.id] = worker
    for row in connection.execute(select(schema.lease)):
        books.leases[row.user_id, row.name] = Lease(**as_mapping(row))
    entries = _read_entries(connection)
    for entry in entries:
        books.restore(entry)
    for worker in list(books.workers.values()):
        books.forget_worker_if_done(worker)
    for entry in entries:
        books.settle(entry)
        if entry.worker_id in books.workers and entry.is_assigned:
            if entry.state is State.STARTING:
                books.send_run(entry)
            if entry.kill_message is not None:
                books.send_kill(entry)
        elif entry.is_assigned:  # its worker is unknown: nobody will ever report on it
            books.restage(entry, f"worker {entry.worker_id} is not known any more")
    books.renew_leases()
    return books


def read_accounts(connection: Connection) -> Accounts:
    members: dict[str, set[str]] = {}
    for group_id, user_id in connection.execute(
        select(schema.group_member.c.group_id, schema.group_member.c.user_id)
    ):
        members.setdefault(group_id, set()).add(user_id)
    return Accounts.of(
        (User(*row) for row in connection.execute(_columns(schema.user))),
        (Token(*row) for row in connection.execute(_columns(schema.token))),
        (
            Group(row.id, row.name, row.owner_id, frozenset(members.get(row.id, ())))
            for row in connection.execute(_columns(schema.group))
        ),
    )


def _columns(table: Any) -> Any:
    return select(*table.c)


def _worker(row: Row) -> Worker:
    return Worker(
        id=row["id"],
        user_id=row["user_id"],
        token_digest=row["token_digest"],
        session=row["session"],
        former_sessions=orjson.loads(row["former_sessions"]),
        facts=orjson.loads(row["facts"]),
        is_live=row["is_live"],
        seen=row["seen"],
        drain_reason=row["drain_reason"],
    )


def _read_entries(connection: Connection) -> list[Entry]:
    unfinished = _BUNDLE.state.not_in([str(state) for state in FINAL_STATES])
    dependencies = read_dependencies(
        connection, select(_BUNDLE.id).where(unfinished).scalar_subquery()
    )
    entries = [
        _entry(as_mapping(row), dependencies.get(row.id, ()))
        for row in connection.execute(select(schema.bundle).where(unfinished).order_by(_BUNDLE.id))
    ]
    states = {entry.uuid: entry.state for entry in entries}
    created = [entry for entry in entries if entry.state is State.CREATED]
    parents = {d.parent_uuid for entry in created for d in entry.dependencies} - states.keys()
    for chunk in chunks(parents):
        for uuid, state in connection.execute(
            select(_BUNDLE.uuid, _BUNDLE.state).where(_BUNDLE.uuid.in_(chunk))
        ):
            states[uuid] = State(state)
    for entry in created:
        entry.parents = {
            # A parent that is not there was deleted by force.
            d.parent_uuid: states.get(d.parent_uuid, State.FAILED)
            for d in entry.dependencies
        }
    return entries


def read_dependencies(connection: Connection, ids: Any) -> dict[int, tuple[Dependency, ...]]:
    """By the child's id; ``ids``: what an IN takes."""
    table = schema.dependency.c
    found: dict[int, list[Dependency]] = {}
    rows = connection.execute(
        select(
            table.child_id,
            table.child_path,
            table.parent_uuid,
            table.parent_path,
            table.parent_name,
            _BUNDLE.uuid,
        )
        .join(schema.bundle, _BUNDLE.id == table.child_id)
        .where(table.child_id.in_(ids))
        .order_by(table.child_id, table.position)
    )
    for child_id, child_path, parent_uuid, parent_path, parent_name, uuid in rows:
        found.setdefault(child_id, []).append(
            Dependency(child_path, parent_uuid, parent_path, parent_name, uuid)
        )
    return {child_id: tuple(dependencies) for child_id, dependencies in found.items()}


def _entry(row: Row, dependencies: Sequence[Dependency]) -> Entry:
    metadata = orjson.loads(row["metadata"])
    return Entry(
        id=row["id"],
        uuid=row["uuid"],
        owner_id=row["owner_id"],
        bundle_type=row["bundle_type"],
        command=row["command"],
        args=row["args"],
        state=State(row["state"]),
        created=row["created"],
        metadata=metadata,
        dependencies=tuple(dependencies),
        resources=Resources.from_metadata(metadata),
        fingerprint=row["fingerprint"],
        claim=row["claim"],
        worker_id=row["worker_id"],
        session=row["session"],
        kill_message=row["kill_message"],
        staged_status=row["staged_status"],
        location=row["location"],
        is_directory=row["is_directory"],
        size_bytes=row["size_bytes"],
    )


# Writing


def write_batch(connection: Connection, books: Books) -> bool:
    """Write what the batch changed, without committing it. Returns whether there was anything."""
    wrote = False
    for statement, parameters in books.statements:
        if parameters:
            connection.execute(statement, parameters)
        else:
            connection.execute(statement)
        wrote = True
    new = [entry for entry in books.new.values() if entry.uuid not in books.deleted]
    if new:
        connection.execute(insert(schema.bundle), [bundle_row(entry) for entry in new])
        dependencies = [
            {
                "child_id": entry.id,
                "position": position,
                "child_path": dependency.child_path,
                "parent_uuid": dependency.parent_uuid,
                "parent_path": dependency.parent_path,
                "parent_name": dependency.parent_name,
            }
            for entry in new
            for position, dependency in enumerate(entry.dependencies)
        ]
        if dependencies:
            connection.execute(insert(schema.dependency), dependencies)
        wrote = True
    dirty = [entry for entry in books.dirty.values() if entry.uuid not in books.deleted]
    if dirty:
        connection.execute(_UPDATE_BUNDLE, [_changes(entry) for entry in dirty])
        wrote = True
    if books.effects.transitions:
        connection.execute(insert(schema.transition), books.effects.transitions)
        wrote = True
    if books.changed_workers:
        for chunk in chunks(books.changed_workers):
            connection.execute(delete(schema.worker).where(schema.worker.c.id.in_(chunk)))
        rows = [_worker_row(worker) for worker in books.changed_workers.values() if worker]
        if rows:
            connection.execute(insert(schema.worker), rows)
        wrote = True
    for ids in chunks(books.deleted.values()):
        connection.execute(delete(schema.dependency).where(schema.dependency.c.child_id.in_(ids)))
        connection.execute(delete(schema.bundle).where(_BUNDLE.id.in_(ids)))
        wrote = True
    return wrote


def bundle_row(entry: Entry) -> dict[str, Any]:
    """Every column of a bundle."""
    asked = entry.resources
    return {
        "id": entry.id,
        "uuid": entry.uuid,
        "owner_id": entry.owner_id,
        "bundle_type": entry.bundle_type,
        "command": entry.command,
        "args": entry.args,
        "created": entry.created,
        "fingerprint": entry.fingerprint,
        "cpus": asked.cpus,
        "gpus": asked.gpus,
        "memory_bytes": asked.memory_bytes,
        "disk_bytes": asked.disk_bytes,
        "time_seconds": asked.time_seconds,
        "queue": asked.queue,
        **dict(_variable_columns(entry)),
    }


def _changes(entry: Entry) -> dict[str, Any]:
    changes = {f"new_{name}": value for name, value in _variable_columns(entry)}
    changes["key"] = entry.id
    return changes


def _variable_columns(entry: Entry) -> Iterator[tuple[str, Any]]:
    yield "name", entry.name
    yield "state", str(entry.state)
    yield "metadata", orjson.dumps(entry.metadata).decode()
    yield "claim", entry.claim
    yield "worker_id", entry.worker_id
    yield "session", entry.session
    yield "kill_message", entry.kill_message
    yield "staged_status", entry.staged_status
    yield "location", entry.location
    yield "is_directory", entry.is_directory
    yield "size_bytes", entry.size_bytes


def _worker_row(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "user_id": worker.user_id,
        "token_digest": worker.token_digest,
        "is_live": worker.is_live,
        "session": worker.session,
        "former_sessions": orjson.dumps(worker.former_sessions).decode(),
        "facts": orjson.dumps(worker.facts).decode(),
        "seen": worker.seen,
        "drain_reason": worker.drain_reason,
    }
