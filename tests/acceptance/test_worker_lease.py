"""What a worker does when it is told to take no more, was given up, or hears nothing for long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import eventually
from scripted_server import ScriptedServer
from serving import Server
from worker_process import Gate, WorkerProcess

from bundles.client import Client
from bundles.exits import WorkerExit


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture
def real_worker(tmp_path: Path, server: Server) -> Iterator[WorkerProcess]:
    """A worker of a real server, at work."""
    directory = tmp_path / "worker"
    directory.mkdir()
    worker = WorkerProcess(directory, server.url)
    worker.env["WORKER_MANAGER_TOKEN"] = server.home.token_path.read_text().strip()
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def known(client: Client) -> bool:
    return [worker["worker_id"] for worker in client.workers()] == ["w1"]


def run(client: Client, command: str) -> str:
    metadata = {"request_memory": "64m"}
    return client.create([{"bundle_type": "run", "command": command, "metadata": metadata}])[0].uuid


def test_an_idle_worker_that_is_drained_leaves_at_once(
    client: Client, real_worker: WorkerProcess
) -> None:
    eventually(lambda: known(client))
    client.drain_worker("w1", "the pool is smaller now")
    assert real_worker.wait() == WorkerExit.FINISHED
    assert "leaving: drained: the pool is smaller now" in real_worker.log
    assert client.workers() == []


def test_one_that_is_drained_finishes_what_it_has_and_takes_nothing_more(
    client: Client, real_worker: WorkerProcess, gate: Gate
) -> None:
    first = run(client, f"read line < {gate.path}")
    eventually(lambda: client.bundle(first).state == "running")
    client.drain_worker("w1", "")
    eventually(lambda: client.workers()[0]["is_terminating"])
    second = run(client, "true")
    gate.open()
    assert real_worker.wait() == WorkerExit.FINISHED
    assert client.bundle(first).state == "ready"
    assert client.bundle(second).state == "staged"


def test_one_that_is_still_at_work_may_be_told_to_stay(
    client: Client, real_worker: WorkerProcess, gate: Gate
) -> None:
    first = run(client, f"read line < {gate.path}")
    eventually(lambda: client.bundle(first).state == "running")
    client.drain_worker("w1", "not needed")
    eventually(lambda: client.workers()[0]["is_terminating"])
    client.drain_worker("w1", "", drain=False)
    eventually(lambda: not client.workers()[0]["is_terminating"])
    second = run(client, "true")
    gate.open()
    eventually(lambda: client.bundle(second).state == "ready")
    assert real_worker.stop() == WorkerExit.FINISHED


def test_a_drained_worker_that_is_killed_and_comes_back_is_told_again(
    client: Client, real_worker: WorkerProcess, gate: Gate
) -> None:
    uuid = run(client, f"read line < {gate.path}")
    eventually(lambda: client.bundle(uuid).state == "running")
    client.drain_worker("w1", "")
    eventually(lambda: client.workers()[0]["is_terminating"])
    real_worker.kill()
    real_worker.start()
    gate.open()
    assert real_worker.wait() == WorkerExit.FINISHED
    assert client.bundle(uuid).state == "ready"


def test_a_worker_that_its_manager_gave_up_is_told_and_leaves(
    client: Client, real_worker: WorkerProcess, gate: Gate
) -> None:
    uuid = run(client, f"read line < {gate.path}")
    eventually(lambda: client.bundle(uuid).state == "running")
    assert client.checkout("w1", None, "its job has ended") == [uuid]
    assert real_worker.wait() == WorkerExit.REPLACED
    assert client.bundle(uuid).state == "staged"
    assert real_worker.left_files() == []


def test_runs_go_on_when_the_server_was_not_reached_for_the_time_of_the_lease(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    script.worker_lease_seconds = 1.0
    worker.start()
    uuid = script.run(f"read line < {gate.path}; echo done")
    script.until_state(uuid, "running")  # the next check-in is held, and is silence to the worker
    eventually(lambda: "late results are refused" in worker.log)
    gate.open()
    script.until_over(uuid)
    assert script.files(uuid)["stdout"] == b"done\n"
    assert "staged" not in script.history[uuid]


def test_runs_are_stopped_when_that_is_wanted_and_given_back(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    script.worker_lease_seconds = 1.0
    worker.start("--on-lease-lost", "stop")
    uuid = script.run(f"read line < {gate.path}")
    script.until_state(uuid, "staged")
    assert "their runs are stopped" in worker.log
    eventually(lambda: not worker.strays(), "the end of the command")
    assert uuid not in script.uploads
