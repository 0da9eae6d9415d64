"""A worker that will be ended says when, and is given no bundle that asks for more time."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_server import ScriptedServer
from serving import Server
from wire_worker import WireWorker
from worker_process import WorkerProcess

from bundles.client import Client
from bundles.exits import WorkerExit

HOUR = 3600.0


def run(client: Client, **metadata: Any) -> str:
    return client.create([{"bundle_type": "run", "command": "true", "metadata": metadata}])[0].uuid


def test_a_bundle_waits_for_a_worker_that_lives_long_enough_and_is_told_why(
    server: Server,
) -> None:
    with server.client(patience_seconds=30) as client:
        old = WireWorker(client, "old", seconds_left=1 * HOUR)
        assert old.say() == []
        long, short = run(client, request_time="2h"), run(client, request_time="30m")
        assert old.take()["uuid"] == short
        waiting = client.bundle(long)
        assert waiting.state == "staged"
        assert "asks for up to 2h00m of time, and all of them end sooner" in waiting.state_details
        unsaid = run(client)
        assert {message["uuid"] for message in old.say(wait_seconds=10)} >= {unsaid}
        young = WireWorker(client, "young", seconds_left=3 * HOUR)
        assert young.take()["uuid"] == long
        left = {worker["worker_id"]: worker["seconds_left"] for worker in client.workers()}
        assert 0 < left["old"] <= 1 * HOUR < left["young"] <= 3 * HOUR


def test_a_worker_that_says_of_no_end_is_given_everything(server: Server) -> None:
    with server.client(patience_seconds=30) as client:
        worker = WireWorker(client)
        uuid = run(client, request_time="365d")
        assert worker.take()["uuid"] == uuid
        assert client.workers()[0]["seconds_left"] is None


def test_the_time_left_is_counted_anew_for_each_session_and_by_the_servers_clock(
    server: Server,
) -> None:
    with server.client(patience_seconds=30) as client:
        WireWorker(client, seconds_left=60.0).say()
        uuid = run(client, request_time="90s")
        again = WireWorker(client, seconds_left=100.0)
        assert again.take()["uuid"] == uuid


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_worker_says_how_much_of_its_life_is_left(
    script: ScriptedServer, worker: WorkerProcess, *, by_variable: bool
) -> None:
    if by_variable:
        worker.start(env={"WORKER_MANAGER_LIFETIME_SECONDS": "7080"})
    else:
        worker.start("--lifetime-seconds", "7080")
    script.until_over(script.run("env"))
    first, last = script.checkins[0]["seconds_left"], script.checkins[-1]["seconds_left"]
    assert 0 < last < first <= 7080
    assert worker.stop() == WorkerExit.FINISHED


def test_a_worker_of_whose_end_nobody_told_says_nothing_of_it(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    script.until(lambda: script.checkins)
    assert script.checkins[0]["seconds_left"] is None
    assert worker.stop() == WorkerExit.FINISHED
