"""The change feed, as docs/protocol.md has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from bundles.errors import UsageError
from bundles.model import State
from bundles.server import queries
from bundles.server.accounts import Caller
from bundles.server.rendering import document, transition_document
from bundles.server.service import Service, reply, route

LONGEST_WAIT_SECONDS = 60.0
DEFAULT_LIMIT = 1000
LARGEST_LIMIT = 10_000


def routes(service: Service) -> list[BaseRoute]:
    return [route(service, "GET", "/changes", _changes)]


async def _changes(service: Service, request: Request, caller: Caller) -> Response:
    parameters = request.query_params
    wait_seconds = _number(parameters, "wait_seconds", 0.0, LONGEST_WAIT_SECONDS)
    limit = int(_number(parameters, "limit", DEFAULT_LIMIT, LARGEST_LIMIT)) or DEFAULT_LIMIT
    states = parameters.getlist("state")
    for state in states:
        if state not in State.__members__.values():
            raise UsageError(f"there is no state {state!r}")
    uuid = parameters.get("uuid")
    feed = service.feed
    if "after" not in parameters:
        return _reply([], feed.last_id)
    after = int(_number(parameters, "after", 0, float("inf")))
    if after > feed.last_id or _is_pruned(service, after):
        return _reply([], feed.last_id, reset=True)
    loop_end = service.clock.monotonic() + wait_seconds
    while True:
        last_id = feed.last_id
        found = await _read(service, caller, after, states, limit, uuid)
        if _is_pruned(service, after):  # while it was read
            return _reply([], feed.last_id, reset=True)
        if found:
            return _reply(found, found[-1]["id"] if len(found) >= limit else last_id)
        after = max(after, last_id)
        remaining = loop_end - service.clock.monotonic()
        if remaining <= 0 or feed.is_closed:
            return _reply([], after)
        await feed.wait(after, remaining)


def _is_pruned(service: Service, after: int) -> bool:
    """Whether the history begins later than this cursor goes on."""
    return 0 < after < service.history_start - 1


async def _read(
    service: Service,
    caller: Caller,
    after: int,
    states: Sequence[str],
    limit: int,
    uuid: str | None,
) -> list[Mapping[str, Any]]:
    recent = service.feed.recent(after) if uuid is None else None
    if recent is None:
        return await service.read(queries.transitions, caller, after, states, limit, uuid)
    chosen: list[Mapping[str, Any]] = []
    for transition in recent:
        if not caller.may_use(transition["owner_id"]):
            continue
        if states and transition["to_state"] not in states:
            continue
        chosen.append(transition)
        if len(chosen) == limit:
            break
    return chosen


def _reply(found: list[Mapping[str, Any]], cursor: int, *, reset: bool = False) -> Response:
    data = [transition_document(transition) for transition in found]
    return reply(document(data, cursor=max(cursor, data[-1]["id"] if data else 0), reset=reset))


def _number(parameters: Mapping[str, str], name: str, default: float, largest: float) -> float:
    text = parameters.get(name)
    if text is None:
        return default
    try:
        # A cursor has more digits than a float keeps.
        number: float = int(text) if text.isdigit() else float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= largest:
        raise UsageError(f"{name} is {text!r}: it must be a number from 0 to {largest:g}")
    return number
