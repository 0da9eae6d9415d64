"""A socket in front of another one: it notes what is asked there, and can hold the answers up."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

PATIENCE_SECONDS = 60.0


class Forwarder:
    """Hands on every connection of ``listener`` until ``close``. ``requests`` are the first words
    of each: `GET /path`. After ``answer_bytes`` of answers the rest waits for ``release``."""

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[], socket.socket],
        *,
        answer_bytes: int | None = None,
    ) -> None:
        self.requests: list[str] = []
        self._connect = connect
        self._left = answer_bytes
        self._released = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = listener
        self._listener.listen()
        self._run(self._accept)

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self.release()
        for opened in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for opened in [self._listener, *self._sockets]:
            opened.close()

    def _run(self, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=job, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = self._connect()
                self._sockets.append(server)
                self._run(partial(self._forward, client, server, is_asking=True))
                self._run(partial(self._forward, server, client, is_asking=False))

    def _forward(self, source: socket.socket, target: socket.socket, *, is_asking: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if is_asking and (found := re.match(rb"(GET|POST|DELETE|HEAD|PUT) \S+", chunk)):
                    self.requests.append(found[0].decode())
                if not is_asking and self._left is not None:
                    if self._left <= 0:
                        self._released.wait(PATIENCE_SECONDS)
                    self._left -= len(chunk)
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)


def before_engine(path: Path, engine: Path) -> Forwarder:
    """At the socket ``path``, in front of an engine's. A socket's path must be short."""

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(engine))
        return made

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return Forwarder(listener, connect)


def before_registry(port: int, *, answer_bytes: int) -> tuple[Forwarder, str]:
    """In front of a registry on this machine; also where it listens, as references have it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    forwarder = Forwarder(
        listener,
        lambda: socket.create_connection(("127.0.0.1", port)),
        answer_bytes=answer_bytes,
    )
    return forwarder, f"127.0.0.1:{listener.getsockname()[1]}"
