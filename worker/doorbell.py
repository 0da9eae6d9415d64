"""A CodaLab server's way to say that it has a message: a web socket on which something comes.

Its `cl-ws-server` passes on whatever is sent to a worker; the worker then checks in at once.
Nothing depends on it: a check-in mostly waits at the server anyway, and where this one is away the
worker does without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from worker.backoff import Backoff

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 1.0
SIGN_OF_LIFE_SECONDS = 10.0
"""As often as CodaLab's workers; the server drops one that is silent for a minute."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0


def find_address(server: str, option: str | None) -> str:
    """`--ws-server`, else where a CodaLab installation has it: the server's `/ws`."""
    if option is not None:
        return option.rstrip("/")
    url = urlsplit(server)
    return f"{'wss' if url.scheme == 'https' else 'ws'}://{url.netloc}/ws"


class Doorbell:
    """Calls ``rung`` from a thread of its own."""

    def __init__(self, address: str, worker_id: str, rung: Callable[[], None]) -> None:
        self._url = f"{address}/worker/{quote(worker_id, safe='')}"
        self._rung = rung
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._work, name="doorbell", daemon=True).start()

    def close(self) -> None:
        """Ring no more."""
        self._ended.set()

    def _work(self) -> None:
        from websockets.exceptions import WebSocketException

        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        while not self._ended.is_set():
            try:
                self._listen(backoff)
            except (WebSocketException, OSError) as error:
                if not backoff.failures:
                    log.info("nothing rings at %s: %s", self._url, error)
            self._ended.wait(backoff.next_seconds())

    def _listen(self, backoff: Backoff) -> None:
        from websockets.sync.client import connect

        with connect(
            self._url, open_timeout=OPEN_SECONDS, close_timeout=CLOSE_SECONDS, max_size=1024**2
        ) as connection:
            log.debug("messages are announced at %s", self._url)
            backoff.reset()
            connection.send("a")
            while not self._ended.is_set():
                try:
                    connection.recv(timeout=SIGN_OF_LIFE_SECONDS)
                except TimeoutError:
                    connection.send("a")
                else:
                    self._rung()
