"""One server from its start to its end: the lock, the socket, the database, the event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bundles.errors import ServerFault, UsageError
from bundles.home import Home
from bundles.server import queries, registry
from bundles.server.books import Clock
from bundles.server.connection import Connection
from bundles.server.database import Database
from bundles.server.endpoints import (
    bundles,
    changes,
    contents,
    health,
    leases,
    people,
    workers,
)
from bundles.server.places import open_store
from bundles.server.service import Service
from bundles.server.store import Store, StoreFault

log = logging.getLogger(__name__)

FEATURES = "batch, changes, checkout, claims, drain, leases, resume, shapes, tokens"
KEEP_ALIVE_SECONDS = 360
"""Longer than clients, and load balancers before us, keep idle connections, so that it is they who
close them. The one of terraform/aws waits as long as clients do for an upload, 300 s."""
ENDING_SECONDS = 1
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. ``port`` 0: any that is free; ``database_url`` None: SQLite in the home;
    ``contents`` as open_store takes it; ``given_token``: the administrator's, besides the home's.
    """

    home: Home
    host: str
    port: int
    database_url: str | None = None
    contents: str | None = None
    contents_cache_bytes: int | None = None
    given_token: str | None = field(default=None, repr=False)
    worker_timeout_seconds: float = 60.0
    max_losses: int = 10


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``announce`` gets the address once requests are answered.

    Raises UsageError and ServerFault when it cannot be started.
    """
    given = registry.check_given(settings.given_token) if settings.given_token is not None else None
    root = settings.home.create()
    store = open_store(settings.contents, settings.contents_cache_bytes, root)
    lock = FileLock(root / "server.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ServerFault(
            f"another server works over the home directory {root}, at {settings.home.address()}: "
            "use that one, or give this one its own --home"
        ) from None
    with lock:
        listener = _listen(settings.host, settings.port)
        try:
            _serve(settings, store, given, listener, announce)
        finally:
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServerFault(
                f"the port {port} of {host} is in use: give another with --port, or 0 for any"
            ) from None
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}"
        ) from None
    return listener


def _serve(
    settings: Settings,
    store: Store,
    given_token: str | None,
    listener: socket.socket,
    announce: Callable[[str], None],
) -> None:
    home, clock = settings.home, Clock()
    database = Database(settings.database_url, home.path)
    try:
        database.migrate()
        registry.bootstrap(database.writer(), home.token_path, clock.wall(), given_token)
        with database.read() as connection:
            identity = queries.identity(connection)
        try:
            store.prepare(identity)
        except StoreFault as fault:
            raise ServerFault(fault.details) from fault
    except BaseException:
        store.close()
        database.close()
        raise
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def on_start() -> None:
        registry.write_private(home.address_path, address + "\n")
        announce(address)

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(database, store, clock, settings, listener, on_start))


async def _run(
    database: Database,
    store: Store,
    clock: Clock,
    settings: Settings,
    listener: socket.socket,
    on_start: Callable[[], None],
) -> None:
    service = Service(
        database,
        store,
        worker_timeout_seconds=settings.worker_timeout_seconds,
        max_losses=settings.max_losses,
        clock=clock,
    )
    try:
        await service.start()
        config = uvicorn.Config(
            make_application(service),
            http=Connection,
            ws="websockets-sansio",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            server_header=False,
            date_header=False,  # see Connection
            headers=[("Bundles-Features", FEATURES)],
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=ENDING_SECONDS,
        )
        server = _Server(config, service, on_start)
        await server.serve(sockets=[listener])
    finally:
        await service.stop()


def make_application(service: Service) -> Starlette:
    """Every route; what is not one of them is answered by a sentence."""
    routes = [
        *workers.routes(service),
        *contents.routes(service),
        *changes.routes(service),
        *bundles.routes(service),
        *leases.routes(service),
        *people.routes(service),
        *health.routes(service),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={404: _unknown_path, 405: _unknown_method},
    )


async def _unknown_path(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"there is nothing at {request.url.path}", 404)


async def _unknown_method(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{request.method} is not possible at {request.url.path}", 405)


class _Server(uvicorn.Server):
    """uvicorn without its clock: it ends by an event instead of looking ten times a second."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_start = on_start

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        self._ended = ended
        await self._serve(sockets)

    async def main_loop(self) -> None:
        self._on_start()
        await self._ended.wait()
        self._service.end_waits()
