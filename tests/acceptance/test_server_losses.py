"""A bundle that takes its worker with it, again and again: real workers, a real server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import eventually
from serving import Server, serving
from wire_worker import WireWorker
from worker_process import WorkerProcess

from bundles.client import Client

ENDS_ITS_WORKER = "until [ -s {0} ]; do sleep 0.05; done; kill -9 $(cat {0}); "
"""The file holds the worker's process id; it is there once the server knows that it is at work."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(Server(tmp_path), "--max-losses", "3") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(patience_seconds=60) as made:
        yield made


def start(worker: WorkerProcess, server: Server) -> None:
    worker.directory.mkdir(exist_ok=True)
    token = (server.home.path / "token").read_text().strip()
    worker.start(env={"WORKER_MANAGER_TOKEN": token})


def be_killed(worker: WorkerProcess, client: Client, uuid: str, pid_file: Path) -> None:
    """Let the command do it, once the server has heard that it runs."""
    eventually(lambda: client.bundle(uuid).state == "running", "it runs")
    assert worker.process is not None
    pid_file.with_suffix(".new").write_text(f"{worker.process.pid}\n")
    pid_file.with_suffix(".new").rename(pid_file)
    assert worker.wait() == -signal.SIGKILL
    pid_file.unlink()


def test_a_command_that_kills_each_of_its_workers_fails_in_the_end_and_says_so(
    server: Server, client: Client, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    uuid = client.create([{"command": ENDS_ITS_WORKER.format(pid_file) + "sleep 600"}])[0].uuid
    workers = [WorkerProcess(tmp_path / f"{n}", server.url, worker_id="w") for n in range(3)]
    last = WorkerProcess(tmp_path / "last", server.url, worker_id="w")
    try:
        for number, worker in enumerate(workers):
            # The same worker id, on a machine that has nothing of the worker before.
            start(worker, server)
            claim = number + 1
            eventually(lambda claim=claim: client.bundle(uuid).claim == claim, "another assignment")
            be_killed(worker, client, uuid, pid_file)
            if number == 1:
                server.stop(signal.SIGKILL)
                server.start("--max-losses", "3")
        start(last, server)
        assert server.command("wait", uuid).returncode == 1
        said = server.output("info", uuid)
        flat = " ".join(said.split())
        assert "lost 3 times while it ran, with w, w, w" in flat
        assert "Lost 3 times while it ran" in flat
        assert "worker w lost it" in flat
        assert server.output("info", uuid, "-f", "lost_with").strip() == "w w w"
        assert last.stop() is not None
        assert client.count(["state=staged"]) == 0
    finally:
        for worker in (*workers, last):
            worker.close()


def test_a_worker_that_is_killed_and_goes_on_with_its_run_has_not_lost_it(
    server: Server, client: Client, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    uuid = client.create([{"command": ENDS_ITS_WORKER.format(pid_file) + "echo still here"}])[
        0
    ].uuid
    worker = WorkerProcess(tmp_path / "worker", server.url)
    try:
        start(worker, server)
        be_killed(worker, client, uuid, pid_file)
        start(worker, server)
        assert server.output("wait", uuid)
        assert server.output("cat", f"{uuid}/stdout") == "still here\n"
        assert "lost_with" not in client.bundle(uuid).metadata
        worker.stop()
    finally:
        worker.close()


def test_losses_that_are_fewer_than_too_many_are_shown_and_do_no_harm(
    server: Server, client: Client
) -> None:
    uuid = client.create([{"command": "true"}])[0].uuid
    for name in ("first", "second"):
        WireWorker(client, name).take()
        assert client.checkout(name, None, "its job has ended") == [uuid]
    assert "lost 2 times" in client.bundle(uuid).state_details.lower()
    worker = WireWorker(client, "third")
    worker.finish(worker.take())
    bundle = client.bundle(uuid)
    assert bundle.state == "ready"
    assert bundle.metadata["lost_with"] == ["first", "second"]
    assert bundle.state_details == ""


def test_the_owner_of_a_lost_worker_learns_that_its_bundle_has_ended(
    server: Server, client: Client
) -> None:
    uuid = client.create([{"command": "true"}])[0].uuid
    for name in ("first", "second", "third"):
        assert client.bundle(uuid).state == "staged"
        WireWorker(client, name).take()
        # Those that are told of a worker's bundles count it as one that has worked.
        assert client.checkout(name, None, "its job has ended") == [uuid]
    assert client.bundle(uuid).state == "failed"


def test_a_count_of_losses_that_cannot_be_is_refused(server: Server) -> None:
    refused = server.command("serve", "--port", "0", "--max-losses", "0")
    assert refused.returncode == 2
    assert "--max-losses" in refused.stderr
