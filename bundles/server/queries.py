"""Everything that is read for a reply: searches, one bundle, transitions. Changes nothing.

Each function takes a connection of the reading pool and blocks; the application calls it in a
thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    Text,
    and_,
    cast,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from bundles.errors import NotFound, UsageError
from bundles.model import FINAL_STATES, Dependency, State, queue_tag
from bundles.server import schema
from bundles.server.accounts import ROOT_ID, Accounts, Caller
from bundles.server.keywords import Condition, Search
from bundles.server.records import as_mapping, chunks, read_dependencies

_BUNDLE = schema.bundle.c

_COLUMNS: dict[str, ColumnElement[Any]] = {
    "bundle_type": _BUNDLE.bundle_type,
    "id": _BUNDLE.id,
    "uuid": _BUNDLE.uuid,
    "state": _BUNDLE.state,
    "command": _BUNDLE.command,
    "owner_id": _BUNDLE.owner_id,
    "name": _BUNDLE.name,
    "staged_status": _BUNDLE.staged_status,
    "worker_id": _BUNDLE.worker_id,
    "created": _BUNDLE.created,
}
_NUMBERS = frozenset({"id", "created"})

_LIVE_STATES = [str(state) for state in State if state not in FINAL_STATES]


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of bundles with what is shown beside them."""

    rows: Sequence[Mapping[str, Any]]
    dependencies: Mapping[int, Sequence[Dependency]]
    parent_states: Mapping[str, str]


def find(connection: Connection, accounts: Accounts, caller: Caller, search: Search) -> Found:
    """The bundles that the caller may see and the keywords select: all, unless there is a limit."""
    query = _ordered(select(schema.bundle).where(_where(connection, accounts, caller, search)),
                     connection, search)  # fmt: skip
    if search.limit is not None:
        query = query.limit(search.limit)
    if search.offset:
        # SQLite takes an OFFSET only after a LIMIT.
        query = query.limit(search.limit if search.limit is not None else 2**62)
        query = query.offset(search.offset)
    return _complete(connection, [as_mapping(row) for row in connection.execute(query)])


def find_uuids(connection: Connection, caller: Caller, uuids: Sequence[str]) -> Found:
    """The bundles of these uuids, in that order. Raises NotFound that names the first missing."""
    by_uuid: dict[str, Mapping[str, Any]] = {}
    for chunk in chunks(dict.fromkeys(uuids)):
        query = select(schema.bundle).where(_BUNDLE.uuid.in_(chunk))
        by_uuid.update((row.uuid, as_mapping(row)) for row in connection.execute(query))
    rows = []
    for uuid in uuids:
        row = by_uuid.get(uuid)
        if row is None or not caller.may_use(row["owner_id"]):
            raise NotFound(f"there is no bundle {uuid} of yours")
        rows.append(row)
    return _complete(connection, rows)


def find_same(
    connection: Connection, caller: Caller, command: str, dependencies: Iterable[tuple[str, str]]
) -> Found:
    """The caller's runs of this very command over these very (child path, parent uuid)s, in the
    order of creation. Failed and killed ones as well: whoever reuses one looks at its state."""
    wanted = set(dependencies)
    query = (
        select(schema.bundle)
        .where(_BUNDLE.command == command, _BUNDLE.owner_id == caller.id)
        .where(_BUNDLE.bundle_type == "run")
        .order_by(_BUNDLE.id)
    )
    found = _complete(connection, [as_mapping(row) for row in connection.execute(query)])
    rows = [
        row
        for row in found.rows
        if {(d.child_path, d.parent_uuid) for d in found.dependencies.get(row["id"], ())} == wanted
    ]
    return Found(rows, found.dependencies, found.parent_states)


def contents_row(connection: Connection, uuid: str) -> Mapping[str, Any] | None:
    """What is needed to read a bundle's contents."""
    row = connection.execute(
        select(
            _BUNDLE.uuid, _BUNDLE.owner_id, _BUNDLE.state, _BUNDLE.location, _BUNDLE.is_directory,
            _BUNDLE.worker_id, _BUNDLE.claim, _BUNDLE.name, _BUNDLE.size_bytes,
            _BUNDLE.bundle_type,
        ).where(_BUNDLE.uuid == uuid)
    ).first()  # fmt: skip
    return None if row is None else as_mapping(row)


def count(connection: Connection, accounts: Accounts, caller: Caller, search: Search) -> int:
    """How many the keywords select, within their limit and offset if they have any."""
    where = _where(connection, accounts, caller, search)
    total = connection.scalar(select(func.count()).select_from(schema.bundle).where(where)) or 0
    total = max(0, total - search.offset)
    return total if search.limit is None else min(total, search.limit)


def total(connection: Connection, accounts: Accounts, caller: Caller, search: Search) -> float:
    """The sum of a numeric field over what the keywords select."""
    where = _where(connection, accounts, caller, search)
    column = _COLUMNS.get(search.sum_key)
    if column is None:
        column = _metadata_text(connection, search.sum_key)
    try:
        return connection.scalar(select(func.sum(cast(column, Float))).where(where)) or 0
    except Exception as error:  # PostgreSQL says so of text, SQLite counts it as 0
        raise UsageError(f"{search.sum_key} is not a number in every bundle") from error


def shapes(
    connection: Connection, accounts: Accounts, caller: Caller, search: Search
) -> list[dict[str, Any]]:
    """What the selected bundles ask for, grouped and counted (docs/protocol.md), oldest first."""
    asked = (
        _BUNDLE.cpus,
        _BUNDLE.gpus,
        _BUNDLE.memory_bytes,
        _BUNDLE.disk_bytes,
        _BUNDLE.time_seconds,
        _BUNDLE.queue,
    )
    oldest = func.min(_BUNDLE.created).label("oldest")
    query = (
        select(*asked, func.count().label("number"), oldest)
        .where(_where(connection, accounts, caller, search))
        .group_by(*asked)
        .order_by(oldest)
    )
    return [
        {
            "cpus": row.cpus,
            "gpus": row.gpus,
            "memory_bytes": row.memory_bytes,
            "disk_bytes": row.disk_bytes,
            "time_seconds": row.time_seconds,
            "queue": queue_tag(row.queue),
            "count": row.number,
            "oldest": row.oldest,
        }
        for row in connection.execute(query)
    ]


def transitions(
    connection: Connection,
    caller: Caller,
    after: int,
    states: Sequence[str],
    limit: int,
    uuid: str | None = None,
) -> list[Mapping[str, Any]]:
    """Those after a cursor that the caller may see, oldest first; of one bundle, or of all."""
    table = schema.transition.c
    query = select(schema.transition).where(table.id > after).order_by(table.id).limit(limit)
    if not caller.is_root:
        query = query.where(table.owner_id == caller.id)
    if states:
        query = query.where(table.to_state.in_(states))
    if uuid is not None:
        query = query.where(table.uuid == uuid)
    return [as_mapping(row) for row in connection.execute(query)]


def first_transition(connection: Connection) -> int | None:
    """The id with which this database's history begins."""
    first: int | None = connection.scalar(select(func.min(schema.transition.c.id)))
    return first


def identity(connection: Connection) -> str:
    """What this database is known by, and none but a copy of it: when its admin was made."""
    query = select(schema.user.c.created).where(schema.user.c.id == ROOT_ID)
    return f"{connection.execute(query).scalar_one():.6f}"


def locations(connection: Connection) -> set[str]:
    """Every location in the store that a bundle refers to."""
    query = select(_BUNDLE.location).where(_BUNDLE.location.is_not(None))
    return set(connection.scalars(query))


# How


def _complete(connection: Connection, rows: list[Mapping[str, Any]]) -> Found:
    dependencies: dict[int, Sequence[Dependency]] = {}
    for ids in chunks(row["id"] for row in rows):
        dependencies |= read_dependencies(connection, ids)
    parents = {d.parent_uuid for of_one in dependencies.values() for d in of_one}
    states: dict[str, str] = {row["uuid"]: row["state"] for row in rows}
    for chunk in chunks(parents - states.keys()):
        query = select(_BUNDLE.uuid, _BUNDLE.state).where(_BUNDLE.uuid.in_(chunk))
        states.update((row.uuid, row.state) for row in connection.execute(query))
    return Found(rows, dependencies, states)


def _where(
    connection: Connection, accounts: Accounts, caller: Caller, search: Search
) -> ColumnElement[bool]:
    clauses: list[ColumnElement[bool]] = []
    if search.is_mine or not caller.is_root:
        clauses.append(_BUNDLE.owner_id == caller.id)
    if search.is_nothing:
        clauses.append(false())
    if search.owners is not None:
        ids = [user.id for name in search.owners if (user := accounts.by_name.get(name))]
        clauses.append(_BUNDLE.owner_id.in_(ids))
    if search.created_before is not None:
        clauses.append(_BUNDLE.created < search.created_before)
    if search.created_after is not None:
        clauses.append(_BUNDLE.created >= search.created_after)
    clauses.extend(_condition(connection, condition) for condition in search.conditions)
    for word in search.words:
        if "%" in word or ".*" in word:
            pattern = word.replace(".*", "%")
            clauses.append(or_(_BUNDLE.uuid.like(pattern), _BUNDLE.name.like(pattern)))
        else:
            clauses.append(
                or_(
                    _BUNDLE.uuid.startswith(word, autoescape=True),
                    _BUNDLE.name.contains(word, autoescape=True),
                )
            )
    return and_(*clauses) if clauses else schema.bundle.c.id.is_not(None)


def _condition(connection: Connection, condition: Condition) -> ColumnElement[bool]:
    if condition.key in ("dependency", "dependencies"):
        table = schema.dependency.c
        return _BUNDLE.id.in_(select(table.child_id).where(table.parent_uuid.in_(condition.values)))
    column = _COLUMNS.get(condition.key)
    if column is None:
        column = _metadata_text(connection, condition.key)
        if connection.dialect.name == "sqlite":
            return _any_of(
                column, condition, {"true": "1", "True": "1", "false": "0", "False": "0"}
            )
        return _any_of(column, condition, {"True": "true", "False": "false"})
    if condition.key in _NUMBERS:
        try:
            numbers = [float(value) for value in condition.values]
        except ValueError:
            raise UsageError(f"{condition.key} is a number, not {condition.values[0]!r}") from None
        return column.in_(numbers)
    return _any_of(column, condition, {})


def _any_of(
    column: ColumnElement[Any], condition: Condition, also: Mapping[str, str]
) -> ColumnElement[bool]:
    if condition.is_pattern:
        return column.like(condition.values[0])
    values = [*condition.values, *(also[value] for value in condition.values if value in also)]
    if "" in values:  # a field that is not there is as good as an empty one
        return or_(column.in_(values), column.is_(None))
    if len(values) == 1:  # SQLite takes schema.staged for =, not for IN
        return column == values[0]
    return column.in_(values)


def _metadata_text(connection: Connection, key: str) -> ColumnElement[Any]:
    if connection.dialect.name == "sqlite":
        return cast(func.json_extract(_BUNDLE.metadata, _json_path(key)), Text)
    text: ColumnElement[Any] = cast(_BUNDLE.metadata, JSONB)[key].astext
    return text


def _json_path(key: str) -> str:
    return f'$."{key}"'


def _ordered(query: Select[Any], connection: Connection, search: Search) -> Select[Any]:
    if search.sort_key is None:
        return query.order_by(_BUNDLE.id)
    column = _COLUMNS.get(search.sort_key)
    if column is None:
        if connection.dialect.name == "sqlite":
            column = func.json_extract(_BUNDLE.metadata, _json_path(search.sort_key))
        else:
            column = cast(_BUNDLE.metadata, JSONB)[search.sort_key]
    number = _BUNDLE.id
    if search.is_descending:
        return query.order_by(column.desc(), number.desc())
    return query.order_by(column, number)
