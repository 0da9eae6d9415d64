"""A server of bundles by script, for one worker: it says what a test wants, and can misbehave.

Speaks docs/protocol.md (or, with ``features`` empty, CodaLab's protocol) over a real socket. A
test queues messages, holds or breaks requests by their kind, and reads what the worker said.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from bundles.model import new_uuid

PATIENCE_SECONDS = 30.0
FEATURES = "batch, changes, checkout, claims, shapes, tokens"


@dataclass
class Content:
    """What a dependency holds: a file's bytes, or a tar.gz."""

    data: bytes
    is_directory: bool = False


@dataclass
class Fault:
    """What becomes of a request: ``hold`` it until the event is set, then answer ``status``;
    ``drop`` cuts the connection, after the request took effect if ``late``."""

    status: int = 0
    text: str = "broken on purpose"
    hold: threading.Event | None = None
    drop: bool = False
    late: bool = False
    times: int = 1
    met: threading.Event = field(default_factory=threading.Event)


class ScriptedServer:
    """``runs``: the last report of each run, by uuid. ``uploads``: the bodies, by uuid."""

    def __init__(self, features: str = FEATURES) -> None:
        self.features = features
        self.checkins: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[str]] = {}
        self.uploads: dict[str, list[bytes]] = {}
        self.refused_uploads: dict[str, tuple[int, str]] = {}
        self.refused: list[str] = []
        self.replies: dict[int, Any] = {}
        self.checkouts: list[dict[str, Any]] = []
        self.started: list[str] = []
        self.contents: dict[tuple[str, str], Content] = {}
        self.downloads: list[tuple[str, str]] = []
        self.finalizes = True
        self.session_refused: set[str] = set()
        self.token: str | None = None
        """The one of the last check-in, if any: contents are for nobody else."""
        self.clock_ahead_seconds = 0.0
        self.worker_lease_seconds: float | None = None
        self._messages: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)
        self._sequences: dict[str | None, int] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._changed = threading.Condition()
        self._waiting = 0
        self._is_closing = False
        outer = self

        class Handler(_Handler):
            server_script = outer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            for faults in self._faults.values():
                for fault in faults:
                    if fault.hold is not None:
                        fault.hold.set()
            self._changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What a test says

    def run(
        self,
        command: str,
        *,
        uuid: str | None = None,
        claim: int | None = 1,
        dependencies: Sequence[tuple[str, str, str]] = (),
        locations: Mapping[str, str] | None = None,
        **resources: Any,
    ) -> str:
        """Queue a `run` message; ``dependencies`` are (child_path, parent_uuid, parent_path).
        ``locations``: where bundles lie, by uuid, for a worker that shares the file system."""
        locations = locations or {}
        uuid = uuid or new_uuid()
        metadata = resources.pop("metadata", {})
        bundle = {
            "uuid": uuid,
            "bundle_type": "run",
            "owner_id": "0",
            "command": command,
            "state": "starting",
            "is_anonymous": False,
            "metadata": {"name": "run", "exclude_patterns": [], "store": "", **metadata},
            "args": "",
            "dependencies": [
                {
                    "child_uuid": uuid,
                    "child_path": child_path,
                    "parent_uuid": parent_uuid,
                    "parent_path": parent_path,
                    "parent_name": "",
                    "location": locations.get(parent_uuid),
                }
                for child_path, parent_uuid, parent_path in dependencies
            ],
            "location": locations.get(uuid),
        }
        wanted = {
            "cpus": 1,
            "gpus": 0,
            "docker_image": "",
            "time": 0,
            "memory": 2 * 1024**3,
            "disk": 0,
            "network": True,
            "tag": "",
            "tag_exclusive": False,
            "runs_left": None,
            **resources,
        }
        message: dict[str, Any] = {"type": "run", "bundle": bundle, "resources": wanted}
        if claim is not None:
            message |= {"claim": claim, "uuid": uuid}
        self.send(message, claim=claim)
        return uuid

    def send(self, message: dict[str, Any], *, claim: int | None = 1) -> str:
        """Queue any message; returns its id."""
        identity = f"m{next(self._numbers)}"
        if "batch" in self.features:
            message = {**message, "id": identity}
            if claim is not None:
                message.setdefault("claim", claim)
        with self._changed:
            self._messages[identity] = message
            self._changed.notify_all()
        return identity

    def fault(self, kind: str, fault: Fault) -> Fault:
        """The next requests of that kind (checkin, upload, download, …) meet this."""
        with self._changed:
            self._faults.setdefault(kind, []).append(fault)
        return fault

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Wait until something that requests bring about is so."""
        with self._changed:
            found = self._changed.wait_for(condition, PATIENCE_SECONDS)
        assert found, f"this does not happen: {what or condition}; {self.history}"
        return found

    def until_state(self, uuid: str, state: str) -> dict[str, Any]:
        self.until(lambda: state in self.history.get(uuid, ()), f"{uuid} is {state}")
        return self.runs[uuid]

    def until_over(self, uuid: str) -> dict[str, Any]:
        """The last report of a run, once the worker was told to forget it and did."""
        self.until(
            lambda: (
                "finalizing" in self.history.get(uuid, ())
                and all(run["uuid"] != uuid for run in self.checkins[-1]["runs"])
            ),
            f"{uuid} is over",
        )
        return self.runs[uuid]

    def files(self, uuid: str) -> dict[str, bytes]:
        """What the last upload of a bundle held: files by path, directories as b"" with a `/`."""
        found = {}
        with tarfile.open(fileobj=io.BytesIO(self.uploads[uuid][-1])) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                found[member.name + ("/" if member.isdir() else "")] = file.read() if file else b""
        return found

    # What a worker says

    def _meet(self, kind: str) -> Fault | None:
        with self._changed:
            faults = self._faults.get(kind) or []
            if not faults:
                return None
            fault = faults[0]
            fault.times -= 1
            if fault.times <= 0:
                faults.pop(0)
            fault.met.set()
            self._changed.notify_all()
        if fault.hold is not None:
            fault.hold.wait(PATIENCE_SECONDS)
        return fault

    def _check_in(self, said: dict[str, Any]) -> tuple[int, list[Any]]:
        with self._changed:
            if said.get("session") in self.session_refused:
                return 409, []
            self.checkins.append(said)
            for identity in said.get("acknowledged") or ():
                self._messages.pop(identity, None)
            if not self._is_overtaken(said):
                for run in said["runs"]:
                    self._report(run)
            self._waiting += 1
            mine = self._waiting
            self._changed.notify_all()
            wait_seconds = said.get("wait_seconds", 0.0) if self._is_batch else 0.5
            self._changed.wait_for(
                lambda: self._messages or self._waiting != mine or self._is_closing, wait_seconds
            )
            if self._waiting != mine:
                return 200, []
            if self._is_batch:
                return 200, list(self._messages.values())
            if not self._messages:
                return 200, [None]
            return 200, [self._messages.pop(next(iter(self._messages)))]

    def _is_overtaken(self, said: dict[str, Any]) -> bool:
        """Whether a later report of the session came first: the threads here are not in order."""
        session, sequence = said.get("session"), said.get("sequence")
        if sequence is None:
            return False
        latest = self._sequences.get(session, sequence)
        self._sequences[session] = max(latest, sequence)
        return bool(sequence < latest)

    @property
    def _is_batch(self) -> bool:
        return "batch" in self.features

    def _report(self, run: dict[str, Any]) -> None:
        uuid = run["uuid"]
        self.runs[uuid] = run
        states = self.history.setdefault(uuid, [])
        if not states or states[-1] != run["state"]:
            states.append(run["state"])
        claim = run.get("claim")
        if run["state"] == "finalizing" and self.finalizes:
            self._messages[f"final-{uuid}"] = {
                "type": "mark_finalized",
                "uuid": uuid,
                "claim": claim,
                **({"id": f"final-{uuid}"} if self._is_batch else {}),
            }
        if run["state"] == "staged" and self._is_batch:
            self._messages[f"revoke-{uuid}"] = {
                "type": "revoke",
                "uuid": uuid,
                "claim": claim,
                "id": f"revoke-{uuid}",
            }


class _Handler(BaseHTTPRequestHandler):
    server_script: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.server_script.clock_ahead_seconds)

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        script = self.server_script
        url = urlsplit(self.path)
        path = unquote(url.path)
        try:
            body = self._body()
        except OSError:  # the worker was killed, or changed its mind
            self.close_connection = True
            return
        kind, act = self._route(path, parse_qs(url.query), body)
        fault = script._meet(kind)
        if fault is not None and not fault.late:
            if fault.drop:
                self._cut()
                return
            if fault.status:
                self._answer(fault.status, fault.text.encode(), "text/plain")
                return
        status, content, content_type, headers = act()
        with script._changed:
            script._changed.notify_all()
        if fault is not None and fault.late:
            self._cut()
            return
        self._answer(status, content, content_type, headers)

    def _route(
        self, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[str, Callable[[], tuple[int, bytes, str, dict[str, str]]]]:
        script = self.server_script
        found = re.fullmatch(r"/rest/workers/([^/]+)/(\w+)(?:/(.+))?", path)
        if path == "/rest/oauth2/token":
            token = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}
            return "token", lambda: _json(token)
        if found and found[2] == "checkin":

            def check_in() -> tuple[int, bytes, str, dict[str, str]]:
                script.token = self.headers["Authorization"]
                status, messages = script._check_in(json.loads(body))
                return _json(messages, status)

            return "checkin", check_in
        if found and found[2] == "checkout":

            def check_out() -> tuple[int, bytes, str, dict[str, str]]:
                script.checkouts.append(json.loads(body))
                return _json({"restaged": []})

            return "checkout", check_out
        if found and found[2] == "start_bundle":

            def start() -> tuple[int, bytes, str, dict[str, str]]:
                script.started.append(found[3])
                return _json(True)

            return "start_bundle", start
        if found and found[2] in ("reply", "reply_data"):

            def reply() -> tuple[int, bytes, str, dict[str, str]]:
                said = json.loads(body) if found[2] == "reply" else body
                script.replies[int(found[3])] = said
                return 200, b"", "text/plain", {}

            return "reply", reply
        found = re.fullmatch(r"/rest/bundles/([^/]+)/contents/blob/(.*)", path)
        if found and script.token not in (None, self.headers["Authorization"]):
            return "stranger", lambda: (403, b"not assigned to a worker of yours", "text/plain", {})
        if found and self.command == "PUT":

            def upload() -> tuple[int, bytes, str, dict[str, str]]:
                refused = script.refused_uploads.get(found[1])
                if refused is not None:
                    script.refused.append(found[1])
                    return refused[0], refused[1].encode(), "text/plain", {}
                script.uploads.setdefault(found[1], []).append(body)
                return 200, b"", "text/plain", {}

            return "upload", upload
        if found:

            def download() -> tuple[int, bytes, str, dict[str, str]]:
                script.downloads.append((found[1], found[2]))
                content = script.contents.get((found[1], found[2]))
                if content is None:
                    return 404, b"there is no such bundle", "text/plain", {}
                target = "directory" if content.is_directory else "file"
                kind = "application/gzip" if content.is_directory else "application/octet-stream"
                return 200, content.data, kind, {"Target-Type": target}

            return "download", download
        return "other", lambda: (404, b"no such page", "text/plain", {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
                if size < 0:
                    raise ConnectionAbortedError("the body was cut off")
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(
        self, status: int, content: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            if self.server_script.features:
                self.send_header("Bundles-Features", self.server_script.features)
            if self.server_script.worker_lease_seconds is not None:
                lease = str(self.server_script.worker_lease_seconds)
                self.send_header("Bundles-Worker-Lease", lease)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the worker was killed, or gave up
            self.close_connection = True

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _json(document: Any, status: int = 200) -> tuple[int, bytes, str, dict[str, str]]:
    return status, json.dumps(document).encode(), "application/json", {}


def tar_gz(files: dict[str, bytes]) -> bytes:
    """An archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
