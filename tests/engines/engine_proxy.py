"""A socket in front of a Docker engine's: it counts and keeps what is asked, and misbehaves."""

from __future__ import annotations

import http.client
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

Fault = Literal["drop-reply", "tear", "hang", "refuse", "throttle", "throttle-twice", "full"]
"""drop-reply: launches are handed on, their replies are not. tear: replies end half-way."""

RETRY_AFTER_SECONDS = 1
_LAUNCHES = ("/containers/create", "/start")


class _Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class EngineProxy(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens at ``path``, hands on to ``engine``, until ``close``. ``requests`` are texts."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, path: Path, engine: Path) -> None:
        self.path = path
        self.engine = engine
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.refusals_left = 0
        self.multiplied: Sequence[str] = ()
        self._released = threading.Event()
        super().__init__(str(path), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    @contextmanager
    def misbehaving(self, fault: Fault) -> Iterator[None]:
        self._released.clear()
        self.refusals_left = 2 if fault == "throttle-twice" else 1_000_000
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None
            self._released.set()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens at the path."""
        hidden = self.path.with_suffix(".hidden")
        self.fault = "drop-reply"  # for connections that are open
        os.rename(self.path, hidden)
        try:
            yield
        finally:
            os.rename(hidden, self.path)
            self.fault = None

    def wait_until_released(self) -> None:
        self._released.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EngineProxy

    def log_message(self, *arguments: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server
        proxy.requests.append(f"{self.requestline}\n{self.headers}\n{body.decode()}")
        path = self.path.partition("?")[0]
        is_away = not proxy.path.exists()
        is_launch = self.command == "POST" and path.endswith(_LAUNCHES)
        match proxy.fault:
            case "hang":
                proxy.wait_until_released()
                self.close_connection = True
                return None
            case "drop-reply" if is_away:
                self.close_connection = True
                return None
            case "refuse":
                return self._send(403, {"message": "authorization denied by plugin"})
            case "throttle" | "throttle-twice" if proxy.refusals_left > 0:
                proxy.refusals_left -= 1
                after = {"Retry-After": str(RETRY_AFTER_SECONDS)}
                return self._send(429, {"message": "too many requests"}, after)
            case "full" if is_launch:
                return self._send(500, {"message": "write /var/lib: no space left on device"})
        status, content, kind = self._ask_engine(body)
        if proxy.fault == "drop-reply" and is_launch:
            self.close_connection = True
            return None
        if proxy.multiplied and self.command == "GET" and path.endswith("/containers/json"):
            content = _multiplied(content, proxy.multiplied)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if proxy.fault == "tear":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)
        return None

    do_GET = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

    def _ask_engine(self, body: bytes) -> tuple[int, bytes, str]:
        connection = _Connection(self.server.engine)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() != "connection"}
            connection.request(self.command, self.path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.headers.get("Content-Type", "")
        finally:
            connection.close()

    def _send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()


def _multiplied(content: bytes, keys: Sequence[str]) -> bytes:
    """A list of containers like the first one, one for each key."""
    first = json.loads(content)[0]
    return json.dumps(
        [
            {
                **first,
                "Id": f"{number:064x}",
                "Names": [f"/{key}"],
                "Labels": {**first["Labels"], "worker-manager.key": key},
            }
            for number, key in enumerate(keys)
        ]
    ).encode()
