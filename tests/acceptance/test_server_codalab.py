"""What CodaLab's own worker and manager need, spoken as they speak it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets
from serving import Server
from wire_worker import InBackground, tar_gz

from bundles.client import Client


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


class CodaLabWorker:
    """Knows no features; the header must be exactly `application/json` for it."""

    def __init__(self, server: Server, client: Client) -> None:
        token = server.home.token_path.read_text().strip()
        self.client = client
        self.http = httpx.Client(
            base_url=server.url + "/rest/",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=30,
        )

    def __enter__(self) -> CodaLabWorker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.http.close()

    def check_in(self, *runs: dict[str, Any], **more: Any) -> list[Any]:
        document = {
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
        reply = self.http.post("workers/vm(12)/checkin", json=document)
        assert reply.headers["Content-Type"] == "application/json"
        found: list[Any] = reply.json()
        assert isinstance(found, list)
        assert len(found) == 1
        return found

    def start(self, uuid: str) -> bool:
        document = {"hostname": "vm", "start_time": 1}
        return bool(self.http.post(f"workers/vm(12)/start_bundle/{uuid}", json=document).json())

    def upload(self, uuid: str) -> None:
        def chunks() -> Iterator[bytes]:
            yield tar_gz({"stdout": b"hi"})

        reply = self.http.put(
            f"bundles/{uuid}/contents/blob/",
            params={"filename": "bundle.tar.gz", "finalize_on_success": "0", "store": ""},
            content=chunks(),
        )
        assert reply.status_code == 200


def state_of(uuid: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "run_status": "",
        "bundle_start_time": 1.0,
        "container_time_total": 0.5,
        "container_time_user": 0.0,
        "container_time_system": 0.0,
        "docker_image": None,
        "state": state,
        "remote": "vm(12)",
        "exitcode": None,
        "failure_message": None,
        **more,
    }


@pytest.fixture
def worker(server: Server, client: Client) -> Iterator[CodaLabWorker]:
    with CodaLabWorker(server, client) as made:
        yield made


def run(client: Client) -> str:
    return client.create([{"bundle_type": "run", "command": "echo hi"}])[0].uuid


def test_a_run_goes_through_its_whole_life(client: Client, worker: CodaLabWorker) -> None:
    first, second = run(client), run(client)
    [message] = worker.check_in()  # one message a reply, though there are two bundles
    assert (message["type"], message["bundle"]["uuid"]) == ("run", first)
    assert set(message["resources"]) == {
        "cpus", "gpus", "docker_image", "time", "memory", "disk", "network", "tag",
        "tag_exclusive", "runs_left",
    }  # fmt: skip
    assert worker.start(first) is True
    assert client.bundle(first).state == "preparing"
    assert worker.start(first) is False
    [message] = worker.check_in(state_of(first, "running"))
    assert message["bundle"]["uuid"] == second
    assert worker.start(second) is True
    assert client.bundle(first).state == "running"
    worker.upload(first)
    ended = state_of(first, "finalizing", exitcode=0)
    [message] = worker.check_in(ended, state_of(second, "running"))
    assert (message["type"], message["uuid"]) == ("mark_finalized", first)
    found = client.bundle(first)
    assert (found.state, found.metadata["exitcode"]) == ("ready", 0)
    client.act([{"type": "kill", "uuid": second}])
    [message] = worker.check_in(state_of(second, "running"))
    assert (message["type"], message["uuid"]) == ("kill", second)
    worker.upload(second)
    ended = state_of(second, "finalizing", failure_message="Kill requested", exitcode=137)
    [message] = worker.check_in(ended)
    assert message["type"] == "mark_finalized"
    assert client.bundle(second).state == "killed"


def test_a_check_in_without_a_message_is_answered_by_null(worker: CodaLabWorker) -> None:
    assert worker.check_in() == [None]


def test_a_bundle_that_is_queued_meanwhile_ends_the_wait(
    client: Client, worker: CodaLabWorker
) -> None:
    waiting = InBackground(worker.check_in)
    uuid = run(client)
    message = waiting.result()[0] or worker.check_in()[0]
    assert message["bundle"]["uuid"] == uuid


def test_a_bundle_that_is_not_started_is_staged_again_and_offered_once_more(
    client: Client, worker: CodaLabWorker
) -> None:
    uuid = run(client)
    [message] = worker.check_in()
    assert message["type"] == "run"
    cursor = client.changes(None).cursor
    changes = client.changes(cursor, wait_seconds=30, states=["staged"]).changes
    assert [change.uuid for change in changes] == [uuid]
    assert worker.start(uuid) is False
    [message] = worker.check_in()
    assert message["bundle"]["uuid"] == uuid
    assert worker.start(uuid) is True


def test_a_run_that_is_given_back_is_staged_again(client: Client, worker: CodaLabWorker) -> None:
    uuid = run(client)
    worker.check_in()
    worker.start(uuid)
    worker.check_in(state_of(uuid, "staged"), is_terminating=True)
    assert client.bundle(uuid).state == "staged"
    assert "remote" not in client.bundle(uuid).metadata


def test_a_run_that_was_lost_is_staged_again_after_two_check_ins_without_it(
    client: Client, worker: CodaLabWorker
) -> None:
    uuid = run(client)
    worker.check_in()
    worker.start(uuid)
    worker.check_in(is_terminating=True)
    assert client.bundle(uuid).state == "preparing"
    worker.check_in(is_terminating=True)
    assert client.bundle(uuid).state == "staged"


def test_the_doorbell_rings_when_a_message_waits(
    server: Server, client: Client, worker: CodaLabWorker
) -> None:
    uuid = run(client)
    worker.check_in()
    worker.start(uuid)
    address = server.url.replace("http", "ws") + "/ws/worker/vm(12)"

    async def listen() -> str | bytes:
        async with websockets.connect(address, proxy=None) as bell:
            await bell.send("a")
            await asyncio.to_thread(client.act, [{"type": "kill", "uuid": uuid}])
            return await asyncio.wait_for(bell.recv(), 20)

    assert asyncio.run(listen()) == "vm(12)"
    [message] = worker.check_in(state_of(uuid, "running"))
    assert message["type"] == "kill"


def test_the_search_of_codalabs_manager_is_answered(client: Client, server: Server) -> None:
    uuid = run(client)
    token = server.home.token_path.read_text().strip()
    reply = httpx.get(
        server.url + "/rest/bundles",
        params=[
            ("include", "owner"),
            ("worksheet", "None"),
            ("keywords", "state=staged"),
            ("keywords", ".mine"),
            ("keywords", "request_queue=,tag="),
        ],
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    ).json()
    [found] = reply["data"]
    assert found["id"] == uuid
    assert found["attributes"]["metadata"]["request_cpus"] == 1
    assert found["attributes"]["metadata"]["request_memory"] == "2g"
    assert reply["included"][0]["attributes"]["user_name"] == "admin"
    assert reply["meta"]["version"]
