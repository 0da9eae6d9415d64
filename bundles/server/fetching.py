"""Contents held while they are read: fetched before if need be, once for all who want them. Lives
in the event loop; threads of its own do the fetching, so that nobody else waits behind it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from bundles.errors import DiskFull, ServerFault
from bundles.server.store import Store, StoreFault

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 4
PATIENCE_SECONDS = 30.0
"""How long a reader waits for a fetch before it is told to come again: less than clients wait for
an answer. The fetch goes on."""


class Fetching:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        self._fetches: dict[str, asyncio.Future[None]] = {}

    async def hold(self, location: str) -> Path:
        """As the store's own, but that it is there. Raises NotFound, and ServerFault, also when it
        takes long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        while (root := self._store.hold(location)) is None:
            fetch = self._fetches.get(location) or self._begin(location)
            await asyncio.wait([fetch], timeout=max(0.0, deadline - loop.time()))
            if not fetch.done():
                raise ServerFault("these contents are on their way from the store: try again")
            fetch.result()
        return root

    def close(self) -> None:
        """Blocks until the store has ended what it was asked."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin(self, location: str) -> asyncio.Future[None]:
        fetch = asyncio.get_running_loop().run_in_executor(
            self._threads, guarded, lambda: self._store.fetch(location)
        )
        self._fetches[location] = fetch
        fetch.add_done_callback(lambda fetch: self._end(location, fetch))
        return fetch

    def _end(self, location: str, fetch: asyncio.Future[None]) -> None:
        del self._fetches[location]
        if not fetch.cancelled():
            fetch.exception()  # those who wait raise it, if there still are any


def guarded(job: Callable[[], T]) -> T:
    """What a job with a store returns; what goes wrong as a ServerFault, and in the log."""
    try:
        return job()
    except StoreFault as error:
        log.error("%s", error.details)
        raise
    except OSError as error:
        raise disk_fault(error) from error


def disk_fault(error: OSError) -> ServerFault:
    """The sentence for an error of the server's disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the server's disk is full: nothing was kept, try again when there is room")
    return ServerFault(f"the server's disk failed ({error.strerror or error}): try again")
