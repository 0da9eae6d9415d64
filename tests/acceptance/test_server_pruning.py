"""Transitions that are older than anybody needs go, a few at a time; who asks for them is told."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from serving import Server

from bundles.client import Client

OLD_SECONDS = 40 * 86400
PATIENCE_SECONDS = 90.0
KEPT = 100_000
SURPLUS = 2_500


def grow_old(path: Path, number: int) -> tuple[int, int]:
    """So many transitions more, of long ago, before the others. Returns the first and last id."""
    with sqlite3.connect(path) as database:
        [[newest]] = database.execute("SELECT max(id) FROM transition")
        columns = "uuid, owner_id, from_state, to_state, time, claim, worker_id, reason"
        database.execute(
            f"INSERT INTO transition (id, {columns}) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT ? + i, '0x0', '0', NULL, 'created', ?, 0, NULL, '' FROM n",
            (number, newest, time.time() - OLD_SECONDS),
        )
    database.close()
    return newest, newest + number


def until_forgotten(client: Client, cursor: int) -> None:
    """Until the server says that it does not know any more what came after the cursor."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    newest = client.changes(None).cursor
    while not client.changes(cursor).reset:
        assert time.monotonic() < deadline, "the old transitions stay"
        client.changes(newest, wait_seconds=0.2)


def test_old_transitions_go_and_the_newest_stay(server: Server) -> None:
    with server.client(patience_seconds=30) as client:
        client.create([{"command": "true"}])
        server.stop()
        path = server.home.path / "bundles.sqlite"
        first, last = grow_old(path, KEPT + SURPLUS)
        server.start()
        until_forgotten(client, first + 1500)
        created = client.create([{"command": "true"}])[0]
        found = client.changes(last)
        assert not found.reset
        assert {change.uuid for change in found.changes} == {created.uuid}
        server.stop()
        with sqlite3.connect(path) as database:
            [[oldest, number]] = database.execute("SELECT min(id), count(*) FROM transition")
        database.close()
        assert KEPT <= number < KEPT + 1000, "in whole batches, and no more than it may"
        server.start()
        assert client.changes(oldest - 2).reset
        kept = client.changes(oldest - 1)
        assert not kept.reset
        assert len(kept.changes) == 1000, "a page"
