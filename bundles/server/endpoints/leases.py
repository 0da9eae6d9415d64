"""Leases, as docs/protocol.md has them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from bundles.server import leases
from bundles.server.accounts import Caller
from bundles.server.rendering import document
from bundles.server.requests import HeldLeases, WantedLeases, parse
from bundles.server.service import Service, empty, read_json, reply, route


def routes(service: Service) -> list[BaseRoute]:
    return [
        route(service, "POST", "/leases", _acquire),
        route(service, "POST", "/leases/renew", _renew),
        route(service, "POST", "/leases/release", _release),
    ]


async def _acquire(service: Service, request: Request, caller: Caller) -> Response:
    wanted = parse(WantedLeases, await read_json(request))
    deadline = service.clock.monotonic() + wanted.wait_seconds
    while True:
        rings = service.lease_bell.rings
        try:
            fences = await service.act(
                lambda books: leases.acquire(
                    books, caller, wanted.names, wanted.holder, wanted.ttl_seconds
                )
            )
        except leases.Held as held:
            left = deadline - service.clock.monotonic()
            if left <= 0 or service.lease_bell.is_closed:
                raise
            await service.lease_bell.wait(rings, min(left, held.seconds))
            if await request.is_disconnected():
                return empty()  # nobody would renew what they do not know of
        else:
            return reply(document({"type": "leases", "attributes": {"fences": fences}}))


async def _renew(service: Service, request: Request, caller: Caller) -> Response:
    held = parse(HeldLeases, await read_json(request))
    await service.act(lambda books: leases.renew(books, caller, held.holder, held.fences))
    return empty()


async def _release(service: Service, request: Request, caller: Caller) -> Response:
    held = parse(HeldLeases, await read_json(request))
    await service.act(lambda books: leases.release(books, caller, held.holder, held.fences))
    return empty()
