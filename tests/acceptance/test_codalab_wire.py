"""The exchanges of CodaLab's programs with a server, byte by byte, and what comes back."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from managing import eventually
from serving import Server
from wire_worker import InBackground, tar_gz

from bundles.client import Client
from bundles.model import new_uuid

PATIENCE_SECONDS = 30.0
CHUNK_BYTES = 16 * 1024


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """Requests as CodaLab's programs put them on the wire; ``token`` shows who asks."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.address = url.removeprefix("http://")
        self.token = token

    def ask(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        form: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """As urllib does: one connection a request, closed after it."""
        sent = {
            "Host": self.address,
            "User-Agent": "Python-urllib/3.9",
            "Connection": "close",
            "Accept-Encoding": "identity",
            "X-Requested-With": "XMLHttpRequest",
            "Authorization": f"Bearer {self.token}",
        }
        body = b""
        if document is not None:
            body = json.dumps(document).encode()
            sent["Content-Type"] = "application/json; charset=utf-8"
        elif form is not None:
            body = urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        if body:
            sent["Content-Length"] = str(len(body))
        sent |= headers or {}
        return self._exchange(f"{method} /rest/{path}", sent, body)

    def send(self, method: str, path: str, content: bytes) -> Reply:
        """As its uploads do: the whole address in the first line, chunks, and no length or type."""
        headers = {
            "Host": self.address,
            "Accept-Encoding": "identity",
            "Transfer-Encoding": "chunked",
            "Authorization": f"Bearer {self.token}",
            "X-Requested-With": "XMLHttpRequest",
        }
        body = b""
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = content[start : start + CHUNK_BYTES]
            body += b"%X\r\n%s\r\n" % (len(chunk), chunk)
        body += b"0\r\n\r\n"
        return self._exchange(f"{method} {self.url}/rest/{path}", headers, body)

    def _exchange(self, line: str, headers: dict[str, str], body: bytes) -> Reply:
        host, _, port = self.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            head = f"{line} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
            connection.sendall(head.encode() + b"\r\n" + body)
            response = http.client.HTTPResponse(connection)
            response.begin()
            reply = Reply(response.status, response.headers, response.read())
            if headers.get("Connection") == "close":
                assert connection.recv(1) == b""
            response.close()
        return reply


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def wire(server: Server) -> Wire:
    return Wire(server.url, server.home.token_path.read_text().strip())


def check_in_document(*runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "tag": None,
        "group_name": None,
        "cpus": 2,
        "gpus": 0,
        "memory_bytes": 16 * 1024**3,
        "free_disk_bytes": 10**11,
        "dependencies": [],
        "hostname": "vm",
        "runs": list(runs),
        "shared_file_system": False,
        "tag_exclusive": False,
        "exit_after_num_runs": 999999999,
        "is_terminating": False,
        "preemptible": False,
        **more,
    }


def reported(uuid: str, state: str) -> dict[str, Any]:
    stages = ("PREPARING", "RUNNING", "CLEANING_UP", "UPLOADING_RESULTS", "FINALIZING")
    return {
        "uuid": uuid,
        "run_status": "Running",
        "bundle_start_time": 1795191850.0,
        "container_time_total": 1.5,
        "container_time_user": 0.5,
        "container_time_system": 0.25,
        "docker_image": None,
        "state": state,
        "remote": "vm(12)",
        "exitcode": None,
        "failure_message": None,
        "bundle_profile_stats": {
            f"RUN_STAGE.{stage}": {"start": 0.0, "end": None, "elapsed": 0.0} for stage in stages
        },
        "cpu_usage": 0.5,
        "memory_usage": 0.1,
        "disk_utilization": 4096,
    }


def bundle_of(client: Client, name: str, content: bytes) -> str:
    uuid = new_uuid()
    client.create([{"uuid": uuid, "bundle_type": "dataset", "metadata": {"name": name}}])
    client.upload(uuid, content, filename=name, finalize=True)
    return uuid


# Who asks


def log_in(wire: Wire, client_id: str, **form: str) -> Reply:
    basic = base64.b64encode(f"{client_id}:".encode()).decode()
    return wire.ask("POST", "oauth2/token", form=form, headers={"Authorization": f"Basic {basic}"})


@pytest.mark.parametrize("client_id", ["codalab_worker_client", "codalab_cli_client"])
def test_a_password_buys_a_token_that_a_refresh_token_renews(
    client: Client, wire: Wire, client_id: str
) -> None:
    client.add_user("ann", "a-password")
    reply = log_in(wire, client_id, grant_type="password", username="ann", password="a-password")
    assert reply.status == 200
    granted = reply.json()
    assert set(granted) == {
        "access_token",
        "expires_in",
        "token_type",
        "scope",
        "refresh_token",
    }
    assert (granted["token_type"], granted["expires_in"]) == ("Bearer", 3600)
    renewed = log_in(
        wire, client_id, grant_type="refresh_token", refresh_token=granted["refresh_token"]
    )
    assert renewed.status == 200
    for token in (granted["access_token"], renewed.json()["access_token"]):
        assert Wire(wire.url, token).ask("GET", "user").status == 200


def test_a_wrong_password_is_told_as_an_invalid_grant(client: Client, wire: Wire) -> None:
    client.add_user("ann", "a-password")
    for form in (
        {"grant_type": "password", "username": "ann", "password": "wrong"},
        {"grant_type": "password", "username": "nobody", "password": "a-password"},
        {"grant_type": "refresh_token", "refresh_token": "wrong"},
    ):
        reply = log_in(wire, "codalab_cli_client", **form)
        assert reply.status == 401
        assert reply.json() == {
            "error": "invalid_grant",
            "error_description": "Invalid credentials given.",
        }


@pytest.mark.parametrize("asked_by", ["XMLHttpRequest", ""])
def test_who_has_no_token_gets_401_and_is_sent_nowhere_else(wire: Wire, asked_by: str) -> None:
    for path in ("bundles?keywords=state%3Dstaged", "workers/info", "user"):
        reply = wire.ask(
            "GET", path, headers={"X-Requested-With": asked_by, "Authorization": "Bearer wrong"}
        )
        assert reply.status == 401
        assert reply.headers["Location"] is None
        assert reply.body


# Check-ins


def test_a_check_in_is_held_and_then_answered_with_a_list_of_null(wire: Wire) -> None:
    reply = wire.ask("POST", f"workers/{quote('vm(12)')}/checkin", check_in_document())
    assert reply.status == 200
    assert reply.headers.get_all("Content-Type") == ["application/json"]
    assert reply.body == b"[null]"


def test_a_check_in_of_an_old_worker_says_little_and_is_answered(
    client: Client, wire: Wire
) -> None:
    """Only `dependencies` and `runs` were always there."""
    client.create([{"bundle_type": "run", "command": "true", "metadata": {"name": "r"}}])
    reply = wire.ask("POST", "workers/old/checkin", {"dependencies": [], "runs": []})
    assert (reply.status, reply.body) == (200, b"[null]")


def test_a_run_message_has_all_that_their_worker_reads(client: Client, wire: Wire) -> None:
    parent = bundle_of(client, "a.txt", b"hello\n")
    uuid = new_uuid()
    dependency = {"child_path": "d", "parent_uuid": parent, "parent_path": ""}
    metadata = {"name": "r", "request_memory": "256m", "request_docker_image": "some/image:1"}
    client.create(
        [
            {
                "uuid": uuid,
                "bundle_type": "run",
                "command": "cat d",
                "dependencies": [dependency],
                "metadata": {**metadata, "exclude_patterns": ["*.tmp"]},
            }
        ]
    )
    [message] = wire.ask("POST", "workers/w/checkin", check_in_document()).json()
    assert message["type"] == "run"
    bundle, resources = message["bundle"], message["resources"]
    assert (bundle["uuid"], bundle["bundle_type"], bundle["command"]) == (uuid, "run", "cat d")
    assert bundle["state"] == "starting"
    assert {"owner_id", "is_anonymous", "args", "frozen", "location"} <= set(bundle)
    assert bundle["metadata"]["exclude_patterns"] == ["*.tmp"]
    assert bundle["metadata"]["store"] == ""
    assert bundle["dependencies"] == [
        {**dependency, "parent_name": "a.txt", "child_uuid": uuid, "location": None}
    ]
    assert resources["memory"] == 256 * 1024**2
    assert resources["docker_image"] == "some/image:1"
    assert (int(resources["time"]), int(resources["disk"])) == (0, 0)
    start = {"hostname": "vm", "start_time": 1795191850}
    reply = wire.ask("POST", f"workers/w/start_bundle/{uuid}", start)
    assert (reply.status, reply.body) == (200, b"true")
    assert reply.headers.get_all("Content-Type") == ["application/json"]
    reply = wire.ask("POST", f"workers/w/start_bundle/{uuid}", start)
    assert (reply.status, reply.body) == (200, b"false")


def test_a_worker_that_hears_the_doorbell_is_not_held_while_it_has_runs(
    client: Client, server: Server, wire: Wire
) -> None:
    from websockets.sync.client import connect

    client.create([{"bundle_type": "run", "command": "sleep 9", "metadata": {"name": "r"}}])
    [message] = wire.ask("POST", "workers/w/checkin", check_in_document()).json()
    uuid = message["bundle"]["uuid"]
    wire.ask("POST", f"workers/w/start_bundle/{uuid}", {"hostname": "vm", "start_time": 1})
    report = check_in_document(reported(uuid, "running"))
    with connect(server.url.replace("http", "ws") + "/ws/worker/w", proxy=None) as bell:
        bell.send("a")
        # In the five seconds of one that is held there is time for a few that are not.
        for _ in range(20):
            assert wire.ask("POST", "workers/w/checkin", report).body == b"[null]"
        client.act([{"type": "kill", "uuid": uuid}])
        assert bell.recv(timeout=PATIENCE_SECONDS) == "w"
        [message] = wire.ask("POST", "workers/w/checkin", report).json()
        assert (message["type"], message["uuid"]) == ("kill", uuid)


# Contents, up


def test_results_come_in_chunks_to_the_whole_address(client: Client, wire: Wire) -> None:
    uuid = running_bundle(client, wire)
    noise = bytes(range(256)) * 1024
    query = "filename=bundle.tar.gz&finalize_on_success=0&store="
    reply = wire.send(
        "PUT",
        f"bundles/{uuid}/contents/blob/?{query}",
        tar_gz({"stdout": b"hi\n", "d/noise": noise}),
    )
    assert reply.status == 200
    ended = {**reported(uuid, "finalizing"), "exitcode": 0}
    [message] = wire.ask("POST", "workers/w/checkin", check_in_document(ended)).json()
    assert (message["type"], message["uuid"]) == ("mark_finalized", uuid)
    with client.download(uuid, "d/noise") as download:
        assert b"".join(download.chunks()) == noise
    assert wire.ask("POST", "workers/w/checkin", check_in_document()).body == b"[null]"


def test_zero_bytes_of_one_that_waits_for_its_reply_are_passed_over(
    client: Client, wire: Wire
) -> None:
    """After a minute without a reply an upload sends one, and goes on waiting."""
    host, _, port = wire.address.partition(":")
    body = json.dumps(check_in_document()).encode()
    head = (
        f"POST {wire.url}/rest/workers/w/checkin HTTP/1.1\r\nHost: {wire.address}\r\n"
        f"Authorization: Bearer {wire.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        eventually(client.workers, "the check-in to be held")
        for _ in range(2):
            connection.sendall(b"\0")
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            assert (response.status, response.read()) == (200, b"[null]")
        another = (
            f"GET /rest/user HTTP/1.1\r\nHost: {wire.address}\r\n"
            f"Authorization: Bearer {wire.token}\r\n\r\n"
        )
        connection.sendall(b"\0" + another.encode())
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            assert response.status == 200


def running_bundle(client: Client, wire: Wire) -> str:
    """A bundle that the worker `w` runs."""
    client.create([{"bundle_type": "run", "command": "true", "metadata": {"name": "r"}}])
    [message] = wire.ask("POST", "workers/w/checkin", check_in_document()).json()
    uuid = str(message["bundle"]["uuid"])
    start = {"hostname": "vm", "start_time": 1795191850}
    assert wire.ask("POST", f"workers/w/start_bundle/{uuid}", start).body == b"true"
    return uuid


# What a running bundle holds


class Attendant:
    """Checks in as the worker `w` and answers what is read of its bundle."""

    def __init__(self, wire: Wire, uuid: str, content: bytes) -> None:
        self._wire = wire
        self._uuid = uuid
        self._content = content
        self._ended = threading.Event()
        self.asked: list[dict[str, Any]] = []
        self._work = InBackground(self._attend)

    def __enter__(self) -> Attendant:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._work.result()

    def _attend(self) -> None:
        report = check_in_document(reported(self._uuid, "running"))
        while not self._ended.is_set():
            for message in self._wire.ask("POST", "workers/w/checkin", report).json():
                if message is not None and message["type"] == "read":
                    self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        self.asked.append(message["read_args"])
        number = message["socket_id"]
        if message["path"] != "stdout":
            refusal = {"error_code": 404, "error_message": f"{message['path']} is not there"}
            reply = self._wire.ask("POST", f"workers/w/reply/{number}", refusal)
        elif message["read_args"]["type"] == "get_target_info":
            target = {"bundle_uuid": self._uuid, "subpath": "stdout"}
            info = {"name": "stdout", "type": "file", "size": len(self._content), "perm": 0o644}
            reply = self._wire.ask(
                "POST",
                f"workers/w/reply/{number}",
                {"target_info": {**info, "resolved_target": target}},
            )
        else:
            reply = self._wire.send(
                "POST",
                f"workers/w/reply_data/{number}?header_message=%7B%7D",
                gzip.compress(self._content),
            )
        assert (reply.status, reply.body) == (200, b"")


def test_what_a_running_bundle_says_is_fetched_from_their_worker(
    client: Client, wire: Wire
) -> None:
    uuid = running_bundle(client, wire)
    content = b"a line of it\n" * 10_000
    with Attendant(wire, uuid, content) as attendant:
        info = wire.ask("GET", f"bundles/{uuid}/contents/info/stdout").json()["data"]
        assert (info["type"], info["size"]) == ("file", len(content))
        zipped = wire.ask(
            "GET", f"bundles/{uuid}/contents/blob/stdout", headers={"Accept-Encoding": "gzip"}
        )
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert zipped.headers["Target-Type"] == "file"
        assert gzip.decompress(zipped.body) == content
        plain = wire.ask("GET", f"bundles/{uuid}/contents/blob/stdout")
        assert plain.body == content
        missing = wire.ask("GET", f"bundles/{uuid}/contents/info/nothing")
        assert missing.status == 404
    assert {"get_target_info", "stream_file"} <= {asked["type"] for asked in attendant.asked}


def test_nobody_answers_for_another_worker(client: Client, wire: Wire) -> None:
    for path in ("reply/12345", "reply_data/12345?header_message=%7B%7D"):
        reply = wire.ask("POST", f"workers/w/{path}", {"target_info": {}})
        assert reply.status in (403, 404)


# Contents, down


def test_a_file_comes_compressed_and_says_what_it_is(client: Client, wire: Wire) -> None:
    uuid = bundle_of(client, "a.txt", b"hello\n" * 1000)
    reply = wire.ask(
        "GET",
        f"bundles/{uuid}/contents/blob/?support_redirect=1",
        headers={"Accept-Encoding": "gzip"},
    )
    assert reply.status == 200
    assert reply.headers["Content-Encoding"] == "gzip"
    assert reply.headers["Target-Type"] == "file"
    assert reply.headers["X-Codalab-Target-Size"] == "6000"
    assert "a.txt" in reply.headers["Content-Disposition"]
    assert gzip.decompress(reply.body) == b"hello\n" * 1000


def test_a_directory_comes_as_an_archive_and_says_what_it_is(client: Client, wire: Wire) -> None:
    uuid = new_uuid()
    client.create([{"uuid": uuid, "bundle_type": "dataset", "metadata": {"name": "data"}}])
    client.upload(uuid, tar_gz({"d/a": b"1", "b": b"22"}), filename="d.tar.gz", finalize=True)
    reply = wire.ask(
        "GET",
        f"bundles/{uuid}/contents/blob/?support_redirect=1",
        headers={"Accept-Encoding": "gzip"},
    )
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/gzip"
    assert reply.headers["Content-Encoding"] == "identity"
    assert reply.headers["Target-Type"] == "directory"
    assert reply.headers["X-Codalab-Target-Size"].isdigit()
    assert "data.tar.gz" in reply.headers["Content-Disposition"]
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as archive:
        members = {member.name.removeprefix("./") for member in archive if member.isfile()}
    assert members == {"d/a", "b"}


def test_contents_are_described_as_their_worker_reads_it(client: Client, wire: Wire) -> None:
    uuid = bundle_of(client, "a.txt", b"hello\n")
    reply = wire.ask("GET", f"bundles/{uuid}/contents/info/?depth=1")
    assert reply.status == 200
    document = reply.json()
    assert document["data"]["type"] == "file"
    assert document["data"]["size"] == 6
    assert document["data"]["resolved_target"] == {"bundle_uuid": uuid, "subpath": ""}
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["meta"]["version"])
    assert wire.ask("GET", f"bundles/{new_uuid()}/contents/info/").status == 404
