"""Workers that are told to take no more: by the server's word, kept and taken back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server
from wire_worker import InBackground, WireWorker

from bundles.client import Client
from bundles.errors import Conflict, NotFound, NotPermitted
from bundles.home import Credentials

KNOWING = ["batch", "claims", "drain"]


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(patience_seconds=30) as made:
        yield made


def run(client: Client) -> str:
    return client.create([{"bundle_type": "run", "command": "true"}])[0].uuid


def shown(client: Client) -> dict[str, Any]:
    [worker] = client.workers()
    return worker


def test_a_worker_that_waits_is_told_at_once_and_gets_nothing_more(client: Client) -> None:
    worker = WireWorker(client, features=KNOWING)
    worker.say()
    waiting = InBackground(lambda: worker.say(wait_seconds=60))
    client.drain_worker("w", "the pool is smaller now")
    [told] = waiting.result()
    assert (told["type"], told["is_draining"]) == ("drain", True)
    assert told["reason"] == "the pool is smaller now"
    uuid = run(client)
    assert worker.say(acknowledged=[told], is_draining=True, is_terminating=True) == []
    assert shown(client)["is_draining"]
    assert client.bundle(uuid).state == "staged"
    assert WireWorker(client, "other").take()["uuid"] == uuid


def test_it_finishes_what_it_has(client: Client) -> None:
    worker = WireWorker(client, features=KNOWING)
    uuid = run(client)
    message = worker.take()
    client.drain_worker("w", "")
    [told] = worker.say(worker.run(message, "running"))
    worker.facts |= {"is_draining": True, "is_terminating": True}
    worker.say(worker.run(message, "running"), acknowledged=[told])
    worker.finish(message)
    assert client.bundle(uuid).state == "ready"
    assert worker.leave("drained") == []
    with pytest.raises(NotFound):
        client.drain_worker("w", "too late")


def test_it_is_told_again_until_it_says_that_it_knows(client: Client) -> None:
    worker = WireWorker(client, features=KNOWING)
    worker.say()
    client.drain_worker("w", "")
    [first] = worker.say()
    [again] = worker.say(acknowledged=[first])  # but is not draining
    assert again["id"] != first["id"]
    restarted = WireWorker(client, features=KNOWING)
    [told] = restarted.say(wait_seconds=10)
    assert told["is_draining"]


def test_the_word_can_be_taken_back(client: Client) -> None:
    worker = WireWorker(client, features=KNOWING)
    worker.say()
    client.drain_worker("w", "")
    client.drain_worker("w", "", drain=False)
    worker.say(is_draining=True)  # had it heard the first word only
    [told] = [m for m in worker.say(is_draining=True, wait_seconds=10) if not m["is_draining"]]
    assert worker.say(acknowledged=[told]) == []
    assert not shown(client)["is_draining"]
    uuid = run(client)
    assert worker.take()["uuid"] == uuid


def test_a_worker_that_does_not_know_the_word_gets_nothing_more_all_the_same(
    client: Client,
) -> None:
    worker = WireWorker(client)
    worker.say()
    client.drain_worker("w", "")
    uuid = run(client)
    assert worker.say() == []
    assert client.bundle(uuid).state == "staged"


def test_the_word_outlives_a_server_that_is_killed(server: Server, client: Client) -> None:
    worker = WireWorker(client, features=KNOWING)
    worker.say()
    client.drain_worker("w", "")
    server.stop(signal.SIGKILL)
    server.start()
    uuid = run(client)
    [told] = worker.say(wait_seconds=10)
    assert (told["type"], told["is_draining"]) == ("drain", True)
    assert client.bundle(uuid).state == "staged"


def test_only_a_workers_owner_says_so_and_no_worker(server: Server, client: Client) -> None:
    client.add_user("ann", "secret")
    WireWorker(client).say()
    for credentials in (
        Credentials(username="ann", password="secret"),
        Credentials(token=client.worker_token()),
    ):
        with Client(server.url, credentials) as other, pytest.raises(NotPermitted):
            other.drain_worker("w", "")
    assert not shown(client)["is_draining"]


def test_a_worker_that_was_given_up_and_waits_is_told_at_once(client: Client) -> None:
    worker = WireWorker(client)
    worker.say()
    waiting = InBackground(lambda: worker.say(wait_seconds=60))
    client.checkout("w", None, "its job has ended")
    with pytest.raises(Conflict, match="taken over"):
        waiting.result()


def test_every_check_in_says_how_long_a_worker_may_be_silent(client: Client) -> None:
    assert client.worker_lease_seconds is None
    WireWorker(client).say()
    assert client.worker_lease_seconds == 60
