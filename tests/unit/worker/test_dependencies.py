from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from bundles.client import Client
from bundles.home import Credentials
from bundles.model import Resources
from worker import records
from worker.dependencies import Cache, DependencyFailed, Fetch, Key, entry_name
from worker.locks import Locks
from worker.loop import Loop
from worker.stages import Run


def raise_it(error: Exception) -> None:
    raise error


def uuid_of(number: int) -> str:
    return f"0x{number:032x}"


class Shelf:
    """A server that has every uuid as a file of 1000 bytes, and counts who asks. ``meanwhile`` is
    called while it sends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        uuid = request.url.path.split("/")[3]
        self.asked.append(uuid)
        if self.status != 200:
            return httpx.Response(self.status, text="broken on purpose")
        headers = {"Target-Type": "file"} | self.headers
        return httpx.Response(200, content=self._send(), headers=headers)

    def _send(self) -> Iterator[bytes]:
        yield bytes(500)
        self.meanwhile()
        yield bytes(500)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def client(shelf: Shelf) -> Iterator[Client]:
    with Client(
        "http://server", Credentials(token="t"), transport=httpx.MockTransport(shelf)
    ) as client:
        yield client


def new_cache(
    tmp_path: Path, client: Client, loop: Loop, *, quota_bytes: int = 10_000, retries: int = 0
) -> Cache:
    return Cache(
        tmp_path, client, loop, quota_bytes=quota_bytes, max_retries=retries, silence_seconds=0.3
    )


def fetch(cache: Cache, loop: Loop, *keys: Key) -> list[Path | DependencyFailed]:
    """Request all at once; their results in that order."""
    results: dict[int, Path | DependencyFailed] = {}

    def told(index: int, result: Path | DependencyFailed) -> None:
        results[index] = result
        if len(results) == len(keys):
            loop.post(loop.stop)

    for index, key in enumerate(keys):
        cache.request(key, lambda result, index=index: told(index, result))
    loop._stopped = False
    loop.run(raise_it)
    return [results[index] for index in range(len(keys))]


def hold(tmp_path: Path, *keys: Key) -> None:
    """A run of another worker that depends on these."""
    dependencies = [
        {"child_path": f"d{n}", "parent_uuid": uuid, "parent_path": path}
        for n, (uuid, path) in enumerate(keys)
    ]
    run = Run(uuid_of(999), 1, {"dependencies": dependencies}, Resources(), accepted=1.0)
    records.save(tmp_path / "workers" / "other" / "runs", run)


def age(cache: Cache, key: Key, seconds: float) -> None:
    about = cache.contents / entry_name(key) / "about.json"
    os.utime(about, (seconds, seconds))


def test_a_dependency_that_many_wait_for_is_downloaded_once(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    cache = new_cache(tmp_path, client, loop)
    key = (uuid_of(1), "")
    results = fetch(cache, loop, key, key, key)
    assert len({str(result) for result in results}) == 1
    assert isinstance(results[0], Path)
    assert results[0].read_bytes() == bytes(1000)
    assert shelf.asked == [uuid_of(1)]
    told: list[object] = []
    cache.request(key, told.append)
    assert told == [results[0]]
    assert cache.held_keys() == [key]


def test_another_worker_of_the_directory_finds_it(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    key = (uuid_of(1), "some/path")
    fetch(new_cache(tmp_path, client, loop), loop, key)
    other = new_cache(tmp_path, client, loop)
    assert other.held_keys() == [key]
    fetch(other, loop, key)
    assert len(shelf.asked) == 1


def test_the_least_recently_used_goes_first_and_what_is_in_use_never(
    tmp_path: Path, client: Client, loop: Loop
) -> None:
    cache = new_cache(tmp_path, client, loop, quota_bytes=3000)
    keys = [(uuid_of(n), "") for n in range(1, 4)]
    fetch(cache, loop, *keys)
    for number, key in enumerate(keys):
        age(cache, key, 1000.0 + number)
    hold(tmp_path, keys[0])
    fetch(cache, loop, (uuid_of(4), ""))
    assert sorted(cache.held_keys()) == [keys[0], keys[2], (uuid_of(4), "")]


def test_when_everything_is_in_use_more_than_the_quota_is_kept(
    tmp_path: Path, client: Client, loop: Loop
) -> None:
    cache = new_cache(tmp_path, client, loop, quota_bytes=1500)
    keys = [(uuid_of(n), "") for n in range(1, 4)]
    hold(tmp_path, *keys)
    fetch(cache, loop, *keys)
    assert sorted(cache.held_keys()) == keys


def test_what_only_a_worker_needs_that_ended_long_ago_may_go(
    tmp_path: Path, client: Client, loop: Loop
) -> None:
    cache, key = new_cache(tmp_path, client, loop), (uuid_of(1), "")
    fetch(cache, loop, key)
    hold(tmp_path, key)
    [record] = (tmp_path / "workers").rglob("run.json")
    cache.make_room(0)
    assert cache.held_keys() == [key]
    os.utime(record, (1000.0, 1000.0))
    with (tmp_path / "workers" / "other" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.make_room(0)
        assert cache.held_keys() == [key]
    cache.make_room(0)
    assert cache.held_keys() == []


@pytest.mark.parametrize("torn", [b"", b'{"uuid":', b"[]", b"{}"])
def test_an_entry_whose_description_is_torn_is_fetched_again(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop, torn: bytes
) -> None:
    cache, key = new_cache(tmp_path, client, loop), (uuid_of(1), "")
    fetch(cache, loop, key)
    (cache.contents / entry_name(key) / "about.json").write_bytes(torn)
    (result,) = fetch(new_cache(tmp_path, client, loop), loop, key)
    assert isinstance(result, Path)
    assert result.read_bytes() == bytes(1000)
    assert len(shelf.asked) == 2
    assert partials(cache) == []


def test_use_makes_an_entry_young_again(tmp_path: Path, client: Client, loop: Loop) -> None:
    cache = new_cache(tmp_path, client, loop, quota_bytes=2000)
    first, second, third = ((uuid_of(n), "") for n in range(1, 4))
    fetch(cache, loop, first, second)
    age(cache, first, 1000.0)
    age(cache, second, 2000.0)
    fetch(cache, loop, first)
    fetch(cache, loop, third)
    assert sorted(cache.held_keys()) == [first, third]


def test_what_a_power_cut_has_truncated_is_fetched_again(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    cache = new_cache(tmp_path, client, loop)
    key = (uuid_of(1), "")
    fetch(cache, loop, key)
    place = cache.contents / entry_name(key)
    about = place / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"boots": ["another"]}))
    fetch(cache, loop, key)
    assert len(shelf.asked) == 1  # whole, though of another boot
    about.write_text(json.dumps(json.loads(about.read_text()) | {"boots": ["another"]}))
    (place / "content").chmod(0o600)
    (place / "content").write_bytes(b"")
    results = fetch(cache, loop, key)
    assert len(shelf.asked) == 2
    assert isinstance(results[0], Path)
    assert len(results[0].read_bytes()) == 1000


def test_a_download_that_failed_leaves_nothing_and_may_be_asked_for_again(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    cache = new_cache(tmp_path, client, loop)
    key = (uuid_of(1), "")
    shelf.status = 404
    (result,) = fetch(cache, loop, key)
    assert isinstance(result, DependencyFailed)
    assert "broken on purpose" in str(result)
    assert list((cache.directory / "partial").iterdir()) == []
    shelf.status = 200
    (result,) = fetch(cache, loop, key)
    assert isinstance(result, Path)


def test_what_killed_downloads_left_is_swept(tmp_path: Path, client: Client, loop: Loop) -> None:
    cache = new_cache(tmp_path, client, loop)
    litter = cache.directory / "partial" / f"{uuid_of(1)}.0123"
    (litter / "content").mkdir(parents=True)
    cache.sweep()
    assert not litter.exists()


def partials(cache: Cache) -> list[Path]:
    return list((cache.directory / "partial").iterdir())


def test_a_download_whose_digest_is_not_the_servers_is_thrown_away(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    digest = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
    shelf.headers = {"Repr-Digest": f"sha-256=:{digest}:"}
    cache = new_cache(tmp_path, client, loop, retries=1)
    (result,) = fetch(cache, loop, (uuid_of(1), ""))
    assert isinstance(result, DependencyFailed)
    assert "SHA-256" in str(result)
    assert len(shelf.asked) == 2
    assert partials(cache) == cache.held_keys() == []


def test_a_size_that_is_not_the_servers_is_no_download(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    shelf.headers = {"X-Codalab-Target-Size": "1001"}
    (result,) = fetch(new_cache(tmp_path, client, loop), loop, (uuid_of(1), ""))
    assert "has 1000 bytes instead of 1001" in str(result)


def test_of_two_who_bring_the_same_the_second_finds_it_there(
    tmp_path: Path, shelf: Shelf, client: Client, loop: Loop
) -> None:
    """As when the lock of the first was taken over."""
    cache, key = new_cache(tmp_path, client, loop), (uuid_of(1), "")
    marked = cache.contents / entry_name(key) / "marked"

    def another() -> None:
        shelf.meanwhile = lambda: None
        other = new_cache(tmp_path, client, loop)
        other._locks = Locks(tmp_path)
        other._clear = lambda name: None  # type: ignore[method-assign]
        other._fetch_patiently(Fetch(key), "")
        marked.touch()

    shelf.meanwhile = another
    (result,) = fetch(cache, loop, key)
    assert isinstance(result, Path)
    assert result.read_bytes() == bytes(1000)
    assert len(shelf.asked) == 2
    assert marked.exists()  # what the first one brought was not replaced under its users
    assert partials(cache) == []


def test_what_a_run_came_to_need_while_it_was_removed_is_put_back(
    tmp_path: Path, client: Client, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, key = new_cache(tmp_path, client, loop), (uuid_of(1), "")
    (path,) = fetch(cache, loop, key)
    put_aside = cache._put_aside

    def late(name: str) -> Path:
        hold(tmp_path, key)
        return put_aside(name)

    monkeypatch.setattr(cache, "_put_aside", late)
    cache.make_room(0)
    assert isinstance(path, Path)
    assert path.read_bytes() == bytes(1000)
    assert partials(cache) == []


def test_on_a_network_file_system_what_was_just_used_counts_as_in_use(
    tmp_path: Path, client: Client, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=os.path.realpath(tmp_path), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    cache = new_cache(tmp_path, client, loop)
    used, unused = (uuid_of(1), ""), (uuid_of(2), "")
    fetch(cache, loop, used, unused)
    age(cache, unused, time.time() - 200)
    cache.make_room(0)
    assert cache.held_keys() == [used]
    mounts.pop()
    new_cache(tmp_path, client, loop).make_room(0)
    assert cache.held_keys() == []


def test_who_waits_for_a_lock_can_be_told_to_stop(
    tmp_path: Path, client: Client, loop: Loop
) -> None:
    cache, key = new_cache(tmp_path, client, loop), (uuid_of(1), "")
    waiting = Fetch(key)
    with Locks(cache.directory / "locks").trying(entry_name(key)):
        waiting.cancelled.set()
        with pytest.raises(DependencyFailed, match="nobody needs it"):
            cache._fetch(waiting)
    assert str(waiting) == f"Waiting for dependency {uuid_of(1)}"
