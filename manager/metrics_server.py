"""`/metrics`, `/healthz` and `/readyz` of a manager, over HTTP. Knows what neither is made of."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from bundles.errors import BundlesError
from manager.pulse import Pulse

REQUEST_SECONDS = 10.0
"""Whoever connects and says nothing is left after so long."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class CannotServe(BundlesError):
    """Metrics cannot be served at the address that was asked for."""


class MetricsServer:
    """Serves from threads of its own until it is closed. Port 0: the kernel chooses.

    Raises CannotServe.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, pulse: Pulse) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server((str(address[0]), port), family)
        except OSError as error:
            raise CannotServe(
                f"metrics cannot be served at {host} port {port}: {error.strerror or error}: "
                "give another --metrics-port or --metrics-host"
            ) from error
        self._server.set_app(_routes(make_wsgi_app(registry), pulse))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __enter__(self) -> MetricsServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], family: int) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As HTTPServer's, without asking DNS for the name of the address, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever went away while it was answered concerns nobody."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *words: Any) -> None:
        """Being asked is not worth a line."""


def _routes(metrics: Any, pulse: Pulse) -> Application:
    def healthz() -> tuple[bool, str]:
        overdue = f"the last sign of life is {pulse.overdue_seconds:.0f} s overdue"
        return pulse.is_alive, "alive" if pulse.is_alive else overdue

    def readyz() -> tuple[bool, str]:
        missing = "queue and jobs have not been read yet"
        return pulse.is_ready, "ready" if pulse.is_ready else missing

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path in ("/healthz", "/readyz"):
            good, sentence = healthz() if path == "/healthz" else readyz()
            status = "200 OK" if good else "503 Service Unavailable"
        else:
            status, sentence = "404 Not Found", "there are /metrics, /healthz and /readyz"
        body = f"{sentence}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return application
