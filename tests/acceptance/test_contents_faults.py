"""Contents on their way while servers, workers and disks fail under them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import needs_root, small_disk
from managing import eventually
from scripted_server import Content, Fault, ScriptedServer, tar_gz
from serving import Server
from worker_process import WorkerProcess

from bundles.archive import pack
from bundles.client import Client
from bundles.home import Home
from bundles.model import new_uuid

NOISE_BYTES = 96 * 1024**2
NOISE = f"head -c {NOISE_BYTES} /dev/urandom > noise; sha256sum noise"

FETCHER = """
import sys, threading
from pathlib import Path
from bundles.client import (Client)
from bundles.home import Credentials
from worker.dependencies import Cache, Fetch
from worker.loop import Loop

url, directory, uuid = sys.argv[1:]
client = Client(url, Credentials(token="t"))
cache = Cache(Path(directory), client, Loop(), quota_bytes=10**9, max_retries=3, silence_seconds=1)
print(cache._fetch(Fetch((uuid, ""))), flush=True)
"""
"""What a worker does to get a dependency, with little patience for silent holders of its lock."""


def real_worker(server: Server, tmp_path: Path) -> WorkerProcess:
    (tmp_path / "worker").mkdir()
    worker = WorkerProcess(tmp_path / "worker", server.url)
    worker.env = dict(server.env)
    return worker


def bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def digest_in(client: Client, uuid: str) -> tuple[str, str]:
    """What sha256sum said in the run, and what its `noise` has now."""
    digest = hashlib.sha256()
    with client.download(uuid, "noise") as download:
        for chunk in download.chunks():
            digest.update(chunk)
    with client.download(uuid, "stdout") as download:
        said = b"".join(download.chunks()).split()[0].decode()
    return said, digest.hexdigest()


def test_a_server_that_is_killed_during_an_upload_gets_it_anew(
    server: Server, tmp_path: Path
) -> None:
    worker = real_worker(server, tmp_path)
    with contextlib.closing(worker):
        worker.start("--checkin-frequency-seconds", "1")
        uuid = server.output("run", NOISE).strip()
        incoming = server.home.path / "contents" / "incoming"
        eventually(lambda: bytes_in(incoming) > 2**20, "an upload")
        server.stop(signal.SIGKILL)
        server.start()
        assert server.command("wait", uuid).returncode == 0
        with server.client() as client:
            said, found = digest_in(client, uuid)
            assert said == found
            assert client.bundle(uuid).metadata["data_size"] > NOISE_BYTES
        assert bytes_in(incoming) == 0


def test_a_download_goes_on_with_a_server_that_was_killed(server: Server, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "noise").write_bytes(os.urandom(NOISE_BYTES))
    said = hashlib.sha256((tree / "noise").read_bytes()).hexdigest()
    with server.client() as client:
        documents = [{"bundle_type": "dataset", "metadata": {"name": name}} for name in "df"]
        directory, file = client.create(documents, wait_for_upload=True)
        client.upload(directory.uuid, pack(tree), filename="d.tar.gz", finalize=True)
        with (tree / "noise").open("rb") as content:
            chunks = iter(lambda: content.read(2**20), b"")
            client.upload(file.uuid, chunks, filename="f", finalize=True)
    worker = real_worker(server, tmp_path)
    partial = worker.work_directory / "dependencies" / "partial"
    with contextlib.closing(worker):
        worker.start()
        for parent, path in ((directory.uuid, "d/noise"), (file.uuid, "d")):
            uuid = server.output("run", f"d:{parent}", f"sha256sum {path}").strip()
            eventually(lambda: partial.exists() and bytes_in(partial) > 2**20, "a download")
            server.stop(signal.SIGKILL)
            server.start()
            assert server.command("wait", uuid).returncode == 0
            assert server.output("cat", f"{uuid}/stdout").split()[0] == said
        assert worker.log.count("going on after") >= 2
        assert "trying again" not in worker.log


@needs_root
def test_results_that_the_servers_disk_has_no_room_for_fail_their_run_alone(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path)
    with small_disk(tmp_path / "small", 24 * 2**20) as disk:
        server.home = Home(disk / "home")
        server.env["WORKER_MANAGER_HOME"] = str(server.home.path)
        server.start()
        worker = real_worker(server, tmp_path)
        with contextlib.closing(worker), contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            worker.start()
            uuid = server.output("run", NOISE).strip()
            assert server.command("wait", uuid).returncode == 1
            after = server.output("run", "echo fine").strip()
            assert server.command("wait", after).returncode == 0
            with server.client() as client:
                message = client.bundle(uuid).metadata["failure_message"]
            assert message.startswith("The results cannot be uploaded: the server's disk is full")
            assert bytes_in(server.home.path / "contents" / "incoming") == 0
            eventually(lambda: worker.left_files() == [], "nothing left")


@pytest.mark.parametrize("status", [403, 413, 507])
def test_a_server_that_refuses_results_is_not_asked_again(status: int, tmp_path: Path) -> None:
    uuid = new_uuid()
    with ScriptedServer() as script:
        worker = WorkerProcess(tmp_path, script.url)
        with contextlib.closing(worker):
            worker.start()
            script.refused_uploads[uuid] = (status, "this is over your quota")
            script.run("true", uuid=uuid)
            report = script.until_over(uuid)
            reason = "The results cannot be uploaded: this is over your quota"
            assert report["failure_message"] == reason
            assert script.refused == [uuid]


@needs_root
def test_a_dependency_that_the_disk_has_no_room_for_fails_its_run_alone(tmp_path: Path) -> None:
    large, small = new_uuid(), new_uuid()
    with ScriptedServer() as script, small_disk(tmp_path / "small", 8 * 2**20) as disk:
        script.contents[(large, "")] = Content(tar_gz({"x": bytes(20 * 2**20)}), True)
        script.contents[(small, "")] = Content(b"here")
        worker = WorkerProcess(tmp_path, script.url)
        worker.work_directory = disk / "work"
        with contextlib.closing(worker):
            worker.start("--download-dependencies-max-retries", "1")
            uuid = script.run("true", dependencies=[("d", large, "")])
            assert "No space left" in script.until_over(uuid)["failure_message"]
            after = script.run("cat f", dependencies=[("f", small, "")])
            script.until_over(after)
            assert script.files(after)["stdout"] == b"here"
            assert list((disk / "work" / "dependencies" / "partial").iterdir()) == []


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as script:
        yield script


class Fetchers:
    """Processes that fetch one dependency into one work directory."""

    def __init__(self, script: ScriptedServer, directory: Path) -> None:
        self.directory = directory
        self.uuid = new_uuid()
        self._arguments = [script.url, str(directory), self.uuid]
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHER, *self._arguments], stdout=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        return process

    def path(self, process: subprocess.Popen[str]) -> Path:
        """What it got, once it has."""
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return Path(said.strip())

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @property
    def partial(self) -> list[str]:
        return os.listdir(self.directory / "dependencies" / "partial")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_who_waits_for_a_download_takes_it_over_from_who_does_nothing_more(
    number: signal.Signals, script: ScriptedServer, tmp_path: Path
) -> None:
    fetchers = Fetchers(script, tmp_path)
    script.contents[(fetchers.uuid, "")] = Content(tar_gz({"x": b"whole"}), True)
    held = script.fault("download", Fault(hold=threading.Event()))
    with contextlib.closing(fetchers):
        first = fetchers.start()
        script.until(held.met.is_set)
        second = fetchers.start()
        first.send_signal(number)
        path = fetchers.path(second)
        assert (path / "x").read_text() == "whole"
        assert held.hold is not None
        held.hold.set()
        if number == signal.SIGSTOP:
            before = path.stat().st_ino
            first.send_signal(signal.SIGCONT)
            assert fetchers.path(first) == path
            assert path.stat().st_ino == before  # not replaced under its users
        assert fetchers.path(fetchers.start()) == path
        assert fetchers.partial == []


def test_many_who_want_the_same_download_it_once(script: ScriptedServer, tmp_path: Path) -> None:
    fetchers = Fetchers(script, tmp_path)
    script.contents[(fetchers.uuid, "")] = Content(tar_gz({"x": b"whole"}), True)
    with contextlib.closing(fetchers):
        processes = [fetchers.start() for _ in range(4)]
        paths = {fetchers.path(process) for process in processes}
        assert [(path / "x").read_text() for path in paths] == ["whole"]
        assert len(script.downloads) == 1
        assert fetchers.partial == []
