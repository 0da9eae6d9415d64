"""Workers that share the server's file system: nothing is downloaded, nothing uploaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer
from serving import Server
from worker_process import WorkerProcess

from bundles.client import Client
from bundles.exits import WorkerExit
from bundles.model import new_uuid


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture
def worker(server: Server, tmp_path: Path) -> Iterator[WorkerProcess]:
    (tmp_path / "worker").mkdir()
    worker = WorkerProcess(tmp_path / "worker", server.url)
    worker.env = dict(server.env)
    with contextlib.closing(worker):
        yield worker


def until_running(client: Client, uuid: str) -> None:
    cursor = 0
    while client.bundle(uuid).state != "running":
        cursor = client.changes(cursor, wait_seconds=10).cursor


def store_of(server: Server, uuid: str) -> list[Path]:
    """Where a bundle lies in the server's store."""
    return list((server.home.path / "contents" / uuid[2:4]).glob(f"{uuid}-*"))


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_contents_are_used_and_written_where_they_lie(
    server: Server, client: Client, worker: WorkerProcess, tmp_path: Path, sandbox: str
) -> None:
    worker.start("--shared-file-system", "--sandbox", sandbox)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "x").write_text("from afar\n")
    data = server.output("upload", str(tmp_path / "data")).strip()
    command = (
        "cat d/sub/x x; ls > list; echo -n 12345 > five; mkdir junk; touch junk/a; sleep 1000; true"
    )
    uuid = server.output(
        "run", f"d:{data}", f"x:{data}/sub/x", command, "--exclude-patterns", "junk"
    ).strip()
    until_running(client, uuid)
    [directory] = store_of(server, uuid)
    while not (directory / "junk" / "a").exists():
        with client.download(uuid, "stdout") as download:
            b"".join(download.chunks())
    assert server.output("cat", f"{uuid}/stdout") == "from afar\n" * 2
    [process] = [p for p in worker.strays() if p.cmdline() == ["sleep", "1000"]]
    process.terminate()
    server.command("wait", uuid)
    bundle = client.bundle(uuid)
    assert (bundle.state, bundle.metadata["exitcode"]) == ("ready", 0)
    assert sorted(path.name for path in directory.iterdir()) == ["five", "list", "stderr", "stdout"]
    size_bytes = sum(path.stat().st_size for path in directory.iterdir())
    assert bundle.metadata["data_size"] == size_bytes
    assert client.contents_info(uuid, "five").size_bytes == 5
    keys = {"d": uuid, ".": data}
    dependencies = [{"child_path": key, "parent_uuid": keys[key]} for key in keys]
    wanted = {"bundle_type": "run", "command": "cat d/five sub/x", "dependencies": dependencies}
    after = client.create([wanted])[0].uuid
    assert server.command("wait", after).returncode == 0
    assert server.output("cat", f"{after}/stdout") == "12345from afar\n"
    assert list((worker.work_directory / "dependencies" / "ready").iterdir()) == []
    assert worker.stop() == WorkerExit.FINISHED
    assert worker.left_files() == []


def test_what_is_run_anew_begins_with_nothing(
    server: Server, client: Client, worker: WorkerProcess
) -> None:
    worker.start("--shared-file-system", "--pass-down-termination")
    uuid = server.output("run", "ls; touch half; test -e go || sleep 1000").strip()
    until_running(client, uuid)
    [first] = store_of(server, uuid)
    assert worker.stop() == WorkerExit.TERMINATED
    assert client.bundle(uuid).state == "staged"
    worker.start("--shared-file-system")
    until_running(client, uuid)
    [second] = [path for path in store_of(server, uuid) if path != first]
    server.output("kill", uuid)
    server.command("wait", uuid)
    assert client.bundle(uuid).state == "killed"
    assert "half" not in (second / "stdout").read_text()
    server.stop()
    assert store_of(server, uuid) == [second]


def test_a_killed_worker_goes_on_in_the_same_directory(
    server: Server, client: Client, worker: WorkerProcess
) -> None:
    worker.start("--shared-file-system")
    uuid = server.output("run", "echo one; sleep 1; echo two").strip()
    until_running(client, uuid)
    worker.kill()
    worker.start("--shared-file-system")
    assert server.command("wait", uuid).returncode == 0
    assert server.output("cat", f"{uuid}/stdout") == "one\ntwo\n"


@pytest.mark.parametrize("features", ["batch, checkout, claims", ""])
def test_either_server_is_worked_for(features: str, tmp_path: Path) -> None:
    """A CodaLab server fills the locations, and measures the directory itself."""
    parent, uuid = new_uuid(), new_uuid()
    (tmp_path / "store" / parent).mkdir(parents=True)
    (tmp_path / "store" / parent / "x").write_text("here")
    locations = {name: str(tmp_path / "store" / name) for name in (parent, uuid)}
    worker = WorkerProcess(tmp_path, "")
    with ScriptedServer(features) as script, contextlib.closing(worker):
        worker.url = script.url
        worker.start("--shared-file-system")
        script.run(
            "cat f", uuid=uuid, claim=1 if features else None, locations=locations,
            dependencies=[("f", parent, "x")],
        )  # fmt: skip
        script.until(lambda: uuid in script.runs)
        assert script.runs[uuid]["state"] == "preparing"
        os.mkdir(locations[uuid])  # the server makes it, and it shows late
        report = script.until_over(uuid)
        assert (report["exitcode"], report["failure_message"]) == (0, None)
        assert script.checkins[-1]["shared_file_system"] is True
        assert script.downloads == []
        assert script.uploads == {}
    assert sorted(os.listdir(locations[uuid])) == ["stderr", "stdout"]
    assert (tmp_path / "store" / uuid / "stdout").read_text() == "here"


def test_a_worker_that_shares_nothing_uses_no_location(tmp_path: Path) -> None:
    uuid = new_uuid()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ScriptedServer() as script:
        worker = WorkerProcess(tmp_path, script.url)
        with contextlib.closing(worker):
            worker.start()
            script.run("echo mine > x", uuid=uuid, locations={uuid: str(elsewhere)})
            script.until_over(uuid)
            assert script.files(uuid)["x"] == b"mine\n"
    assert list(elsewhere.iterdir()) == []
