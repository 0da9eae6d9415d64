"""Locks by name in a directory that several workers, on several machines, may share.

    <name>   flock by who holds it; what is in it says who that is, and its time of change moves
             while they live

A lock outlives nobody: the kernel drops flock with the process, whatever ended it. Where flock
does not reach (another machine whose mount keeps it to itself), and when a holder is alive but
does nothing (stopped, or hung on its disk), the file falls silent, and who has watched that for
SILENCE_SECONDS takes the lock over. The watcher goes by its own clock alone.

So a lock saves work, and two may hold it for a moment: what is done under it must be right without.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.backoff import Backoff
from worker.runtimes.proc import boot_id

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60.0
"""A holder that shows no life for so long has lost the lock. As long as NFS clients keep what they
know of a file (acregmax), so that a beat is seen in time."""
BEATS = 6
"""How often a holder shows life within that."""
FIRST_LOOK_SECONDS = 0.05
LONGEST_LOOK_SECONDS = 1.0
"""How often who waits looks: a process on another machine cannot wake it."""

_Seen = tuple[int, int]


class GaveUp(Exception):
    """The wait for a lock was cancelled."""


class Lock:
    """A lock that is held until ``release``. ``is_spent``: there is nothing left to lock."""

    def __init__(self, path: Path, descriptor: int, token: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._token = token
        self.is_spent = False

    def is_ours(self) -> bool:
        """False: it was taken over meanwhile."""
        try:
            return _is_there(self._path, self._descriptor) and (
                os.pread(self._descriptor, len(self._token), 0) == self._token
            )
        except OSError:
            return False

    def show_life(self) -> None:
        with suppress(OSError):
            os.utime(self._descriptor)

    def release(self) -> None:
        with suppress(OSError):
            if self.is_spent and self.is_ours():
                os.unlink(self._path)
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


class Locks:
    """The locks of a directory, for the threads of one process."""

    def __init__(
        self,
        directory: Path,
        *,
        silence_seconds: float = SILENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._machine = boot_id().encode()
        self._held: set[Lock] = set()
        self._is_beating = False
        self._changed = threading.Condition()

    @contextmanager
    def looking(self, name: str) -> Iterator[bool]:
        """True while nobody can take the lock; False if someone has it. Does not wait."""
        descriptor = self._open(self._directory / name)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                is_free = self._is_free(descriptor)
            except BlockingIOError:
                is_free = False
            yield is_free
        finally:
            os.close(descriptor)

    @contextmanager
    def trying(self, name: str) -> Iterator[Lock | None]:
        """The lock, or None if someone has it. Does not wait."""
        lock, _ = self._try(self._directory / name)
        if lock is None:
            yield None
            return
        with self._keeping(lock):
            yield lock

    @contextmanager
    def holding(self, name: str, cancelled: threading.Event) -> Iterator[Lock]:
        """The lock, as soon as nobody else has it. Raises GaveUp."""
        with self._keeping(self._wait(self._directory / name, cancelled)) as lock:
            yield lock

    def _wait(self, path: Path, cancelled: threading.Event) -> Lock:
        backoff = Backoff(FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS)
        watched: _Seen | None = None
        since = self._clock()
        while True:
            lock, seen = self._try(path)
            if lock is not None:
                return lock
            if seen != watched:
                watched, since = seen, self._clock()
            elif self._clock() - since > self._silence_seconds:
                log.warning("%s is taken over: its holder shows no life", path.name)
                return self._take_over(path)
            if cancelled.wait(backoff.next_seconds()):
                raise GaveUp

    def _try(self, path: Path) -> tuple[Lock | None, _Seen]:
        while True:
            descriptor = self._open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = self._is_free(descriptor)
            except BlockingIOError:
                is_free = False
            if not is_free:
                status = os.fstat(descriptor)
                os.close(descriptor)
                return None, (status.st_ino, status.st_mtime_ns)
            # A lock on a file that is no longer there locks nobody out.
            if _is_there(path, descriptor):
                return self._mark(path, descriptor), (0, 0)
            os.close(descriptor)

    def _take_over(self, path: Path) -> Lock:
        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = self._open(new)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        lock = self._mark(path, descriptor)
        os.rename(new, path)
        return lock

    def _open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)

    def _is_free(self, descriptor: int) -> bool:
        """Of who holds no flock: whether it is nobody, or one of this machine, who is dead then."""
        content = os.pread(descriptor, 200, 0)
        return not content or content.startswith(self._machine)

    def _mark(self, path: Path, descriptor: int) -> Lock:
        token = self._machine + b" " + secrets.token_hex(8).encode()
        try:
            os.pwrite(descriptor, token, 0)
        except OSError:
            token = b""  # on a full disk flock alone has to do
        return Lock(path, descriptor, token)

    # Signs of life

    @contextmanager
    def _keeping(self, lock: Lock) -> Iterator[Lock]:
        with self._changed:
            self._held.add(lock)
            if not self._is_beating:
                self._is_beating = True
                threading.Thread(target=self._beat, name="locks", daemon=True).start()
        try:
            yield lock
        finally:
            with self._changed:
                self._held.discard(lock)
                self._changed.notify()
            lock.release()

    def _beat(self) -> None:
        with self._changed:
            while self._held:
                for lock in self._held:
                    lock.show_life()
                self._changed.wait(self._silence_seconds / BEATS)
            self._is_beating = False


def is_free(path: Path) -> bool:
    """Whether nobody holds flock on a file just now, as far as this machine can tell."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
