"""One download over as many connections as it takes, where the server can go on with one.

What the bytes are for is the caller's business; so is what becomes of a download that broke off.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bundles.client import Client
from bundles.errors import ServerFault, Unreachable
from bundles.replies import Download, Mark
from worker.backoff import Backoff

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 6 * 3600.0
"""How long a download waits for a server that is away. That does not count as a try."""
CHUNK_TIMEOUT_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 15.0
FRUITLESS_CUTS = 5
"""A server that cuts so often in a row without having sent a byte will not send it."""


class Cancelled(Exception):
    """Nobody waits for the download any more."""


class CutOff(Exception):
    """The download began and broke off, and cannot be gone on with."""


class Transfer:
    """``with transfer.opened(): …`` reads the ``chunks`` once."""

    def __init__(
        self,
        client: Client,
        uuid: str,
        path: str,
        cancelled: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._uuid = uuid
        self._path = path
        self._cancelled = cancelled
        self._clock = clock
        self._connection = ExitStack()
        self._download: Download | None = None
        self.received_bytes = 0

    @property
    def size_bytes(self) -> int | None:
        """Of the contents, as soon as the server said it."""
        return self._download.size_bytes if self._download else None

    @contextmanager
    def opened(self) -> Iterator[Download]:
        """Connect. Raises Unreachable, ServerFault and the like: nothing was received."""
        with self._connection:
            yield self._connect(None)

    def chunks(self) -> Iterator[bytes]:
        """The bytes. Raises Cancelled, CutOff."""
        fruitless = 0
        while True:
            assert self._download is not None
            before = self.received_bytes
            try:
                for chunk in self._download.chunks():
                    if self._cancelled.is_set():
                        raise Cancelled
                    self.received_bytes += len(chunk)
                    yield chunk
                return
            except Unreachable as error:
                fruitless = fruitless + 1 if self.received_bytes == before else 0
                if self._download.tag is None or fruitless > FRUITLESS_CUTS:
                    raise CutOff(str(error)) from error
                self._go_on(Mark(self._download.tag, self.received_bytes), error)

    def _connect(self, mark: Mark | None) -> Download:
        self._connection.close()
        self._download = self._connection.enter_context(
            self._client.fetch(
                self._uuid, self._path, after=mark, timeout_seconds=CHUNK_TIMEOUT_SECONDS
            )
        )
        return self._download

    def _go_on(self, mark: Mark, cut: Unreachable) -> None:
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        deadline = self._clock() + PATIENCE_SECONDS
        reason: Exception = cut
        while True:
            log.info("%s: going on after %d bytes", reason, mark.received_bytes)
            if self._cancelled.wait(backoff.next_seconds()):
                raise Cancelled
            try:
                download = self._connect(mark)
            except (Unreachable, ServerFault) as error:
                if self._clock() > deadline:
                    raise CutOff(str(error)) from error
                reason = error
                continue
            if download.start_bytes != mark.received_bytes:
                raise CutOff(f"{cut}, and the server cannot go on with it")
            return
