"""Leases at a real server: one holder at a time, fences that grow, nothing lost by a restart."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator

import pytest
from serving import Server
from wire_worker import InBackground

from bundles.client import Client
from bundles.errors import Conflict, NotAuthenticated, NotPermitted, UsageError
from bundles.home import Credentials

LONG = 600.0


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


def test_a_lease_has_one_holder_until_it_is_given_back(client: Client) -> None:
    first = client.acquire_leases(["p"], "first", LONG)
    with pytest.raises(Conflict, match="p is held by first"):
        client.acquire_leases(["p"], "second", LONG)
    client.release_leases(first, "first")
    second = client.acquire_leases(["p"], "second", LONG)
    assert second["p"] > first["p"]


def test_asked_again_by_its_holder_it_has_the_same_fence(client: Client) -> None:
    first = client.acquire_leases(["p"], "first", LONG)
    assert client.acquire_leases(["p"], "first", LONG) == first


def test_of_several_names_all_are_taken_or_none(client: Client) -> None:
    client.acquire_leases(["b"], "first", LONG)
    with pytest.raises(Conflict, match="b is held by first"):
        client.acquire_leases(["a", "b", "c"], "second", LONG)
    assert client.acquire_leases(["a", "c"], "third", LONG) == {"a": 1, "c": 1}


def test_whoever_waits_has_it_as_soon_as_it_is_given_back(client: Client) -> None:
    fences = client.acquire_leases(["p"], "first", LONG)
    waiting = InBackground(lambda: client.acquire_leases(["p"], "second", LONG, wait_seconds=60))
    client.release_leases(fences, "first")
    assert waiting.result()["p"] == fences["p"] + 1


def test_whoever_waits_has_it_when_nothing_is_heard_of_the_holder(client: Client) -> None:
    fences = client.acquire_leases(["p"], "first", 1)
    assert client.acquire_leases(["p"], "second", LONG, wait_seconds=30)["p"] > fences["p"]
    with pytest.raises(Conflict, match="no longer held"):
        client.renew_leases(fences, "first")


def test_one_who_renews_it_keeps_it(client: Client) -> None:
    fences = client.acquire_leases(["p"], "first", 3)
    waiting = InBackground(lambda: client.acquire_leases(["p"], "second", 3, wait_seconds=4))
    for _ in range(4):
        with pytest.raises(Conflict):  # the server's own wait is the clock of this test
            client.acquire_leases(["p"], "third", 3, wait_seconds=1)
        client.renew_leases(fences, "first")
    with pytest.raises(Conflict, match="held by first"):
        waiting.result()


def test_one_that_ran_out_and_that_nobody_took_can_be_renewed(client: Client) -> None:
    fences = client.acquire_leases(["p"], "first", 1)
    client.acquire_leases(["q"], "other", 2)
    client.acquire_leases(["q"], "another", LONG, wait_seconds=30)  # two seconds have passed
    with pytest.raises(Conflict, match="has run out"):
        client.worker_token("p", fences["p"])
    client.renew_leases(fences, "first")
    assert client.worker_token("p", fences["p"])


def test_a_worker_token_is_refused_to_whoever_has_lost_the_lease(client: Client) -> None:
    first = client.acquire_leases(["p"], "first", LONG)
    assert client.worker_token("p", first["p"])
    client.release_leases(first, "first")
    with pytest.raises(Conflict, match="no longer held"):
        client.worker_token("p", first["p"])
    second = client.acquire_leases(["p"], "second", LONG)
    with pytest.raises(Conflict, match="no longer held"):
        client.worker_token("p", first["p"])
    assert client.worker_token("p", second["p"])
    assert client.worker_token()  # of those who have no lease, none is asked for


def test_every_user_has_names_of_their_own(server: Server, client: Client) -> None:
    client.add_user("ann", "secret")
    fences = client.acquire_leases(["p"], "root's", LONG)
    with Client(server.url, Credentials(username="ann", password="secret")) as ann:
        assert ann.acquire_leases(["p"], "ann's", LONG)
        with pytest.raises(Conflict):
            ann.renew_leases(fences, "root's")
        ann.release_leases(fences, "root's")
    client.renew_leases(fences, "root's")


def test_a_worker_has_nothing_to_do_with_leases(server: Server, client: Client) -> None:
    token = client.worker_token()
    with (
        Client(server.url, Credentials(token=token)) as worker,
        pytest.raises((NotPermitted, NotAuthenticated)),
    ):
        worker.acquire_leases(["p"], "w", LONG)


def test_what_makes_no_sense_is_refused_with_a_sentence(client: Client) -> None:
    for names, ttl_seconds in ((["p"], 0.0), ([], LONG), ([""], LONG), (["p" * 300], LONG)):
        with pytest.raises(UsageError):
            client.acquire_leases(names, "first", ttl_seconds)
    with pytest.raises(UsageError):
        client.request("POST", "worker-tokens", json={"lease": "p"})


def test_a_server_that_was_killed_knows_who_holds_what_and_lets_them_go_on(
    server: Server, client: Client
) -> None:
    gone = client.acquire_leases(["gone"], "first", LONG)
    client.release_leases(gone, "first")
    fences = client.acquire_leases(["p"], "first", LONG)
    server.stop(signal.SIGKILL)
    server.start()
    with pytest.raises(Conflict, match="held by first"):
        client.acquire_leases(["p"], "second", LONG)
    client.renew_leases(fences, "first")
    assert client.acquire_leases(["gone"], "second", LONG)["gone"] == gone["gone"] + 1


def test_a_database_of_the_version_before_is_brought_up_to_date(server: Server) -> None:
    server.stop()
    with sqlite3.connect(server.home.path / "bundles.sqlite") as database:
        database.execute("DROP TABLE lease")
        database.execute("DROP INDEX bundle_staged")
        database.execute("ALTER TABLE worker DROP COLUMN drain_reason")
        database.execute("UPDATE schema_version SET version = 1")
    database.close()
    server.start()
    server.stop()
    server.start()
    with server.client() as client:
        assert client.acquire_leases(["p"], "first", LONG) == {"p": 1}
        assert client.workers() == []
