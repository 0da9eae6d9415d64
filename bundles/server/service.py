"""What every endpoint works with: the desk, the readers, the mailroom, the store; who is calling,
what came in the body, and how errors become replies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bundles.errors import (
    BundlesError,
    NotAuthenticated,
    NotPermitted,
    ServerFault,
    TooLarge,
    UsageError,
)
from bundles.server import pruning, queries
from bundles.server.accounts import (
    WORKER_RENEWAL_SECONDS,
    WORKER_SECONDS,
    Caller,
    Token,
)
from bundles.server.bell import Bell
from bundles.server.books import Books, Clock
from bundles.server.database import Database, first_line
from bundles.server.desk import Desk
from bundles.server.entries import Effects, Letter
from bundles.server.feed import Feed
from bundles.server.fetching import Fetching, guarded
from bundles.server.mailroom import Mailroom
from bundles.server.registry import renew_token
from bundles.server.sockets import Sockets
from bundles.server.store import SharedStore, Store, delete_all, sweep

log = logging.getLogger(__name__)

T = TypeVar("T")

JSON_LIMIT_BYTES = 64 * 1024**2
READING_THREADS = 8
DISK_THREADS = 8
STORING_THREADS = 8
RETRY_AFTER_SECONDS = "5"
PRUNING_SECONDS = 600.0
"""How often it is looked whether transitions may go."""
PRUNING_PAUSE_SECONDS = 0.2
"""Between two batches of them, so that others find the time to write."""
BACKGROUND_SECONDS = 1.0
"""How long a server that ends waits for what it does in the background; the next start goes on."""

Handler = Callable[["Service", Request, Caller], Awaitable[Response]]


class Service:
    """One server's parts, put together in its event loop."""

    def __init__(
        self,
        database: Database,
        store: Store,
        *,
        worker_timeout_seconds: float,
        max_losses: int,
        clock: Clock,
    ) -> None:
        self.database = database
        self.store = store
        self.shared_store = store if isinstance(store, SharedStore) else None
        """None where workers cannot have the store's file system."""
        self.clock = clock
        self.worker_timeout_seconds = worker_timeout_seconds
        self.mailroom = Mailroom()
        self.sockets = Sockets(self.mailroom, first_number=int(clock.wall()))
        self.desk = Desk(
            database,
            self._publish,
            clock=clock,
            worker_timeout_seconds=worker_timeout_seconds,
            max_losses=max_losses,
        )
        self.feed = Feed()
        self.lease_bell = Bell()
        """Rings when a lease was given back."""
        self.history_start = 0
        self._readers = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="reader")
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self._storekeepers = ThreadPoolExecutor(STORING_THREADS, thread_name_prefix="store")
        self._fetching = Fetching(store)
        self._background: set[asyncio.Future[Any]] = set()
        self._ending = Bell()

    async def start(self) -> None:
        """Read the books and begin to work. Raises ServerFault."""
        self.desk.start()
        # Whatever the books say at once (letters that were not acknowledged) is told now.
        next_id = await self.desk.do(lambda books: books.next_transition_id)
        first = await self.read(queries.first_transition)
        self.history_start = next_id if first is None else first
        self.feed.begin(next_id - 1)
        # Listed before anyone can upload: only what an earlier server left is a candidate.
        candidates = await self.store_io(lambda: list(self.store.list()))
        if candidates:
            self._in_background(self._sweep(candidates))
        self._in_background(self._prune())

    def end_waits(self) -> None:
        """Answer everyone who waits for something: the server is about to end."""
        self._ending.close()
        self.mailroom.close()
        self.feed.close()
        self.lease_bell.close()
        self.sockets.close()

    async def stop(self) -> None:
        """End the desk once it has done what it was asked."""
        if self._background:
            await asyncio.wait(self._background, timeout=BACKGROUND_SECONDS)
        await asyncio.to_thread(self.desk.stop)
        await asyncio.to_thread(self.store.close)
        await asyncio.to_thread(self._fetching.close)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._storekeepers.shutdown(wait=True, cancel_futures=True)
        self._disk.shutdown(wait=True, cancel_futures=True)
        self.database.close()

    def _publish(self, effects: Effects) -> None:
        for worker_id, session in effects.superseded:
            self.mailroom.supersede(worker_id, session)
        for worker_id, letter_id in effects.recalls:
            self.mailroom.recall(worker_id, letter_id)
        for letter in effects.letters:
            self._address(letter)
            self.mailroom.post(letter)
        self.feed.publish(effects.transitions)
        if effects.is_lease_free:
            self.lease_bell.ring()
        if log.isEnabledFor(logging.DEBUG):
            for change in effects.transitions:
                log.debug(
                    "%s %s → %s %s",
                    change["uuid"],
                    change["from_state"],
                    change["to_state"],
                    change["reason"],
                )
        if effects.discards:
            locations = list(effects.discards)
            self._in_background(self.store_io(lambda: delete_all(self.store, locations)))

    def _address(self, letter: Letter) -> None:
        """A worker that shares the file system is told where everything lies. It waits for the
        directory of its run."""
        bundle = letter.message.get("bundle") or {}
        location = bundle.get("location")
        store = self.shared_store
        if location is None or store is None:
            return
        for part in (bundle, *bundle["dependencies"]):
            if part["location"] is not None:
                part["location"] = store.address(part["location"])
        self._in_background(self.disk_io(lambda: store.lay_out(location)))

    def _in_background(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._end_background)

    def _end_background(self, task: asyncio.Future[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("work in the background failed: %s", task.exception())

    async def _sweep(self, candidates: list[str]) -> None:
        referenced = await self.read(queries.locations)
        count = await self.store_io(lambda: sweep(self.store, candidates, referenced))
        if count:
            log.info("removed %d contents that belonged to no bundle", count)

    async def _prune(self) -> None:
        while not self._ending.is_closed:
            try:
                last_id = await self.read(pruning.find_batch, self.clock.wall())
                if last_id is not None:
                    # Before they are gone: nobody is to read on where some are missing.
                    self.history_start = last_id + 1
                    await self.act(partial(pruning.prune, last_id=last_id))
            except ServerFault as error:
                log.debug("no transitions were pruned: %s", error)
                last_id = None
            seconds = PRUNING_SECONDS if last_id is None else PRUNING_PAUSE_SECONDS
            await self._ending.wait(self._ending.rings, seconds)

    # Threads

    def check_database(self) -> None:
        """Read something. Blocks. Raises ServerFault when the database fails."""
        self._reading(queries.first_transition)

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function(connection, *arguments)`` over a connection that reads.

        Raises what it raises, and ServerFault when the database fails.
        """
        return await self._in_thread(self._readers, lambda: self._reading(function, *arguments))

    def _reading(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            with self.database.read() as connection:
                return function(connection, *arguments)
        except SQLAlchemyError as error:
            raise ServerFault(f"the database failed ({first_line(error)}): try again") from error

    async def store_io(self, job: Callable[[], T]) -> T:
        """Have the store do something that may take long. Raises DiskFull, or ServerFault for what
        else fails."""
        return await self._in_thread(self._storekeepers, lambda: guarded(job))

    async def disk_io(self, job: Callable[[], T]) -> T:
        """Do something with files of contents that waits for nothing but this server's disk: nor
        for those whose store is away. Raises as store_io."""
        return await self._in_thread(self._disk, lambda: guarded(job))

    async def hold(self, location: str) -> Path:
        """The contents there, which stay until ``release``. Raises NotFound, ServerFault."""
        return await self._fetching.hold(location)

    def release(self, location: str) -> None:
        """Undo one ``hold``, in the background."""
        self._in_background(self.disk_io(lambda: self.store.release(location)))

    async def think(self, job: Callable[[], T]) -> T:
        """Do something that takes long but waits for nothing, while others are answered."""
        return await self._in_thread(self._readers, job)

    async def _in_thread(self, executor: Executor, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, job)

    # Who calls

    async def caller(self, request: Request, *, is_worker_allowed: bool) -> Caller:
        """Raises NotAuthenticated, and NotPermitted for a worker's token where none may be used."""
        header = request.headers.get("authorization", "")
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise NotAuthenticated("who are you? send an Authorization header with a bearer token")
        accounts = self.desk.accounts
        now = self.clock.wall()
        token = accounts.bearer(text.strip(), now)
        user = accounts.users.get(token.user_id) if token else None
        if token is None or user is None:
            raise NotAuthenticated("the token is wrong or has expired: get a new one")
        is_worker = token.kind == "worker"
        if is_worker:
            await self._renew(token, now)
            if not is_worker_allowed:
                raise NotPermitted("a worker's token cannot do this: it needs a user's")
        return Caller(user, is_worker, token.digest)

    async def _renew(self, token: Token, now: float) -> None:
        if token.expires is None or token.expires - now > WORKER_SECONDS - WORKER_RENEWAL_SECONDS:
            return
        await self.desk.do(lambda books: renew_token(books, token.digest, now + WORKER_SECONDS))

    async def act(self, operation: Callable[[Books], T]) -> T:
        """Have the desk do something."""
        return await self.desk.do(operation)


# Bodies and replies


def reply(document: Any, status: int = 200) -> Response:
    """JSON with the content type that CodaLab's worker insists on."""
    return Response(orjson.dumps(document), status, media_type="application/json")


def empty() -> Response:
    return Response(b"", 200)


async def read_body(request: Request, limit_bytes: int = JSON_LIMIT_BYTES) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be."""
    sentence = f"the request is larger than {limit_bytes // 1024**2} MiB: send it in parts"
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit_bytes:
        raise TooLarge(sentence)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TooLarge(sentence)
    return bytes(body)


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises UsageError, TooLarge."""
    return parse_json(await read_body(request))


def parse_json(body: bytes) -> Any:
    """Raises UsageError for what is not JSON, or holds a NUL, which no database or path takes."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if b"\\u0000" in body and _has_nul(document):
        raise UsageError("a NUL character (\\u0000) is in one of the strings: leave it out")
    return document


def _has_nul(document: Any) -> bool:
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            if "\0" in value:
                return True
        elif isinstance(value, Mapping):
            stack.extend(value)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return False


def error_reply(error: BundlesError) -> Response:
    """The status and one sentence."""
    headers = {}
    if isinstance(error, TooLarge):
        headers["Connection"] = "close"  # the rest of the body is not wanted
    if error.status == ServerFault.status:
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    sentence = " ".join(str(error).split()) or type(error).__name__
    return PlainTextResponse(sentence, error.status or 500, headers)


def route(
    service: Service,
    methods: str,
    path: str,
    handler: Handler,
    *,
    is_worker_allowed: bool = False,
) -> Route:
    """A route whose handler is called with the service, the request and who sent it."""

    async def endpoint(request: Request) -> Response:
        try:
            caller = await service.caller(request, is_worker_allowed=is_worker_allowed)
            return await handler(service, request, caller)
        except BundlesError as error:
            return error_reply(error)
        except ClientDisconnect:
            return empty()  # nobody reads it
        except Exception:
            log.exception("%s %s failed unexpectedly", request.method, request.url.path)
            return error_reply(BundlesError("the server failed unexpectedly: its log says more"))

    return Route("/rest" + path, endpoint, methods=methods.split())
