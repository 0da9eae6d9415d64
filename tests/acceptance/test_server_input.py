"""What people send that makes no sense: a status and one sentence, and nothing has changed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from serving import Server
from wire_worker import WireWorker

from bundles.model import new_uuid

UUID = "0x" + "1" * 32


def speak_to(server: Server) -> httpx.Client:
    token = server.home.token_path.read_text().strip()
    return httpx.Client(
        base_url=server.url + "/rest/",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=60,
    )


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with speak_to(server) as made:
        yield made


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for many tests, in which nothing is ever created."""
    running = Server(tmp_path_factory.mktemp("empty"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def refusing(empty_server: Server) -> Iterator[httpx.Client]:
    with speak_to(empty_server) as made:
        yield made


def run(**more: Any) -> dict[str, Any]:
    return {"bundle_type": "run", "command": "true", **more}


def post(http: httpx.Client, *bundles: Any) -> httpx.Response:
    data = [{"type": "bundles", "attributes": bundle} for bundle in bundles]
    return http.post("bundles", json={"data": data})


def dependency(child_path: str = "d", parent: str = UUID, parent_path: str = "") -> dict[str, str]:
    return {"child_path": child_path, "parent_uuid": parent, "parent_path": parent_path}


def is_sentence(reply: httpx.Response, status: int, *words: str) -> bool:
    text = reply.text
    return (
        reply.status_code == status
        and "\n" not in text
        and 10 < len(text) < 400
        and all(word in text for word in words)
    )


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (run(command="  "), ["command"]),
        (run(command=5), ["command", "5"]),
        (run(command="a\0b"), ["NUL"]),
        ({"bundle_type": "make"}, ["make"]),
        (run(uuid="0x12"), ["0x12"]),
        (run(metadata=[1]), ["metadata"]),
        (run(metadata={"request_cpus": -1}), ["request_cpus", "-1"]),
        (run(metadata={"request_cpus": 1.5}), ["request_cpus", "1.5"]),
        (run(metadata={"request_cpus": 10**30}), ["cpus"]),
        (run(metadata={"request_memory": "2x"}), ["2x"]),
        (run(metadata={"request_memory": "-2g"}), ["-2g"]),
        (run(metadata={"request_memory": "9" * 40}), ["larger"]),
        (run(metadata={"request_time": "soon"}), ["soon"]),
        (run(metadata={"request_priority": "high"}), ["high"]),
        (run(metadata={"tags": "a"}), ["tags"]),
        (run(metadata={"name": "a/b"}), ["a/b"]),
        (run(metadata={"allow_failed_dependencies": "yes"}), ["yes"]),
        (run(dependencies=[dependency()]), [UUID]),
        (run(dependencies=[dependency(parent="0x12")]), ["0x12"]),
        (run(dependencies=[dependency("../up")]), ["../up"]),
        (run(dependencies=[dependency("/abs")]), ["/abs"]),
        (run(dependencies=[dependency("")]), ["key"]),
        (run(dependencies=[dependency(parent_path="../x")]), ["../x"]),
        (run(dependencies=[dependency("a"), dependency("./a")]), ["twice"]),
        (run(dependencies=[dependency("a"), dependency("a/b")]), ["inside"]),
        (run(uuid=UUID, dependencies=[dependency()]), ["itself"]),
        ({"bundle_type": "dataset", "dependencies": [dependency()]}, ["dataset"]),
    ],
)
def test_a_bundle_that_makes_no_sense_is_refused_by_name(
    refusing: httpx.Client, bundle: dict[str, Any], words: list[str]
) -> None:
    reply = post(refusing, run(), bundle)
    assert is_sentence(reply, 400, *words), reply.text
    assert refusing.get("bundles?keywords=.count").json()["meta"]["result"] == 0


def test_a_cycle_is_refused(http: httpx.Client) -> None:
    a, b, c = new_uuid(), new_uuid(), new_uuid()
    reply = post(
        http,
        run(uuid=a, dependencies=[dependency(parent=b)]),
        run(uuid=b, dependencies=[dependency(parent=c)]),
        run(uuid=c, dependencies=[dependency(parent=a)]),
    )
    assert is_sentence(reply, 400, "cycle"), reply.text


def test_children_may_come_before_their_parents_in_one_request(http: httpx.Client) -> None:
    a, b = new_uuid(), new_uuid()
    reply = post(http, run(uuid=a, dependencies=[dependency(parent=b)]), run(uuid=b))
    states = [element["attributes"]["state"] for element in reply.json()["data"]]
    assert states == ["created", "staged"]


def test_a_request_that_is_repeated_creates_nothing_twice(http: httpx.Client) -> None:
    uuid = new_uuid()
    assert post(http, run(uuid=uuid)).status_code == 200
    again = post(http, run(uuid=uuid), run(uuid=new_uuid()))
    assert again.json()["data"][0]["id"] == uuid
    assert http.get("bundles?keywords=.count").json()["meta"]["result"] == 2
    other = post(http, run(uuid=uuid, command="false"))
    assert is_sentence(other, 409, uuid), other.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"data": 5}', b'{"data": [5]}', b"\xff"])
def test_a_body_that_is_no_document_is_refused(refusing: httpx.Client, body: bytes) -> None:
    for path in ("bundles", "bundle-actions", "workers/w/checkin"):
        assert is_sentence(refusing.post(path, content=body), 400), path


@pytest.mark.parametrize(
    "query",
    [
        "keywords=.limit%3Dx",
        "keywords=.nonsense",
        "specs=0x12",
        "command=x&dependencies=5",
    ],
)
def test_a_search_that_makes_no_sense_is_refused(refusing: httpx.Client, query: str) -> None:
    reply = refusing.get(f"bundles?{query}")
    assert reply.status_code in (400, 404)
    assert is_sentence(reply, reply.status_code)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "wait_seconds=99", "state=done"])
def test_changes_that_make_no_sense_are_refused(refusing: httpx.Client, query: str) -> None:
    reply = refusing.get(f"changes?{query}")
    assert is_sentence(reply, 400), reply.text


def test_a_cursor_of_another_server_is_told_to_read_anew(http: httpx.Client) -> None:
    now = http.get("changes").json()["meta"]["cursor"]
    for cursor in (812, now + 1000, 10**15):
        meta = http.get(f"changes?after={cursor}&wait_seconds=60").json()["meta"]
        assert meta["reset"] is True
        assert meta["cursor"] == now


def test_the_feed_tells_each_change_once_in_order(http: httpx.Client) -> None:
    post(http, *[run() for _ in range(5)])
    seen: list[int] = []
    cursor = 0
    while True:
        found = http.get(f"changes?after={cursor}&limit=3").json()
        if not found["data"]:
            break
        seen += [change["id"] for change in found["data"]]
        cursor = found["meta"]["cursor"]
    assert len(seen) == 10
    assert seen == sorted(set(seen))
    staged = http.get("changes?after=0&state=staged").json()["data"]
    assert [change["to"] for change in staged] == ["staged"] * 5


def test_the_feed_tells_the_life_of_one_bundle_and_no_other(http: httpx.Client) -> None:
    post(http, *[run() for _ in range(3)])
    every = http.get("changes?after=0").json()["data"]
    uuid = every[-1]["uuid"]
    life = http.get(f"changes?after=0&uuid={uuid}").json()["data"]
    assert life == [change for change in every if change["uuid"] == uuid]
    assert [change["to"] for change in life] == ["created", "staged"]
    assert http.get("changes?after=0&uuid=0x0").json()["data"] == []


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Basic YTpi", "Bearer", "nonsense"], ids=str
)
def test_without_a_token_everything_is_401(empty_server: Server, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with httpx.Client(
        base_url=empty_server.url + "/rest/", headers=headers, trust_env=False
    ) as http:
        for method, path in (
            ("GET", "bundles"),
            ("POST", "bundles"),
            ("GET", "user"),
            ("GET", "changes"),
            ("POST", "workers/w/checkin"),
            ("GET", f"bundles/{UUID}/contents/blob/"),
            ("POST", "worker-tokens"),
            ("POST", "oauth2/revoke"),
        ):
            assert is_sentence(http.request(method, path), 401), path


def test_a_password_opens_and_a_wrong_one_does_not(server: Server, http: httpx.Client) -> None:
    attributes = {"user_name": "ann", "password": "secret"}
    made = http.post("users", json={"data": {"type": "users", "attributes": attributes}})
    assert made.status_code == 201
    assert "secret" not in made.text
    again = http.post("users", json={"data": {"type": "users", "attributes": attributes}})
    assert is_sentence(again, 409, "ann")

    def grant(**form: str) -> httpx.Response:
        url = server.url + "/rest/oauth2/token"
        return httpx.post(url, data=form, auth=("codalab_cli_client", ""), trust_env=False)

    for username, password in (("ann", "wrong"), ("nobody", "secret"), ("admin", "")):
        refused = grant(grant_type="password", username=username, password=password)
        assert refused.status_code == 401
        assert refused.json()["error"] == "invalid_grant"
    granted = grant(grant_type="password", username="ann", password="secret").json()
    assert granted["token_type"] == "Bearer"
    assert granted["expires_in"] == 3600
    renewed = grant(grant_type="refresh_token", refresh_token=granted["refresh_token"]).json()

    def whoami(token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(server.url + "/rest/user", headers=headers, trust_env=False)

    assert whoami(renewed["access_token"]).json()["data"]["attributes"]["user_name"] == "ann"
    assert whoami(renewed["refresh_token"]).status_code == 401
    used = grant(grant_type="refresh_token", refresh_token=granted["refresh_token"])
    assert used.status_code == 401
    httpx.post(
        server.url + "/rest/oauth2/revoke",
        data={"token": renewed["access_token"]},
        headers={"Authorization": f"Bearer {renewed['access_token']}"},
        trust_env=False,
    )
    assert whoami(renewed["access_token"]).status_code == 401


def test_secrets_are_not_in_the_database(server: Server, http: httpx.Client) -> None:
    attributes = {"user_name": "ann", "password": "a-secret-password"}
    http.post("users", json={"data": {"type": "users", "attributes": attributes}})
    worker_token = http.post("worker-tokens").json()["data"]["attributes"]["token"]
    token = server.home.token_path.read_text().strip()
    server.stop()
    content = b"".join(path.read_bytes() for path in server.home.path.glob("bundles.sqlite*"))
    content += server.log.read_bytes()
    for secret in ("a-secret-password", worker_token, token):
        assert secret.encode() not in content


def test_a_huge_json_body_is_refused_before_it_is_read(server: Server) -> None:
    token = server.home.token_path.read_text().strip()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            (
                "POST /rest/bundles HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {token}\r\nContent-Length: {1024**3}\r\n\r\n"
            ).encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_huge_json_body_of_unknown_length_is_refused_while_it_is_read(
    http: httpx.Client,
) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(1024):
            yield bytes(1024**2)

    try:
        reply = http.post("bundles", content=body())
    except httpx.TransportError:
        pass  # it closed the connection without hearing the rest
    else:
        assert is_sentence(reply, 413), reply.text
    assert http.get("user").status_code == 200


def test_an_absolute_request_target_is_understood(server: Server) -> None:
    token = server.home.token_path.read_text().strip()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            (
                f"GET {server.url}/rest/user?x=1 HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            ).encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_metadata_that_may_be_edited_is_and_the_rest_is_not(http: httpx.Client) -> None:
    [found] = post(http, run()).json()["data"]

    def edit(**metadata: Any) -> httpx.Response:
        element = {"type": "bundles", "id": found["id"], "attributes": {"metadata": metadata}}
        return http.patch("bundles", json={"data": [element]})

    reply = edit(name="new", description="d", tags=["a"], request_priority=3)
    assert reply.json()["data"][0]["attributes"]["metadata"]["name"] == "new"
    assert http.get("bundles?keywords=name%3Dnew&keywords=.count").json()["meta"]["result"] == 1
    for wrong in ({"request_cpus": 2}, {"exitcode": 0}, {"name": ""}, {"tags": 5}):
        assert is_sentence(edit(**wrong), 400), wrong


def test_runs_of_the_same_command_over_the_same_dependencies_are_found(
    http: httpx.Client,
) -> None:
    parent, a, b = new_uuid(), new_uuid(), new_uuid()
    post(
        http,
        run(uuid=parent),
        run(uuid=a, command="same", dependencies=[dependency(parent=parent)]),
        run(uuid=b, command="same"),
    )
    wanted = f'[{{"child_path": "d", "parent_uuid": "{parent}"}}]'
    found = http.get("bundles", params={"command": "same", "dependencies": wanted}).json()
    assert [element["id"] for element in found["data"]] == [a]
    found = http.get("bundles", params={"command": "same", "dependencies": "[]"}).json()
    assert [element["id"] for element in found["data"]] == [b]


# The command itself


def serve(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WORKER_MANAGER_")}
    return subprocess.run(
        [sys.executable, "-m", "bundles", "serve", "--home", str(home), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def is_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> bool:
    lines = done.stderr.splitlines()
    return (
        done.returncode == code
        and done.stdout == ""
        and len(lines) == 1
        and all(word in lines[0] for word in words)
    )


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = serve("--port", port, home=tmp_path / "h")
    assert is_one_line(done, 1, port, "in use"), done.stderr


def test_a_second_server_over_the_same_home_is_one_line(server: Server) -> None:
    done = serve("--port", "0", home=server.home.path)
    assert is_one_line(done, 1, server.url), done.stderr


def test_a_home_that_is_not_writable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = serve("--port", "0", home=tmp_path / "file" / "h")
    assert is_one_line(done, 2, "cannot be written"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--database", "mysql://x/y"], 2, "mysql"),
        (["--database", "nonsense"], 2, "URL"),
        (["--database", "postgresql://nobody@127.0.0.1:1/x"], 1, "database"),
        (["--database", "sqlite:////nowhere/at/all.sqlite"], 1, "database"),
        (["--worker-timeout-seconds", "0"], 2, "worker-timeout-seconds"),
        (["--worker-timeout-seconds", "-5"], 2, "worker-timeout-seconds"),
        (["--port", "70000"], 2, "70000"),
        (["--host", "256.1.1.1"], 2, "256.1.1.1"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    done = serve("--port", "0", *arguments, home=tmp_path / "h")
    assert is_one_line(done, code, word), done.stderr


def test_the_token_file_is_private_and_made_again_when_it_is_gone(server: Server) -> None:
    path = server.home.token_path
    assert path.stat().st_mode & 0o777 == 0o600
    assert server.home.address_path.stat().st_mode & 0o777 == 0o600
    old = path.read_text()
    server.stop()
    server.start()
    assert path.read_text() == old
    server.stop()
    path.unlink()
    server.start()
    assert path.stat().st_mode & 0o777 == 0o600
    with server.client() as client:
        assert client.whoami()["is_root_user"] is True
    reply = httpx.get(
        server.url + "/rest/user",
        headers={"Authorization": f"Bearer {old.strip()}"},
        trust_env=False,
    )
    assert reply.status_code == 401


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_answers_who_waits(server: Server, number: int) -> None:
    token = server.home.token_path.read_text().strip()
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with (
        server.client() as client,
        socket.create_connection(address, timeout=30) as checking_in,
        socket.create_connection(address, timeout=30) as watching,
    ):
        body = orjson.dumps(WireWorker(client).document(wait_seconds=60))
        head = f"Host: x\r\nAuthorization: Bearer {token}\r\nContent-Length: "
        checking_in.sendall(
            f"POST /rest/workers/w/checkin HTTP/1.1\r\n{head}{len(body)}\r\n\r\n".encode() + body
        )
        cursor = client.changes(None).cursor
        watching.sendall(
            f"GET /rest/changes?after={cursor}&wait_seconds=60 HTTP/1.1\r\n{head}0\r\n\r\n".encode()
        )
        client.workers()  # goes through every part of the server after those two
        assert server.stop(number) == 0
        assert checking_in.recv(4096).endswith(b"[]")
        assert b'"data":[]' in watching.recv(4096)
