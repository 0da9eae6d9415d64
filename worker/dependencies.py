"""The cache of dependencies: downloaded once, shared by all runs and workers of a work directory.

    dependencies/ready/<name>/content      a file, or a directory
    dependencies/ready/<name>/about.json   whose, how large; its time of change is its last use
    dependencies/partial/<name>            on its way; moved to `ready` by one rename
    dependencies/locks/<name>              flock: shared to look, exclusive to download or remove

Nothing in use is removed to make room. In use is what any run of any worker here depends on,
and the runs say so themselves: their records are on disk before they ask for a dependency, and
are read under the exclusive lock before one is removed. So no count can be torn or leak.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

from bundles.archive import ChunkStream, unpack
from bundles.client import Client
from bundles.errors import (
    BundlesError,
    NotFound,
    NotPermitted,
    ServerFault,
    Unreachable,
)
from bundles.sizes import format_size
from worker.backoff import Backoff
from worker.loop import Loop, Outcome, Pool
from worker.records import dependency_keys
from worker.runtimes.proc import boot_id
from worker.trees import make_read_only, measure_tree, remove_tree

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 6 * 3600.0
"""How long a download waits for a server that is away. That does not count as a try."""
CHUNK_TIMEOUT_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 15.0
THREADS = 4

Key = tuple[str, str]
"""(parent_uuid, parent_path)"""


class DependencyFailed(Exception):
    """A dependency could not be had; the message says which and why."""


class _Cancelled(Exception):
    """Nobody waits for the download any more."""


class _CutOff(Exception):
    """The download began and broke off, which counts as a try."""


Done = Callable[[Path | DependencyFailed], None]


@dataclass
class Fetch:
    """A download under way, for all who wait for it."""

    key: Key
    waiting: list[Done] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    received_bytes: int = 0
    size_bytes: int | None = None

    def __str__(self) -> str:
        uuid, path = self.key
        whole = f" of {format_size(self.size_bytes)}" if self.size_bytes else ""
        name = f"{uuid}/{path}" if path else uuid
        return f"Downloading dependency {name} ({format_size(self.received_bytes)}{whole})"


class Cache:
    """``request``, ``withdraw``, ``keys`` and ``fetches`` are for the loop's thread."""

    def __init__(
        self,
        work_directory: Path,
        client: Client,
        loop: Loop,
        *,
        quota_bytes: int,
        max_retries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = work_directory / "dependencies"
        self._workers = work_directory / "workers"
        self._client = client
        self._pool = Pool(loop, "dependencies", THREADS)
        self._quota_bytes = quota_bytes
        self._max_retries = max_retries
        self._clock = clock
        self._listed: tuple[int, list[Key]] = (-1, [])
        self.fetches: dict[Key, Fetch] = {}
        for name in ("ready", "partial", "locks"):
            (self.directory / name).mkdir(mode=0o770, parents=True, exist_ok=True)

    @property
    def contents(self) -> Path:
        """Where the contents lie that runs are linked to."""
        return self.directory / "ready"

    # For the loop

    def held_keys(self) -> list[Key]:
        """Every dependency that is here or on its way."""
        ready = self.contents
        changed = os.stat(ready).st_mtime_ns
        if changed != self._listed[0]:
            found = [_read_about(path) for path in ready.iterdir()]
            self._listed = (changed, [(a.uuid, a.path) for a in found if a is not None])
        return list(dict.fromkeys([*self._listed[1], *self.fetches]))

    def request(self, key: Key, done: Done) -> None:
        """Call ``done`` with the contents' path or the failure: at once if it is here."""
        fetch = self.fetches.get(key)
        if fetch is None:
            path = self._look(key)
            if path is not None:
                done(path)
                return
            fetch = self.fetches[key] = Fetch(key)
            self._pool.submit(partial(self._fetch, fetch), partial(self._fetched, fetch))
        fetch.waiting.append(done)

    def withdraw(self, key: Key, done: Done) -> None:
        """Do not call that ``done`` any more; the last to withdraw ends the download."""
        fetch = self.fetches.get(key)
        if fetch is not None and done in fetch.waiting:
            fetch.waiting.remove(done)
            if not fetch.waiting:
                fetch.cancelled.set()
                del self.fetches[key]

    def _fetched(self, fetch: Fetch, outcome: Outcome[Path]) -> None:
        if self.fetches.get(fetch.key) is fetch:
            del self.fetches[fetch.key]
        result: Path | DependencyFailed
        if outcome.error is None:
            result = outcome.value
        elif isinstance(outcome.error, DependencyFailed):
            result = outcome.error
        else:
            log.error("a download failed", exc_info=outcome.error)
            result = DependencyFailed(f"Cannot fetch dependency {fetch.key[0]}: {outcome.error}")
        for done in fetch.waiting:
            done(result)

    def _look(self, key: Key) -> Path | None:
        name = entry_name(key)
        lock = self._lock(name, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if lock is None:
            return None
        try:
            return self._ready(name)
        finally:
            os.close(lock)

    # In threads

    def _fetch(self, fetch: Fetch) -> Path:
        name = entry_name(fetch.key)
        lock = self._lock(name, fcntl.LOCK_EX)
        assert lock is not None
        try:
            content = self._ready(name)
            if content is None:
                content = self._download(fetch, name)
        finally:
            os.close(lock)
        self.make_room(self._quota_bytes)
        return content

    def _ready(self, name: str) -> Path | None:
        """The contents, if they are whole. For who holds the lock."""
        place = self.contents / name
        about = _read_about(place)
        if about is None:
            return None
        content = place / "content"
        if about.boot != boot_id():
            # The machine went down since; files may have been cut though the rename was kept.
            if measure_tree(content) != (about.size_bytes, about.files):
                log.warning("the cached dependency %s is damaged: it is fetched again", name)
                return None
            about.boot = boot_id()
            _write_about(place, about)
        with suppress(OSError):
            os.utime(place / "about.json")
        return content

    def _download(self, fetch: Fetch, name: str) -> Path:
        uuid, path = fetch.key
        said = f"Cannot fetch dependency {uuid}/{path}".rstrip("/")
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        deadline = self._clock() + PATIENCE_SECONDS
        failures = 0
        while True:
            try:
                return self._try(fetch, name)
            except _Cancelled:
                raise DependencyFailed(f"{said}: nobody needs it any more") from None
            except (NotFound, NotPermitted) as error:
                raise DependencyFailed(f"{said}: {error}") from error
            except (Unreachable, ServerFault) as error:
                reason = str(error)
                if self._clock() > deadline:
                    raise DependencyFailed(f"{said}: {reason}") from error
            except (BundlesError, OSError, _CutOff) as error:
                reason = str(error)
                failures += 1
                if failures > self._max_retries:
                    raise DependencyFailed(f"{said}: {reason}") from error
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self.make_room(0)
            finally:
                with suppress(OSError):
                    remove_tree(self.directory / "partial" / name)
            log.warning("%s: %s; trying again", said, reason)
            if fetch.cancelled.wait(backoff.next_seconds()):
                raise DependencyFailed(f"{said}: nobody needs it any more")

    def _try(self, fetch: Fetch, name: str) -> Path:
        uuid, path = fetch.key
        place = self.directory / "partial" / name
        remove_tree(place)
        place.mkdir(mode=0o770)
        content = place / "content"
        fetch.received_bytes, fetch.size_bytes = 0, None
        with self._client.download(uuid, path, timeout_seconds=CHUNK_TIMEOUT_SECONDS) as download:
            fetch.size_bytes = download.size_bytes
            try:
                chunks = _counted(fetch, download.chunks())
                if download.is_directory:
                    content.mkdir()
                    # BinaryIO and io.RawIOBase agree in all that is used here.
                    unpack(ChunkStream(chunks), content)  # type: ignore[arg-type]
                else:
                    with content.open("wb") as file:
                        for chunk in chunks:
                            file.write(chunk)
            except Unreachable as error:
                raise _CutOff(str(error)) from error
            size_bytes, files = measure_tree(content)
            if not download.is_directory and fetch.size_bytes not in (None, size_bytes):
                raise _CutOff(f"it has {size_bytes} bytes instead of {fetch.size_bytes}")
        make_read_only(content)
        _write_about(place, _About(uuid, path, size_bytes, files, boot_id()))
        ready = self.contents / name
        if os.path.lexists(ready):
            self._discard(name)
        os.rename(place, ready)
        return ready / "content"

    # Room

    def make_room(self, quota_bytes: int) -> None:
        """Remove what is not in use, least recently used first, until the rest fits."""
        entries = []
        for place in self.contents.iterdir():
            about = _read_about(place)
            try:
                used = (place / "about.json").stat().st_mtime
            except OSError:
                used = 0.0
            size_bytes = about.size_bytes if about else measure_tree(place)[0]
            entries.append((used, place.name, size_bytes))
        total = sum(size_bytes for _, _, size_bytes in entries)
        for _, name, size_bytes in sorted(entries):
            if total <= quota_bytes:
                return
            if name not in self._in_use() and self._evict(name):
                total -= size_bytes

    def _evict(self, name: str) -> bool:
        lock = self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            if name in self._in_use():
                return False
            self._discard(name)
            (self.directory / "locks" / name).unlink(missing_ok=True)
            log.info("removed the cached dependency %s to make room", name)
            return True
        finally:
            os.close(lock)

    def _discard(self, name: str) -> None:
        # Out of `ready` in one step: half a dependency must never be found there.
        doomed = self.directory / "partial" / f"{name}.old"
        remove_tree(doomed)
        os.rename(self.contents / name, doomed)
        remove_tree(doomed)

    def _in_use(self) -> set[str]:
        names: set[str] = set()
        for record in self._workers.glob("*/runs/*/run.json"):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                bundle = orjson.loads(record.read_bytes())["bundle"]
                names.update(entry_name(key) for key in dependency_keys(bundle))
        return names

    def sweep(self) -> None:
        """Remove what downloads that were killed have left."""
        for place in list((self.directory / "partial").iterdir()):
            lock = self._lock(place.name.removesuffix(".old"), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is not None:
                try:
                    remove_tree(place)
                finally:
                    os.close(lock)

    def _lock(self, name: str, how: int) -> int | None:
        """A descriptor that holds the lock; None when it is another's and ``how`` is not to
        wait."""
        path = self.directory / "locks" / name
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                fcntl.flock(descriptor, how)
            except BlockingIOError:
                os.close(descriptor)
                return None
            # Who evicts removes the file: a lock on one that is no longer there locks nobody out.
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)


def _counted(fetch: Fetch, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if fetch.cancelled.is_set():
            raise _Cancelled
        fetch.received_bytes += len(chunk)
        yield chunk


@dataclass
class _About:
    uuid: str
    path: str
    size_bytes: int
    files: int
    boot: str


def entry_name(key: Key) -> str:
    """The directory of a dependency: its uuid, and a digest of the path if it is not the whole."""
    uuid, path = key
    if not path:
        return uuid
    return f"{uuid}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _read_about(place: Path) -> _About | None:
    try:
        return _About(**orjson.loads((place / "about.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_about(place: Path, about: _About) -> None:
    temporary = place / "about.json.new"
    temporary.write_bytes(orjson.dumps(about))
    os.rename(temporary, place / "about.json")
