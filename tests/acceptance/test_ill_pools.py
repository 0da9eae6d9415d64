"""Pools whose workers do not work, beside a real server: what is wasted, said and mended."""

from __future__ import annotations

import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import httpx
from managing import Managers, eventually
from serving import Server

from manager.ledger import Launch, Ledger

LOST = """#!/bin/sh
# Runs, and never finds the server.
echo "looking for the server with $WORKER_MANAGER_TOKEN"
echo "no route to host"
trap 'exit 7' TERM
while :; do sleep 0.1; done
"""


def executable(directory: Path, text: str) -> str:
    path = directory / "worker"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def launches(managers: Managers, pool: str = "local-process") -> list[Launch]:
    """Oldest first."""
    ledger = Ledger.read_only(managers.server.home.path / "ledger.db")
    if ledger is None:
        return []
    with ledger:
        return ledger.recent(pool, 100)[::-1]


def status(managers: Managers) -> Any:
    (pool,) = managers.json("status", "-o", "json")["pools"]
    return pool


def test_workers_that_never_register_are_ended_and_few_are_tried(managers: Managers) -> None:
    managers.stage(50)
    manager = managers.start(
        *("--min", "0", "--max", "50", "--sleep-time", "0.2", "--registration-seconds", "1"),
        *("--worker-executable", executable(managers.directory, LOST)),
        stand_ins=False,
    )
    eventually(
        lambda: sum(launch.given_up is not None for launch in launches(managers)) == 2,
        "two workers to be given up",
    )
    eventually(lambda: not managers.workers(), "their ends")
    first, second = launches(managers)
    assert first.last_words == "looking for the server with …\nno route to host"
    assert "its last words: no route to host" in managers.log(manager)
    pool = eventually(
        lambda: found if (found := status(managers))["state"] == "held" else None, "the hold"
    )
    assert pool["failures_lately"] == {"never registered": 2}
    assert "never registered" in pool["why"]
    told = managers.command("explain", str(second.key)).stdout
    assert "a failure of its pool: never registered" in told
    assert "no route to host" in told
    assert len(launches(managers)) == 2, "all that a new pool may, and one more after a while"


def test_a_token_that_is_taken_no_more_is_the_credentials_and_a_new_one_mends_it(
    managers: Managers, server: Server
) -> None:
    """The job waits for its machine meanwhile, as those of clusters do."""
    go = managers.directory / "go"
    worker = f'while [ ! -e {go} ]; do sleep 0.1; done; exec {sys.executable} -m worker "$@"'
    manager = managers.start(
        *("--min", "1", "--max", "1", "--sleep-time", "0.2"),
        *("--worker-executable", executable(managers.directory, f"#!/bin/sh\n{worker}\n")),
        stand_ins=False,
    )
    eventually(managers.workers, "a worker")
    assert server.stop() == 0
    (path,) = server.home.path.rglob("*.sqlite")
    database = sqlite3.connect(path)
    with database:
        assert database.execute("DELETE FROM token WHERE kind = 'worker'").rowcount >= 1
    database.close()
    server.start()
    go.touch()
    eventually(lambda: "left with exit code 3" in managers.log(manager), "the worker to leave")
    (uuid,) = managers.stage(1, command="true")
    eventually(lambda: len(launches(managers)) == 2, "a worker with a new token")
    with server.client() as client:
        eventually(lambda: client.bundle(uuid).state == "ready", "the bundle")
    assert len(launches(managers)) == 2
    assert status(managers)["failures_lately"] == {"credentials": 1}
    assert managers.kill(manager, signal.SIGTERM) == 0


def test_while_the_server_is_away_nothing_is_launched_or_ended_and_work_goes_on(
    managers: Managers, server: Server
) -> None:
    manager = managers.start(
        *("--min", "1", "--max", "3", "--sleep-time", "0.2", "--registration-seconds", "1"),
        *("--metrics-port", "0"),
        stand_ins=False,
    )
    (uuid,) = managers.stage(1, command="sleep 3; echo hi > said")
    with server.client() as client:
        eventually(lambda: client.bundle(uuid).state == "running", "the bundle to run")
    (worker,) = managers.workers()
    server.stop(signal.SIGKILL)
    address = re.search(r"metrics are at (\S+)", managers.log(manager))
    assert address is not None

    def looks() -> float:
        """How many have failed."""
        text = httpx.get(address[1], trust_env=False).text
        found = re.findall(r"^worker_manager_tick_failures_total\{.*\} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    eventually(lambda: looks() >= 4, "four looks at nothing")
    assert [process.pid for process in managers.workers()] == [worker.pid]
    server.start()
    with server.client() as client:
        eventually(lambda: client.bundle(uuid).state == "ready", "the bundle")
    eventually(lambda: "carrying on" in managers.log(manager), "the manager")
    assert [launch.given_up for launch in launches(managers)] == [None]
    assert managers.log(manager).count("while this lasts") == 1
    assert managers.kill(manager, signal.SIGTERM) == 0
