"""The one thread that changes anything: it takes operations in order and commits them in batches.

Whatever waits when it looks is done in one transaction, so a commit is paid once for many. An
operation that is refused (a BundlesError) has changed nothing. When the database fails, all of the
batch is rolled back, those who asked are told to try again, and the books are read anew.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from bundles.errors import BundlesError, ServerFault
from bundles.server.accounts import Accounts
from bundles.server.books import Books, Clock
from bundles.server.database import Database, first_line
from bundles.server.entries import Effects
from bundles.server.records import read_books, write_batch

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_OPERATIONS = 1000


@dataclass(slots=True)
class _Task:
    operation: Callable[[Books], Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Outcome:
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Desk:
    """Takes operations from the event loop that it was started in.

    ``publish`` is called in that loop with what a batch changed, before those who asked for it
    are answered.
    """

    def __init__(
        self,
        database: Database,
        publish: Callable[[Effects], None],
        *,
        clock: Clock | None = None,
        worker_timeout_seconds: float = 60.0,
        max_losses: int,
    ) -> None:
        self._database = database
        self._publish = publish
        self._clock = clock or Clock()
        self._worker_timeout_seconds = worker_timeout_seconds
        self._max_losses = max_losses
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._books: Books | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="desk")
        self.accounts = Accounts()
        """As last committed; other threads look things up in it and change nothing."""
        self.live: dict[str, dict[str, Any]] = {}
        """The latest figures of running bundles, by uuid; other threads only look up."""

    def start(self) -> None:
        """Read the books and begin. Raises ServerFault when the database does not allow it."""
        self._loop = asyncio.get_running_loop()
        try:
            self._open_books()
        except SQLAlchemyError as error:
            raise ServerFault(f"the database cannot be used: {first_line(error)}") from error
        self._thread.start()

    def stop(self) -> None:
        """Do what was asked until now and end. Blocks until it has."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    async def do(self, operation: Callable[[Books], T]) -> T:
        """Have an operation done and committed. Raises what it raises, or ServerFault."""
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Task(operation, future))
        return await future

    # In the thread

    def _run(self) -> None:
        ending = False
        while not ending:
            batch: list[_Task] = []
            timeout = self._books.seconds_to_deadline() if self._books else None
            try:
                task = (
                    self._queue.get(timeout=timeout) if timeout != 0 else self._queue.get_nowait()
                )
                while True:
                    if task is None:
                        ending = True
                        break
                    batch.append(task)
                    if len(batch) >= BATCH_OPERATIONS:
                        break
                    task = self._queue.get_nowait()
            except queue.Empty:
                pass
            if batch or not ending:
                self._work(batch)
        self._database.drop_writer()

    def _work(self, batch: list[_Task]) -> None:
        try:
            outcomes = self._attempt(batch)
        except Exception as error:
            self._abandon(error)
            if len(batch) > 1 and not _is_away(error):
                # One of them is at fault: the others must not suffer for it.
                for task in batch:
                    self._work([task])
                return
            sentence = _sentence(error)
            self._tell([_Outcome(task.future, error=ServerFault(sentence)) for task in batch], None)
        else:
            self._tell(*outcomes)

    def _attempt(self, batch: list[_Task]) -> tuple[list[_Outcome], Effects]:
        books = self._books or self._open_books()
        books.tick()
        outcomes: list[_Outcome] = []
        for task in batch:
            try:
                outcomes.append(_Outcome(task.future, task.operation(books)))
            except BundlesError as error:
                outcomes.append(_Outcome(task.future, error=error))
        books.tend()
        connection = self._database.writer()
        write_batch(connection, books)
        connection.commit()
        effects = books.close_batch()
        self.accounts, self.live = books.accounts, books.live
        return outcomes, effects

    def _open_books(self) -> Books:
        connection = self._database.writer()
        books = read_books(connection, self._clock, self._worker_timeout_seconds, self._max_losses)
        connection.rollback()
        self._books = books
        self.accounts, self.live = books.accounts, books.live
        return books

    def _abandon(self, error: Exception) -> None:
        if _is_away(error):
            log.error("%s", _sentence(error))
        else:
            log.error("an operation failed unexpectedly", exc_info=error)
        self._books = None
        self._database.drop_writer()

    def _tell(self, outcomes: list[_Outcome], effects: Effects | None) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._settle, outcomes, effects)
        except RuntimeError:  # the loop is closed: nobody waits for the answer any more
            log.debug("answers after the end were dropped")

    # In the event loop

    def _settle(self, outcomes: list[_Outcome], effects: Effects | None) -> None:
        if effects is not None:
            self._publish(effects)
        for outcome in outcomes:
            if outcome.future.done():  # whoever asked has gone
                continue
            if outcome.error is not None:
                outcome.future.set_exception(outcome.error)
            else:
                outcome.future.set_result(outcome.result)


def _is_away(error: Exception) -> bool:
    """Whether it is the database that failed, rather than what was asked of it."""
    if isinstance(error, (OperationalError, InterfaceError, OSError, ServerFault)):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _sentence(error: Exception) -> str:
    if isinstance(error, BundlesError):
        return str(error)
    if isinstance(error, SQLAlchemyError):
        return f"the database failed ({first_line(error)}): nothing was changed, try again"
    return "the server failed unexpectedly: nothing was changed, its log says more"
