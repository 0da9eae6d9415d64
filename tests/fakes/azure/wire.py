"""An HTTP server on loopback that writes down all that passes, and fails when it is told to.

Knows nothing of Azure. Of the standard library, because a reply can be lost only by who holds
the socket.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def target(self) -> str:
        """Path and query, in plain letters."""
        return unquote(f"{self.path}?{self.query}".rstrip("?"))

    @property
    def parameters(self) -> dict[str, str]:
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @property
    def parts(self) -> list[str]:
        return [unquote(part) for part in self.path.strip("/").split("/")]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Exchange:
    request: Request
    answer: Answer | None


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose method and target match, once
    ``after`` of them went well.

    ``answer``: given instead of the service's. Without one the reply is lost, after the request
    was carried out if ``carried_out``, and not before ``until`` if that is given.
    """

    method: str = ""
    target: str = ""
    times: int = 1_000_000
    after: int = 0
    answer: Answer | None = None
    carried_out: bool = False
    until: threading.Event | None = None


class Wire:
    """``handle`` answers a request; it is called by several threads. ``tls``: speak https."""

    def __init__(
        self, handle: Callable[[Request], Answer], tls: ssl.SSLContext | None = None
    ) -> None:
        self._handle = handle
        self._scheme = "https" if tls else "http"
        self._lock = threading.Lock()
        self.exchanges: list[Exchange] = []
        self.faults: list[Fault] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """The fault is there inside."""
        with self._lock:
            self.faults.append(fault)
        try:
            yield
        finally:
            with self._lock:
                if fault in self.faults:
                    self.faults.remove(fault)
            if fault.until is not None:
                fault.until.set()

    def requests(self, method: str = "", path: str = "") -> list[Request]:
        """What was asked so far, of a method and of paths that the pattern is found in."""
        return [
            exchange.request
            for exchange in list(self.exchanges)
            if exchange.request.method.startswith(method) and re.search(path, exchange.request.path)
        ]

    def answer(self, request: Request) -> Answer | None:
        """None: the reply is lost."""
        fault = self._fault(request)
        answer = fault.answer if fault else None
        if fault is None or fault.carried_out:
            done = self._handle(request)
            answer = done if fault is None else answer
        if fault is not None and fault.until is not None:
            fault.until.wait()
        with self._lock:
            self.exchanges.append(Exchange(request, answer))
        return answer

    def _fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                is_method = request.method.startswith(fault.method)
                if is_method and re.search(fault.target, request.target):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 100

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up as they please."""


def _handler(wire: Wire) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length") or 0))
            if "chunked" in headers.get("transfer-encoding", ""):
                raise NotImplementedError("chunked requests")
            answer = wire.answer(Request(self.command, parts.path, parts.query, headers, body))
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def log_message(self, *arguments: Any) -> None:
            """The exchanges are the log."""

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._serve)
    return Handler
