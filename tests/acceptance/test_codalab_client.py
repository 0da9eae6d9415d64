"""The worker's own exchanges with a CodaLab server, byte by byte, beginning with the first.

The server answers as CodaLab's does: every connection is closed after its reply, JSON comes without
a charset, a check-in brings a list that ends in null, or one message alone as older ones send it.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from worker_process import WorkerProcess

from bundles.exits import WorkerExit

PATIENCE_SECONDS = 30.0
WORKER = "POST /rest/workers/vm%287%29/"
CHECKIN = WORKER + "checkin"
UUID, PARENT = "0x8d83" + "0" * 28, "0x0035" + "0" * 28
DOCUMENTED = {
    "tag": "tapw",
    "group_name": None,
    "cpus": 2,
    "gpus": 0,
    "tag_exclusive": True,
    "shared_file_system": False,
    "exit_after_num_runs": 999999999,
    "is_terminating": False,
    "preemptible": False,
    "dependencies": [],
    "runs": [],
}
MEASURED = {"memory_bytes", "free_disk_bytes", "hostname"}
OURS = {"features", "session", "sequence", "acknowledged", "wait_seconds"}
OURS |= {"is_draining", "seconds_left"}
STAGES = ("PREPARING", "RUNNING", "CLEANING_UP", "UPLOADING_RESULTS", "FINALIZING")


@dataclass(frozen=True)
class Asked:
    """A request as it came. ``headers`` by their names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Tap:
    """A server of one thread a connection, which keeps every request."""

    def __init__(self, answer: Callable[[Asked], tuple[str, bytes]]) -> None:
        """``answer``: content type and body for a request."""
        self.asked: list[Asked] = []
        self._answer = answer
        self._changed = threading.Condition()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            line = stream.readline().decode().strip()
            headers = {}
            while (text := stream.readline().decode().strip()) != "":
                name, _, value = text.partition(": ")
                headers[name.lower()] = value
            body = self._body(stream, headers)
            if not line:
                return
            asked = Asked(line, headers, body)
            kind, content = self._answer(asked)
            with self._changed:
                self.asked.append(asked)
                self._changed.notify_all()
            status = "404 Not Found" if kind == "none" else "200 OK"
            head = (
                f"HTTP/1.1 {status}\r\nServer: Python/3.6 aiohttp\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(content)}\r\nConnection: close\r\n"
            )
            if kind == "application/octet-stream":
                head += "Content-Encoding: gzip\r\nTarget-Type: file\r\n"
            connection.sendall(head.encode() + b"\r\n" + content)

    @staticmethod
    def _body(stream: Any, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return bytes(stream.read(int(headers.get("content-length", "0"))))
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        return body

    def until(self, condition: Callable[[], Any]) -> Any:
        with self._changed:
            found = self._changed.wait_for(condition, PATIENCE_SECONDS)
        assert found, [asked.line for asked in self.asked]
        return found

    def of(self, start: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.line.startswith(start)]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class Codalab:
    """What a CodaLab server says to one worker that gets one run."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._changed = threading.Condition()

    def say(self, message: Any) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def answer(self, asked: Asked) -> tuple[str, bytes]:
        if "/oauth2/token" in asked.line:
            token = {
                "access_token": "jvrI2h5X",
                "expires_in": 3600,
                "token_type": "Bearer",
                "scope": "default",
                "refresh_token": "r",
            }
            return "application/json", json.dumps(token).encode()
        if "/checkin " in asked.line:
            return "application/json", json.dumps(self._reply(asked.document)).encode()
        if "/start_bundle/" in asked.line:
            return "application/json", b"true"
        if asked.line.startswith("GET") and "/contents/blob/" in asked.line:
            return "application/octet-stream", gzip.compress(b"from the parent\n")
        if asked.line.startswith("GET"):
            return "none", b"no such page"
        return "text/html; charset=UTF-8", b""

    def _reply(self, said: dict[str, Any]) -> Any:
        for run in said["runs"]:
            if run["state"] == "finalizing":
                return {"type": "mark_finalized", "uuid": run["uuid"]}  # alone, as of old
        with self._changed:
            self._changed.wait_for(lambda: self.messages, 0.3)
            return [self.messages.pop(0)] if self.messages else [None]


@pytest.fixture
def codalab() -> Codalab:
    return Codalab()


@pytest.fixture
def tap(codalab: Codalab) -> Iterator[Tap]:
    with contextlib.closing(Tap(codalab.answer)) as tap:
        yield tap


@pytest.fixture
def worker(tmp_path: Path, tap: Tap) -> Iterator[WorkerProcess]:
    password_file = tmp_path / "password"
    password_file.write_text("codalab\nswordfish & co\n")
    password_file.chmod(0o600)
    worker = WorkerProcess(tmp_path, f"http://{tap.address}", worker_id="vm(7)")
    del worker.env["WORKER_MANAGER_TOKEN"]
    worker.start(
        *("--password-file", str(password_file), "--tag", "tapw", "--tag-exclusive"),
        *("--cpus", "2", "--checkin-frequency-seconds", "0.5"),
    )
    yield worker
    worker.close()


def run_message() -> dict[str, Any]:
    """Verbatim from a tapped CodaLab server, but for the command."""
    dependency = {
        "parent_name": "updir",
        "parent_path": "",
        "parent_uuid": PARENT,
        "child_path": "d",
        "child_uuid": UUID,
        "location": None,
    }
    metadata = {
        "actions": [],
        "allow_failed_dependencies": False,
        "created": 1795191850,
        "description": "",
        "exclude_patterns": ["skip*"],
        "last_updated": 1795191850,
        "name": "run-cat",
        "remote_history": [],
        "request_cpus": 1,
        "request_disk": "",
        "request_docker_image": "localhost/cltest:v1",
        "request_gpus": 0,
        "request_memory": "256m",
        "request_network": True,
        "request_priority": 0,
        "request_queue": "tapw",
        "request_time": "",
        "staged_status": "Bundle's dependencies are all ready.",
        "store": "",
        "tags": [],
    }
    return {
        "type": "run",
        "bundle": {
            "uuid": UUID,
            "bundle_type": "run",
            "owner_id": "0",
            "command": "cat d",
            "state": "starting",
            "frozen": None,
            "is_anonymous": False,
            "metadata": metadata,
            "args": "run",
            "dependencies": [dependency],
            "location": None,
        },
        "resources": {
            "cpus": 1,
            "gpus": 0,
            "docker_image": "localhost/cltest:v1",
            "time": 0,
            "memory": 268435456,
            "disk": 0,
            "network": True,
            "tag": "tapw",
            "tag_exclusive": False,
            "runs_left": None,
        },
    }


def test_the_first_requests_are_codalabs(tap: Tap, worker: WorkerProcess) -> None:
    tap.until(lambda: len(tap.of("POST /rest/workers")) >= 2)
    grant, first, second = [asked for asked in tap.asked if "/rest/" in asked.line][:3]
    assert grant.line == "POST /rest/oauth2/token HTTP/1.1"
    assert grant.headers["content-type"] == "application/x-www-form-urlencoded"
    assert grant.headers["x-requested-with"] == "XMLHttpRequest"
    basic = base64.b64encode(b"codalab_worker_client:").decode()
    assert grant.headers["authorization"] == f"Basic {basic}"
    assert grant.body == b"grant_type=password&username=codalab&password=swordfish+%26+co"
    for checkin in (first, second):
        assert checkin.line == "POST /rest/workers/vm%287%29/checkin HTTP/1.1"
        assert checkin.headers["host"] == tap.address
        assert checkin.headers["content-type"] == "application/json; charset=utf-8"
        assert checkin.headers["x-requested-with"] == "XMLHttpRequest"
        assert checkin.headers["authorization"] == "Bearer jvrI2h5X"
        assert int(checkin.headers["content-length"]) == len(checkin.body)
        said = checkin.document
        assert set(said) == set(DOCUMENTED) | MEASURED | OURS
        assert {name: said[name] for name in DOCUMENTED} == DOCUMENTED
        assert all(isinstance(said[name], int) for name in ("memory_bytes", "free_disk_bytes"))
    assert worker.stop() == WorkerExit.FINISHED
    tap.until(lambda: tap.of(CHECKIN)[-1].document["is_terminating"])
    [bell] = tap.of("GET /ws/")
    assert bell.line == "GET /ws/worker/vm%287%29 HTTP/1.1"
    assert bell.headers["upgrade"] == "websocket"


def test_a_run_goes_over_the_wire_as_codalab_has_it(
    tap: Tap, codalab: Codalab, worker: WorkerProcess
) -> None:
    message = run_message()
    message["bundle"]["command"] = "cat d; touch skip1"
    codalab.say({"type": "something new", "uuid": UUID})
    codalab.say(message)
    tap.until(lambda: _runs(tap) and not tap.of(CHECKIN)[-1].document["runs"])
    [start] = tap.of("POST /rest/workers/vm%287%29/start_bundle")
    assert start.line == f"POST /rest/workers/vm%287%29/start_bundle/{UUID} HTTP/1.1"
    assert set(start.document) == {"hostname", "start_time"}
    assert isinstance(start.document["start_time"], int)
    [download] = [asked for asked in tap.of("GET") if "/contents/blob/" in asked.line]
    assert download.line == (
        f"GET /rest/bundles/{PARENT}/contents/blob/?support_redirect=1 HTTP/1.1"
    )
    assert download.headers["accept-encoding"] == "gzip"
    [upload] = tap.of("PUT")
    assert upload.line == (
        f"PUT /rest/bundles/{UUID}/contents/blob/"
        "?filename=bundle.tar.gz&finalize_on_success=0&store= HTTP/1.1"
    )
    with tarfile.open(fileobj=io.BytesIO(upload.body)) as archive:
        assert sorted(archive.getnames()) == ["stderr", "stdout"]
        stdout = archive.extractfile("stdout")
        assert stdout is not None
        assert stdout.read() == b"from the parent\n"
    last = _runs(tap)[-1]
    assert set(last) == {
        *("uuid", "run_status", "bundle_start_time", "container_time_total"),
        *("container_time_user", "container_time_system", "docker_image", "state", "remote"),
        *("exitcode", "failure_message", "bundle_profile_stats", "cpu_usage", "memory_usage"),
        "disk_utilization",
    }
    assert (last["state"], last["remote"], last["exitcode"]) == ("finalizing", "vm(7)", 0)
    assert last["failure_message"] is None
    assert isinstance(last["bundle_start_time"], float)
    stats = last["bundle_profile_stats"]
    assert set(stats) == {f"RUN_STAGE.{stage}" for stage in STAGES}
    assert all(set(stage) == {"start", "end", "elapsed"} for stage in stats.values())
    dependencies = [asked.document["dependencies"] for asked in tap.of(CHECKIN)]
    assert [[PARENT, ""]] in dependencies
    assert worker.stop() == WorkerExit.FINISHED


def test_what_users_ask_is_answered_as_codalab_has_it(
    tap: Tap, codalab: Codalab, worker: WorkerProcess
) -> None:
    message = run_message()
    message["bundle"]["command"] = "cat d; sleep 1000"
    codalab.say(message)
    tap.until(lambda: any(run["state"] == "running" for run in _runs(tap)))
    read = {"type": "read", "uuid": UUID, "socket_id": 5, "path": "stdout"}
    codalab.say({**read, "read_args": {"type": "read_file_section", "offset": 0, "length": 4}})
    codalab.say({**read, "socket_id": 6, "read_args": {"type": "get_target_info", "depth": 0}})
    codalab.say({**read, "socket_id": 7, "uuid": PARENT, "read_args": {"type": "stream_file"}})
    tap.until(lambda: len(tap.of(WORKER + "reply")) == 3)
    [data] = tap.of(WORKER + "reply_data")
    assert (
        data.line.replace("{}", "%7B%7D") == f"{WORKER}reply_data/5?header_message=%7B%7D HTTP/1.1"
    )
    assert b"from".startswith(gzip.decompress(data.body))
    answers = {asked.line: asked.document for asked in tap.of(WORKER + "reply/")}
    info = answers[WORKER + "reply/6 HTTP/1.1"]["target_info"]
    assert (info["name"], info["type"]) == ("stdout", "file")
    assert answers[WORKER + "reply/7 HTTP/1.1"] == {
        "error_code": 500,
        "error_message": "Bundle no longer running",
    }
    codalab.say({"type": "kill", "uuid": UUID})
    tap.until(lambda: _runs(tap)[-1]["state"] == "finalizing")
    assert _runs(tap)[-1]["failure_message"] == "Kill requested"
    tap.until(lambda: not tap.of(CHECKIN)[-1].document["runs"])
    assert worker.stop() == WorkerExit.FINISHED


def _runs(tap: Tap) -> list[dict[str, Any]]:
    """Every report of a run so far."""
    checkins = tap.of(CHECKIN)
    return [run for asked in checkins for run in asked.document["runs"]]
