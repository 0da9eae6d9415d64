"""The metadata services of three clouds by script, as their documentation has them.

`worker.preemption` names the pages. Each refuses what the real one refuses: a request without its
header, or without a token.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATIENCE_SECONDS = 30.0
Reply = tuple[int, str, dict[str, str]]
NOTHING: Reply = (404, "404 - Not Found", {})


class MetadataService:
    """One service at a port of its own. ``asked``: the paths of all requests so far."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.changed = threading.Condition()
        self.is_closing = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _serve(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                with outer.changed:
                    outer.asked.append(f"{self.command} {url.path}")
                    outer.changed.notify_all()
                    status, text, headers = outer.reply(
                        self.command, url.path, query, dict(self.headers.items()), body
                    )
                content = text.encode()
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the worker has gone
                    self.close_connection = True

            do_GET = do_PUT = do_POST = _serve  # noqa: N815 - the names that http.server calls

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    def reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        raise NotImplementedError

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until requests have brought something about."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_SECONDS), self.asked

    def close(self) -> None:
        with self.changed:
            self.is_closing = True
            self.changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Ec2(MetadataService):
    """IMDSv2. Each token is good for ``token_uses`` requests, then 401."""

    def __init__(self, life_cycle: str = "spot", token_uses: int = 4) -> None:
        self.life_cycle = life_cycle
        self.action: dict[str, str] | None = None
        self._token_uses = token_uses
        self._uses_left: dict[str, int] = {}
        self._numbers = itertools.count()
        super().__init__()

    def interrupt(self, seconds: float) -> None:
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        with self.changed:
            self.action = {"action": "terminate", "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}

    def reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        if path == "/latest/api/token":
            if method != "PUT" or "X-Aws-Ec2-Metadata-Token-Ttl-Seconds" not in _titled(headers):
                return 400, "", {}
            token = f"token-{next(self._numbers)}"
            self._uses_left[token] = self._token_uses
            return 200, token, {}
        token = _titled(headers).get("X-Aws-Ec2-Metadata-Token", "")
        if self._uses_left.get(token, 0) <= 0:
            return 401, "", {}
        self._uses_left[token] -= 1
        if path == "/latest/meta-data/instance-life-cycle":
            return 200, self.life_cycle, {}
        if path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            return 200, json.dumps(self.action), {}
        return NOTHING


class ComputeEngine(MetadataService):
    """Holds a reply until the value changes."""

    def __init__(self) -> None:
        self._value = "FALSE"
        super().__init__()

    def preempt(self) -> None:
        with self.changed:
            self._value = "TRUE"
            self.changed.notify_all()

    def reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        if headers.get("Metadata-Flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header.", {}
        if path != "/computeMetadata/v1/instance/preempted":
            return NOTHING
        if query.get("wait_for_change") == "true" and query.get("last_etag") == self._etag:
            known = self._value
            self.changed.wait_for(
                lambda: self._value != known or self.is_closing, float(query["timeout_sec"])
            )
        return 200, self._value, {"Metadata-Flavor": "Google", "ETag": self._etag}

    @property
    def _etag(self) -> str:
        return f"{hash(self._value) & 0xFFFFFFFF:08x}"


class AzureVm(MetadataService):
    """Scheduled events of a scale set, to which this machine belongs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.acknowledged: list[str] = []
        super().__init__()

    def schedule(self, kind: str, machine: str, seconds: float) -> str:
        """Announce an event; returns its id."""
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        with self.changed:
            identity = f"event-{len(self.events)}"
            self.events.append(
                {
                    "EventId": identity,
                    "EventType": kind,
                    "ResourceType": "VirtualMachine",
                    "Resources": [machine],
                    "EventStatus": "Scheduled",
                    "NotBefore": format_datetime(moment, usegmt=True),
                    "Description": "",
                    "EventSource": "Platform",
                    "DurationInSeconds": -1,
                }
            )
        return identity

    def reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        if headers.get("Metadata") != "true" or "api-version" not in query:
            return 400, '{"error": "Bad request"}', {}
        if path == "/metadata/instance/compute/name" and query.get("format") == "text":
            return 200, self.name, {}
        if path != "/metadata/scheduledevents":
            return NOTHING
        if method == "POST":
            self.acknowledged += [r["EventId"] for r in json.loads(body)["StartRequests"]]
            return 200, "", {}
        document = {"DocumentIncarnation": len(self.events), "Events": self.events}
        return 200, json.dumps(document), {}


def _titled(headers: dict[str, str]) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}
