"""The cache of dependencies: downloaded once, shared by all runs and workers of a work directory.

    dependencies/ready/<name>/content      a file, or a directory
    dependencies/ready/<name>/about.json   whose, how large; its time of change is its last use
    dependencies/partial/<name>.<random>   on its way; moved to `ready` by one rename
    dependencies/locks/<name>              to download or remove it (worker.locks)

The rename makes it right: half a dependency is never in `ready`, and of two who bring the same one
the second finds it there. The lock only keeps them from doing it twice.

Nothing in use is removed to make room. In use is what any run of any worker here depends on,
and the runs say so themselves: their records are on disk before they ask for a dependency, and
are read before one is removed, and once more when it is out of sight: it is put back for a run
that came between. So no count can be torn or leak.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson
import psutil

from bundles.archive import ChunkStream, unpack
from bundles.client import Client
from bundles.errors import (
    BundlesError,
    NotFound,
    NotPermitted,
    ServerFault,
    Unreachable,
)
from bundles.replies import Download
from bundles.sizes import format_size
from worker.backoff import Backoff
from worker.locks import SILENCE_SECONDS, GaveUp, Lock, Locks, is_free
from worker.loop import Loop, Outcome, Pool
from worker.records import dependency_keys
from worker.runtimes.proc import boot_id
from worker.transfers import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    PATIENCE_SECONDS,
    Cancelled,
    CutOff,
    Transfer,
)
from worker.trees import make_read_only, measure_tree, remove_tree

log = logging.getLogger(__name__)

THREADS = 8
BOOTS = 32
"""How many starts of machines an entry remembers that found it whole."""
NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "ceph", "beegfs", "gpfs", "cifs", "smb", "afs", "fuse.")
ABANDONED_SECONDS = 7 * 24 * 3600.0
"""How long the runs of a worker that has ended keep what they depend on: it may come back."""
SETTLING_SECONDS = 90.0
"""On a network file system: how long after its last use something counts as in use, since what
other machines wrote may be hidden that long (acdirmax is 60 s)."""

Key = tuple[str, str]
"""(parent_uuid, parent_path)"""


class DependencyFailed(Exception):
    """A dependency could not be had; the message says which and why."""


Done = Callable[[Path | DependencyFailed], None]


@dataclass
class Fetch:
    """A download under way, for all who wait for it."""

    key: Key
    waiting: list[Done] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    transfer: Transfer | None = None
    """None while another worker downloads it."""

    def __str__(self) -> str:
        uuid, path = self.key
        name = f"{uuid}/{path}" if path else uuid
        if self.transfer is None:
            return f"Waiting for dependency {name}"
        size_bytes = self.transfer.size_bytes
        whole = f" of {format_size(size_bytes)}" if size_bytes else ""
        return f"Downloading dependency {name} ({format_size(self.transfer.received_bytes)}{whole})"


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
        silence_seconds: float = SILENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = work_directory / "dependencies"
        self._locks = Locks(self.directory / "locks", silence_seconds=silence_seconds)
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
        self._settling_seconds = SETTLING_SECONDS if _is_remote(self.directory) else 0.0

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
        with self._locks.looking(name) as is_free:
            return self._ready(name, verify=False) if is_free else None

    # In threads

    def _fetch(self, fetch: Fetch) -> Path:
        uuid, path = fetch.key
        said = f"Cannot fetch dependency {uuid}/{path}".rstrip("/")
        try:
            content = self._fetch_patiently(fetch, said)
        except (Cancelled, GaveUp):
            raise DependencyFailed(f"{said}: nobody needs it any more") from None
        self.make_room(self._quota_bytes)
        return content

    def _fetch_patiently(self, fetch: Fetch, said: str) -> Path:
        name = entry_name(fetch.key)
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        deadline = self._clock() + PATIENCE_SECONDS
        failures = 0
        while True:
            try:
                with self._locks.holding(name, fetch.cancelled):
                    return self._ready(name) or self._try(fetch, name)
            except (NotFound, NotPermitted) as error:
                raise DependencyFailed(f"{said}: {error}") from error
            except (Unreachable, ServerFault) as error:
                reason = str(error)
                if self._clock() > deadline:
                    raise DependencyFailed(f"{said}: {reason}") from error
            except (BundlesError, OSError, CutOff) as error:
                reason = str(error)
                failures += 1
                if failures > self._max_retries:
                    raise DependencyFailed(f"{said}: {reason}") from error
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self.make_room(0)
            log.warning("%s: %s; trying again", said, reason)
            if fetch.cancelled.wait(backoff.next_seconds()):
                raise Cancelled

    def _ready(self, name: str, *, verify: bool = True) -> Path | None:
        """The contents, if they are whole."""
        place = self.contents / name
        about = _read_about(place)
        if about is None:
            return None
        content = place / "content"
        if boot_id() not in about.boots:
            # The machine went down since; files may have been cut though the rename was kept.
            if not verify:
                return None
            if measure_tree(content) != (about.size_bytes, about.files):
                log.warning("the cached dependency %s is damaged: it is fetched again", name)
                return None
            about.boots = [*about.boots, boot_id()][-BOOTS:]
            _write_about(place, about)
        with suppress(OSError):
            os.utime(place / "about.json")
        return content

    def _try(self, fetch: Fetch, name: str) -> Path:
        """For who holds the lock."""
        uuid, path = fetch.key
        self._clear(name)
        place = self._new_partial(name)
        place.mkdir(mode=0o770)
        content = place / "content"
        transfer = fetch.transfer = Transfer(self._client, uuid, path, fetch.cancelled)
        try:
            with transfer.opened() as download:
                if download.is_directory:
                    content.mkdir()
                    # BinaryIO and io.RawIOBase agree in all that is used here.
                    stream = ChunkStream(transfer.chunks())
                    unpack(stream, content, read_only=True)  # type: ignore[arg-type]
                else:
                    _receive_file(transfer.chunks(), content, download)
            size_bytes, files = make_read_only(content)
            _write_about(place, _About(uuid, path, size_bytes, files, [boot_id()]))
            return self._commit(place, name)
        finally:
            fetch.transfer = None
            with suppress(OSError):
                remove_tree(place)

    def _commit(self, place: Path, name: str) -> Path:
        ready = self.contents / name
        while True:
            try:
                os.rename(place, ready)
                return ready / "content"
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            content = self._ready(name)
            if content is not None:
                return content  # somebody was faster
            remove_tree(self._put_aside(name))

    def _new_partial(self, name: str) -> Path:
        return self.directory / "partial" / f"{name}.{secrets.token_hex(8)}"

    def _clear(self, name: str) -> None:
        """Remove what attempts that were killed have left. For who holds the lock."""
        for place in (self.directory / "partial").glob(f"{name}.*"):
            remove_tree(place)

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
        with self._locks.trying(name) as lock:
            if lock is None or self._is_fresh(name) or name in self._in_use():
                return False
            return self._remove(name, lock)

    def _remove(self, name: str, lock: Lock) -> bool:
        if not lock.is_ours():
            return False
        doomed = self._put_aside(name)
        if name in self._in_use():
            # By a run that began, on a machine that does not see the lock, after we looked.
            with suppress(OSError):
                os.rename(doomed, self.contents / name)
                return False
        remove_tree(doomed)
        lock.is_spent = True
        log.info("removed the cached dependency %s to make room", name)
        return True

    def _put_aside(self, name: str) -> Path:
        """Out of `ready` in one step: half a dependency must never be found there."""
        doomed = self._new_partial(name)
        with suppress(FileNotFoundError):
            os.rename(self.contents / name, doomed)
        return doomed

    def _is_fresh(self, name: str) -> bool:
        """Whether it was used so lately that another machine's run of it may not be seen yet."""
        if not self._settling_seconds:
            return False
        # By the file server's clock, and opened, so that it is asked for the present time.
        now, used = self.directory / "now", self.contents / name / "about.json"
        now.touch()
        try:
            with now.open() as one, used.open() as other:
                age_seconds = os.fstat(one.fileno()).st_mtime - os.fstat(other.fileno()).st_mtime
        except OSError:
            return False
        return age_seconds < self._settling_seconds

    def _in_use(self) -> set[str]:
        names: set[str] = set()
        for record in self._workers.glob("*/runs/*/run.json"):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                if _is_abandoned(record):
                    continue
                bundle = orjson.loads(record.read_bytes())["bundle"]
                names.update(entry_name(key) for key in dependency_keys(bundle))
        return names

    def sweep(self) -> None:
        """Remove what downloads that were killed have left."""
        for name in {place.name.partition(".")[0] for place in self._partials()}:
            with self._locks.trying(name) as lock:
                if lock is not None:
                    self._clear(name)

    def _partials(self) -> list[Path]:
        return list((self.directory / "partial").iterdir())


def _receive_file(chunks: Iterator[bytes], content: Path, download: Download) -> None:
    digest = hashlib.sha256()
    size_bytes = 0
    with content.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
    if download.size_bytes not in (None, size_bytes):
        raise CutOff(f"it has {size_bytes} bytes instead of {download.size_bytes}")
    if download.sha256 not in (None, digest.digest()):
        raise CutOff("it was damaged on the way: its SHA-256 is not the server's")


def _is_abandoned(record: Path) -> bool:
    """Whether a run's worker has ended, and was not started again for days: its machine may be
    gone, and the run with it."""
    if time.time() - record.stat().st_mtime < ABANDONED_SECONDS:
        return False
    lock = record.parents[2] / "lock"
    return not lock.exists() or is_free(lock)


def _is_remote(directory: Path) -> bool:
    """Whether other machines may see the directory, too."""
    place = os.path.realpath(directory)
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if os.path.commonpath([mount.mountpoint, place]) == mount.mountpoint
    ]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.startswith(NETWORK_FILE_SYSTEMS)


@dataclass
class _About:
    uuid: str
    path: str
    size_bytes: int
    files: int
    boots: list[str]


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
