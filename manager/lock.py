"""One manager a pool: a lock on a file of the home, held for as long as the process lives.

flock(2), because waiting for it is a system call that a signal ends and that nobody polls.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class PoolLock:
    """The right to launch workers for one pool of one home."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def try_take(self) -> bool:
        """Take it if it is free."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._sign()
        return True

    def take(self) -> None:
        """Wait until it is free and take it; what a signal handler raises ends the wait."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._sign()

    def holder(self) -> int | None:
        """The process that holds or last held it, as it wrote itself down."""
        text = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None

    def _sign(self) -> None:
        with suppress(OSError):  # on a full disk the lock is still a lock
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def holder(path: Path) -> int | None:
    """The process that holds the lock now; None when nobody does. Makes no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else -1
    finally:
        os.close(descriptor)
    return None
