"""What happens to a server: a full disk, a death in the middle of everything, a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Server
from wire_worker import InBackground, WireWorker

from bundles.client import Client
from bundles.errors import BundlesError, ServerFault
from bundles.home import Home
from bundles.model import new_uuid

SMALL_DISK_BYTES = 12 * 1024**2


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(patience_seconds=30) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(place)]
    subprocess.run(command, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs")
def test_a_full_disk_is_said_and_nothing_is_half_kept(tmp_path: Path, small_disk: Path) -> None:
    server = Server(tmp_path)
    server.home = Home(small_disk / "home")
    server.env["WORKER_MANAGER_HOME"] = str(server.home.path)
    server.start()
    try:
        with server.client() as client:
            worker = WireWorker(client)
            uuid = client.create([{"command": "true"}])[0].uuid
            message = worker.take()
            with pytest.raises(ServerFault, match="full"):
                client.upload(
                    uuid, bytes(2 * SMALL_DISK_BYTES), filename="x", claim=message["claim"]
                )
            assert list((server.home.path / "contents" / "incoming").iterdir()) == []
            filler = small_disk / "filler"
            fill(filler)
            many = [{"uuid": new_uuid(), "command": "x" * 1000} for _ in range(5000)]
            with pytest.raises(ServerFault, match="full"):
                client.create(many)
            assert client.count([]) == 1
            filler.unlink()
            worker.finish(message, stdout="all of it")
            assert client.bundle(uuid).state == "ready"
            with client.download(uuid, "stdout") as download:
                assert b"".join(download.chunks()) == b"all of it"
    finally:
        server.stop()


def test_the_feed_goes_on_across_a_death(server: Server, client: Client) -> None:
    cursor = client.changes(None).cursor
    first = client.create([{"uuid": new_uuid(), "command": "true"}])[0].uuid
    server.stop(signal.SIGKILL)
    server.start()
    found = client.changes(cursor)
    assert not found.reset
    assert [(change.uuid, change.to_state) for change in found.changes] == [
        (first, "created"),
        (first, "staged"),
    ]
    waiting = InBackground(lambda: client.changes(found.cursor, wait_seconds=30))
    second = client.create([{"uuid": new_uuid(), "command": "true"}])[0].uuid
    assert {change.uuid for change in waiting.result().changes} == {second}
    assert client.changes(found.cursor).cursor > found.cursor


def test_deaths_in_the_middle_of_everything_lose_nothing_and_double_nothing(
    server: Server, client: Client
) -> None:
    """Two workers run 40 bundles in a chain of pairs while the server is killed again and again;
    whoever gets no answer asks again, as real workers do."""
    uuids = [new_uuid() for _ in range(40)]
    documents: list[dict[str, Any]] = [
        {
            "uuid": uuid,
            "command": "true",
            "dependencies": [{"child_path": "p", "parent_uuid": uuids[i - 2]}] if i > 1 else [],
        }
        for i, uuid in enumerate(uuids)
    ]
    client.create(documents)
    commits: list[tuple[str, int]] = []

    def work(name: str) -> None:
        with server.client(patience_seconds=60) as own:
            worker = WireWorker(own, name, cpus=1)
            runs: dict[str, dict[str, Any]] = {}
            acknowledged: list[dict[str, Any]] = []
            while client.count(["state=ready"]) < len(uuids):
                try:
                    replies = worker.say(
                        *runs.values(),
                        acknowledged=acknowledged,
                        wait_seconds=0 if acknowledged else 0.2,
                    )
                except BundlesError:
                    continue
                acknowledged = replies
                for reply in replies:
                    if reply["type"] == "run":
                        runs.setdefault(reply["uuid"], worker.run(reply, "running"))
                    elif reply["type"] in ("mark_finalized", "revoke"):
                        ended = runs.pop(reply["uuid"], None)
                        if ended and reply["type"] == "mark_finalized":
                            commits.append((reply["uuid"], reply["claim"]))
                for uuid, run in runs.items():
                    if run["state"] == "running":
                        try:
                            worker.upload(run, out=uuid)
                        except BundlesError:
                            continue
                        run.update(state="finalizing", exitcode=0)

    workers = [InBackground(lambda name=name: work(name)) for name in ("a", "b")]  # type: ignore[misc]
    cursor = 0
    for kills in range(6):
        ready = 0
        while ready < 3:  # a few further each time
            found = client.changes(cursor, wait_seconds=30, states=["ready"])
            if not found.changes and kills:
                break
            cursor = found.cursor
            ready += len(found.changes)
        server.stop(signal.SIGKILL)
        server.start()
    for one in workers:
        one.result(90)
    transitions = client.changes(0).changes
    for uuid in uuids:
        of_it = [change.to_state for change in transitions if change.uuid == uuid]
        assert of_it.count("ready") == 1
        assert of_it[-1] == "ready"
        with client.download(uuid, "out") as download:
            assert b"".join(download.chunks()) == uuid.encode()
    assert len({uuid for uuid, _ in commits}) == len(set(commits))
    server.stop()  # which waits until what is not referred to is gone
    kept = list((server.home.path / "contents").glob("??/*"))
    assert len(kept) == len(uuids)


def test_litter_of_a_death_is_gone_after_the_next_start(server: Server, client: Client) -> None:
    bundle = client.create([{"bundle_type": "dataset"}], wait_for_upload=True)[0]
    client.upload(bundle.uuid, b"kept", filename="x", finalize=True)
    server.stop(signal.SIGKILL)
    contents = server.home.path / "contents"
    (contents / "incoming" / "half").mkdir()
    (contents / "incoming" / "half" / "file").write_text("x")
    (contents / "ab").mkdir(exist_ok=True)
    (contents / "ab" / ("0x" + "ab" * 16 + "-0011")).write_text("of no bundle")
    server.start()
    server.stop()  # which waits for what goes on in the background
    assert list((contents / "incoming").iterdir()) == []
    assert [path.read_bytes() for path in contents.glob("??/*")] == [b"kept"]
    server.start()


def test_a_server_that_was_restarted_gives_nothing_to_a_worker_it_has_not_heard(
    server: Server, client: Client
) -> None:
    worker = WireWorker(client)
    worker.say()
    server.stop(signal.SIGKILL)
    server.start()
    uuid = client.create([{"uuid": new_uuid(), "command": "true"}])[0].uuid
    large = client.create(
        [{"uuid": new_uuid(), "command": "x", "metadata": {"request_disk": "1g"}}]
    )
    assert client.bundle(uuid).state == "staged"
    assert "staged_status" not in client.bundle(large[0].uuid).metadata
    assert {message["uuid"] for message in worker.say(wait_seconds=20)} == {uuid, large[0].uuid}


def test_an_unexpected_method_or_path_is_a_sentence(server: Server) -> None:
    for method, path, status in (("GET", "/", 404), ("DELETE", "/rest/user", 405)):
        reply = httpx.request(method, server.url + path, trust_env=False)
        assert reply.status_code == status
        assert path in reply.text


def test_every_answer_says_what_time_it_is_at_the_server(server: Server) -> None:
    for path in ("user", "nothing-here"):
        answer = httpx.get(f"{server.url}/rest/{path}")
        said = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        assert abs(said - time.time()) < 60
        assert len(answer.headers.get_list("Date")) == 1
