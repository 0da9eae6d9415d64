"""Bundles: created, searched, shown, edited, deleted, acted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from bundles.errors import NotFound, UsageError
from bundles.model import UUID_PATTERN
from bundles.server import actions, queries
from bundles.server.accounts import Caller
from bundles.server.creation import create, draft_bundles
from bundles.server.keywords import Search, read_keywords
from bundles.server.queries import Found
from bundles.server.rendering import bundle_document, document, user_document
from bundles.server.requests import (
    Action,
    StateChange,
    attributes,
    attributes_of_one,
    parse,
)
from bundles.server.service import Service, empty, parse_json, read_body, read_json, reply, route

LARGE_BODY_BYTES = 256 * 1024
"""Bodies from here on are read in a thread, so that others are answered meanwhile."""


def routes(service: Service) -> list[BaseRoute]:
    return [
        route(service, "GET", "/bundles", _search),
        route(service, "POST", "/bundles", _create),
        route(service, "PATCH", "/bundles", _edit),
        route(service, "DELETE", "/bundles", _delete),
        route(service, "POST", "/bundle-actions", _act),
        route(service, "GET", "/bundles/{uuid}", _show),
        route(service, "POST", "/bundles/{uuid}/state", _end_upload),
    ]


def _is_true(request: Request, name: str) -> bool:
    return request.query_params.get(name, "0").lower() in ("1", "true")


async def _search(service: Service, request: Request, caller: Caller) -> Response:
    parameters = request.query_params
    if "command" in parameters:
        wanted = _read_dependencies(parameters.get("dependencies") or "[]")
        found = await service.read(queries.find_same, caller, parameters["command"], wanted)
        return _bundles_reply(service, request, found)
    specs = parameters.getlist("specs")
    if specs:
        return _bundles_reply(
            service, request, await service.read(_find_specs, service, caller, specs)
        )
    search = read_keywords(parameters.getlist("keywords"))
    accounts = service.desk.accounts
    if search.result == "count":
        result: float = await service.read(queries.count, accounts, caller, search)
        return reply(document([], result=result))
    if search.result == "sum":
        result = await service.read(queries.total, accounts, caller, search)
        return reply(document([], result=result))
    if search.result == "shapes":
        shapes = await service.read(queries.shapes, accounts, caller, search)
        return reply(document([], shapes=shapes))
    found = await service.read(queries.find, accounts, caller, search)
    return _bundles_reply(service, request, found)


def _read_dependencies(text: str) -> list[tuple[str, str]]:
    try:
        elements = orjson.loads(text)
        return [
            (element["child_path"], element["parent_uuid"])
            if isinstance(element, Mapping)
            else (str(element[0]), str(element[1]))
            for element in elements
        ]
    except (ValueError, TypeError, KeyError, IndexError):
        raise UsageError("dependencies must be a JSON list of {child_path, parent_uuid}") from None


def _find_specs(
    connection: Connection, service: Service, caller: Caller, specs: list[str]
) -> Found:
    uuids = [
        spec if UUID_PATTERN.fullmatch(spec) else _resolve(connection, service, caller, spec)
        for spec in specs
    ]
    return queries.find_uuids(connection, caller, uuids)


def _resolve(connection: Connection, service: Service, caller: Caller, spec: str) -> str:
    """The one bundle that a beginning of a uuid or a whole name stands for."""
    found = queries.find(
        connection, service.desk.accounts, caller, Search(words=(spec,), limit=100)
    )
    uuids = [
        row["uuid"]
        for row in found.rows
        if row["name"] == spec or (spec.startswith("0x") and row["uuid"].startswith(spec))
    ]
    if not uuids:
        raise NotFound(f"there is no bundle {spec} of yours")
    if len(uuids) > 1:
        raise UsageError(f"{spec!r} may be any of {len(uuids)} bundles: write more of the uuid")
    return str(uuids[0])


def _documents(service: Service, found: Found) -> list[dict[str, Any]]:
    live = service.desk.live
    return [
        bundle_document(
            row, found.dependencies.get(row["id"], ()), found.parent_states, live.get(row["uuid"])
        )
        for row in found.rows
    ]


def _bundles_reply(service: Service, request: Request, found: Found, status: int = 200) -> Response:
    return reply(document(_documents(service, found), included=_owners(service, found)), status)


def _owners(service: Service, found: Found) -> list[dict[str, Any]]:
    users = service.desk.accounts.users
    ids = sorted({row["owner_id"] for row in found.rows})
    return [user_document(users[user_id]) for user_id in ids if user_id in users]


async def _show(service: Service, request: Request, caller: Caller) -> Response:
    found = await service.read(_find_specs, service, caller, [request.path_params["uuid"]])
    return reply(document(_documents(service, found)[0], included=_owners(service, found)))


async def _create(service: Service, request: Request, caller: Caller) -> Response:
    body = await read_body(request)
    if len(body) < LARGE_BODY_BYTES:
        drafts = draft_bundles(attributes(parse_json(body), "bundles"))
    else:
        drafts = await service.think(lambda: draft_bundles(attributes(parse_json(body), "bundles")))
    wait_for_upload = _is_true(request, "wait_for_upload")
    uuids = await service.act(
        lambda books: create(books, caller, drafts, wait_for_upload=wait_for_upload)
    )

    def render(connection: Connection) -> Response:
        return _bundles_reply(service, request, queries.find_uuids(connection, caller, uuids), 200)

    return await service.read(render)


async def _edit(service: Service, request: Request, caller: Caller) -> Response:
    changes = []
    for uuid, fields in _with_ids(await read_json(request)):
        metadata = fields.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise UsageError("metadata must be a JSON object")
        other = sorted(fields.keys() - {"metadata", "uuid", "name"})
        if other:
            raise UsageError(f"{other[0]} cannot be changed: a bundle is what it was created as")
        if "name" in fields:
            metadata = {**metadata, "name": fields["name"]}
        changes.append((uuid, metadata))
    await service.act(lambda books: actions.edit(books, caller, changes))
    found = await service.read(queries.find_uuids, caller, [uuid for uuid, _ in changes])
    return _bundles_reply(service, request, found)


def _with_ids(body: Any) -> list[tuple[str, Mapping[str, Any]]]:
    data = body.get("data") if isinstance(body, Mapping) else None
    elements = data if isinstance(data, list) else [data]
    found = []
    for element in elements:
        if not isinstance(element, Mapping) or not isinstance(element.get("id"), str):
            raise UsageError('the document must be {"data": [{"type": "bundles", "id": …}]}')
        fields = element.get("attributes") or {}
        if not isinstance(fields, Mapping):
            raise UsageError("attributes must be a JSON object")
        found.append((element["id"], fields))
    return found


async def _delete(service: Service, request: Request, caller: Caller) -> Response:
    for name in ("data-only", "dry-run"):
        if _is_true(request, name):
            raise UsageError(f"{name} is not offered by this server")
    uuids = [uuid for uuid, _ in _with_ids(await read_json(request))]
    force = _is_true(request, "force")
    deleted = await service.act(lambda books: actions.delete(books, caller, uuids, force=force))
    return reply(document([{"type": "bundles", "id": uuid} for uuid in deleted]))


async def _act(service: Service, request: Request, caller: Caller) -> Response:
    asked = [
        parse(Action, found) for found in attributes(await read_json(request), "bundle-actions")
    ]
    await service.act(lambda books: actions.act(books, caller, asked))
    data = [
        {"type": "bundle-actions", "id": index, "attributes": action.model_dump()}
        for index, action in enumerate(asked)
    ]
    return reply(document(data))


async def _end_upload(service: Service, request: Request, caller: Caller) -> Response:
    change = parse(StateChange, attributes_of_one(await read_json(request), "states"))
    uuid = request.path_params["uuid"]
    await service.act(lambda books: actions.end_upload(books, caller, uuid, change))
    return empty()
