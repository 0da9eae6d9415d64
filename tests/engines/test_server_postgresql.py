"""The embedded server over a real PostgreSQL: a pipeline, and a database that dies under it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from managing import eventually
from postgresql_engine import PostgreSQL
from serving import Server
from wire_worker import WireWorker

from bundles.client import Client
from bundles.errors import BundlesError, Conflict, ServerFault, UsageError
from bundles.model import new_uuid

pytestmark = pytest.mark.engine("postgresql")


class PostgreSQLServer(Server):
    """`bundles serve --database postgresql://…`."""

    database_url = ""

    def start(self, *options: str) -> None:
        super().start("--database", self.database_url, *options)


@pytest.fixture
def server(tmp_path: Path, postgresql_url: str) -> Iterator[PostgreSQLServer]:
    running = PostgreSQLServer(tmp_path)
    running.database_url = postgresql_url
    running.start()
    try:
        yield running
    finally:
        if running.running:
            running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(patience_seconds=30) as made:
        yield made


def run(client: Client, **more: Any) -> str:
    return client.create([{"bundle_type": "run", "command": "true", **more}])[0].uuid


def test_a_pipeline_goes_through_its_whole_life(client: Client) -> None:
    data = client.create(
        [{"bundle_type": "dataset", "metadata": {"name": "däta"}}], wait_for_upload=True
    )[0].uuid
    client.upload(data, b"content", filename="x", finalize=True)
    first, second, failing = new_uuid(), new_uuid(), new_uuid()
    client.create(
        [
            {
                "uuid": second,
                "command": "two",
                "dependencies": [{"child_path": "one", "parent_uuid": first}],
            },
            {
                "uuid": first,
                "command": "one",
                "dependencies": [{"child_path": "d", "parent_uuid": data}],
            },
            {
                "uuid": failing,
                "command": "three",
                "dependencies": [{"child_path": "one", "parent_uuid": first}],
                "metadata": {"request_priority": -1, "tags": ["x"]},
            },
        ]
    )
    worker = WireWorker(client, cpus=1)
    message = worker.take()
    assert message["uuid"] == first
    worker.say(worker.run(message, "running", cpu_usage=0.5, memory_usage=0.25))
    worker.upload(message, stdout="one")
    replies = worker.say(worker.run(message, "finalizing", exitcode=0))
    assert sorted(reply["type"] for reply in replies) == ["mark_finalized", "run"]
    [message] = [reply for reply in replies if reply["type"] == "run"]
    assert message["uuid"] == second
    worker.upload(message, stdout="two")
    replies = worker.say(worker.run(message, "finalizing", exitcode=0), acknowledged=replies)
    [message] = [reply for reply in replies if reply["type"] == "run"]
    worker.upload(message, stdout="three")
    worker.say(worker.run(message, "finalizing", exitcode=3), acknowledged=replies)
    assert [client.bundle(uuid).state for uuid in (first, second, failing)] == [
        "ready",
        "ready",
        "failed",
    ]
    with client.download(second, "stdout") as download:
        assert b"".join(download.chunks()) == b"two"
    assert [change.to_state for change in client.changes(0).changes if change.uuid == first] == [
        "created",
        "staged",
        "starting",
        "preparing",
        "running",
        "ready",
    ]


def test_keywords_select_as_over_sqlite(client: Client) -> None:
    a = run(client, metadata={"name": "alpha", "request_queue": "tag=gpu", "level": 2})
    b = run(client, metadata={"name": "beta", "request_queue": "gpu", "level": 10, "odd": True})
    run(client, metadata={"name": "100%_sure", "request_cpus": 4})
    for keywords, expected in (
        (["request_queue=gpu,tag=gpu"], [a, b]),
        (["level=2"], [a]),
        (["odd=true"], [b]),
        (["level=.sort-", "request_queue=%gpu"], [b, a]),
        (["alph"], [a]),
        ([a[:12]], [a]),
        ([".last"], None),
    ):
        found = [bundle.uuid for bundle in client._search_page(keywords)]
        assert found == (expected or found[:1]), keywords
    assert client.count(["state=staged"]) == 3
    assert client.count(["state=staged", ".mine", "_sure"]) == 1
    assert [(shape.resources.cpus, shape.count) for shape in client.shapes()] == [(1, 2), (4, 1)]
    total = client.request("GET", "bundles", params=[("keywords", "level=.sum")])
    assert total.json()["meta"]["result"] == 12
    with pytest.raises(UsageError):
        client.request("GET", "bundles", params=[("keywords", "name=.sum")])


def test_ten_thousand_bundles_are_created_in_one_request(client: Client) -> None:
    bundles = [{"uuid": new_uuid(), "command": "true"} for _ in range(10_000)]
    created = client.create(bundles)
    assert [bundle.uuid for bundle in created] == [bundle["uuid"] for bundle in bundles]
    assert client.count(["state=staged"]) == 10_000


def test_a_killed_server_goes_on_where_it_was(server: Server, client: Client) -> None:
    worker = WireWorker(client)
    uuid = run(client)
    message = worker.take()
    server.stop(signal.SIGKILL)
    server.start()
    worker.say(worker.run(message, "running"))
    worker.finish(message)
    assert client.bundle(uuid).state == "ready"


def test_leases_and_drained_workers_are_known_after_a_kill(server: Server, client: Client) -> None:
    fences = client.acquire_leases(["p", "q"], "first", 600)
    client.release_leases({"q": fences["q"]}, "first")
    WireWorker(client).say()
    client.drain_worker("w", "not needed")
    server.stop(signal.SIGKILL)
    server.start()
    with pytest.raises(Conflict, match="p is held by first"):
        client.acquire_leases(["p"], "second", 600)
    client.renew_leases({"p": fences["p"]}, "first")
    assert client.acquire_leases(["q"], "second", 600)["q"] == fences["q"] + 1
    [worker] = client.workers()
    assert worker["is_draining"]


def test_a_database_of_the_version_before_is_brought_up_to_date(
    server: PostgreSQLServer, client: Client
) -> None:
    server.stop()
    with psycopg.connect(server.database_url) as database:
        database.execute("DROP INDEX bundle_staged")
        database.execute("DROP TABLE lease")
        database.execute("ALTER TABLE worker DROP COLUMN drain_reason")
        database.execute("UPDATE schema_version SET version = 1")
    server.start()
    assert client.acquire_leases(["p"], "first", 600) == {"p": 1}
    assert client.workers() == []


def test_a_database_of_version_2_gets_its_index_and_counts_from_it(
    server: PostgreSQLServer, client: Client
) -> None:
    for cpus in (1, 2, 2):
        run(client, metadata={"request_cpus": cpus})
    server.stop()
    with psycopg.connect(server.database_url) as database:
        database.execute("DROP INDEX bundle_staged")
        database.execute("UPDATE schema_version SET version = 2")
    server.start()
    assert [(shape.resources.cpus, shape.count) for shape in client.shapes()] == [(1, 1), (2, 2)]
    with psycopg.connect(server.database_url) as database:
        [[version]] = database.execute("SELECT version FROM schema_version").fetchall()
        indexes = database.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'bundle'")
        assert version == 3
        assert ("bundle_staged",) in indexes.fetchall()


def test_losses_are_known_after_a_kill_and_too_many_of_them_fail_the_bundle(
    server: PostgreSQLServer, client: Client
) -> None:
    server.stop()
    server.start("--max-losses", "3")
    uuid = run(client)
    for name in ("first", "second", "third"):
        assert client.bundle(uuid).state == "staged"
        worker = WireWorker(client, name)
        worker.say(worker.run(worker.take(), "running"))
        server.stop(signal.SIGKILL)
        server.start("--max-losses", "3")
        client.checkout(name, None, "its job has ended")
    bundle = client.bundle(uuid)
    assert bundle.state == "failed"
    assert bundle.metadata["lost_with"] == ["first", "second", "third"]
    assert "first, second, third" in bundle.metadata["failure_message"]


def test_old_transitions_go(server: PostgreSQLServer, client: Client) -> None:
    run(client)
    server.stop()
    with psycopg.connect(server.database_url) as database:
        database.execute(
            "INSERT INTO transition (id, uuid, owner_id, to_state, time, claim, reason) "
            "SELECT (SELECT max(id) FROM transition) + i, '0x0', '0', 'created', 0, 0, '' "
            "FROM generate_series(1, 102500) i"
        )
        [[first]] = database.execute("SELECT min(id) FROM transition").fetchall()
    server.start()
    eventually(lambda: client.changes(first + 500).reset, "the oldest are gone")
    with psycopg.connect(server.database_url) as database:
        eventually(
            lambda: database.execute("SELECT count(*) FROM transition").fetchone() == (100_502,),
            "whole batches of them",
        )


def test_a_database_that_dies_is_503_until_it_is_back(
    server: Server, client: Client, postgresql: PostgreSQL
) -> None:
    worker = WireWorker(client)
    uuid = run(client)
    message = worker.take()
    with server.client() as impatient:
        postgresql.stop()
        for call in (
            lambda: impatient.create([{"command": "true"}]),
            lambda: impatient.search([]),
            lambda: impatient.act([{"type": "kill", "uuid": uuid}]),
            lambda: impatient.upload(uuid, b"", filename="x", claim=message["claim"], unpack=False),
        ):
            with pytest.raises(ServerFault, match="database"):
                call()
        health = httpx.get(f"{server.url}/healthz", trust_env=False, timeout=60)
        assert health.status_code == 503
        assert health.text.startswith("the database failed")
        postgresql.start()
        assert impatient.count(["state=preparing"]) == 1
    worker.say(worker.run(message, "running"))
    worker.finish(message)
    assert client.bundle(uuid).state == "ready"
    assert client.count([]) == 1


def test_a_second_server_over_the_same_database_says_so(
    server: Server, tmp_path: Path, postgresql_url: str
) -> None:
    done = server.command(
        "serve", "--home", str(tmp_path / "other"), "--port", "0", "--database", postgresql_url
    )
    assert done.returncode == 1
    assert "another server writes" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_nul_character_is_refused_with_a_sentence(client: Client) -> None:
    with pytest.raises(BundlesError, match="NUL"):
        run(client, metadata={"description": "a\0b"})
