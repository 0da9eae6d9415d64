"""Copies on this server's disk of contents that lie elsewhere: up to so many bytes, those that were
used last. Knows nothing of where they come from. A server starts with none.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from bundles.server.store import remove

BLOCK_BYTES = 512
"""Of st_blocks, whatever the file system's own are (stat(2))."""


@dataclass(slots=True)
class _Copy:
    path: Path
    size_bytes: int
    holds: int = 0


class Cache:
    """A directory that is its own alone. Thread-safe; nothing is removed under the lock.

    What is held stays, and so does what came last, however large: who asked for it may have to ask
    again. So there may be more than ``most_bytes``.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self._incoming, self._kept = root / "incoming", root / "kept"
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        """By location; the one used last is the last."""
        self._dropped: dict[str, _Copy] = {}
        """Those that are still held."""

    def prepare(self) -> None:
        """Throw away what an earlier server left: nobody knows whether a power cut spoilt it."""
        for directory in (self._incoming, self._kept):
            if directory.exists():
                remove(directory)
            directory.mkdir(mode=0o700, parents=True)

    def new_place(self) -> Path:
        """A path that does not exist yet, for what arrives."""
        return self._incoming / secrets.token_hex(8)

    def add(self, location: str, place: Path) -> None:
        """Keep what lies, complete, at a new place."""
        path = self._kept / place.name
        size_bytes = _size_on_disk(place)
        with self._lock:
            if location in self._copies:
                path = place
            else:
                os.rename(place, path)
                self._copies[location] = _Copy(path, size_bytes)
        if path == place:
            remove(place)
        self._shrink()

    def hold(self, location: str) -> Path | None:
        """Where the copy is, until ``release``; None if there is none."""
        with self._lock:
            copy = self._copies.get(location)
            if copy is None:
                return None
            copy.holds += 1
            self._copies.move_to_end(location)
            return copy.path

    def release(self, location: str) -> None:
        """Undo one ``hold``."""
        gone: Path | None = None
        with self._lock:
            copy = self._dropped.get(location) or self._copies[location]
            copy.holds -= 1
            if copy.holds == 0 and self._dropped.pop(location, None) is not None:
                gone = copy.path
        if gone is not None:
            remove(gone)
        self._shrink()

    def drop(self, location: str) -> None:
        """Have no copy of it any more, but for those who hold it."""
        with self._lock:
            copy = self._copies.pop(location, None)
            if copy is not None and copy.holds:
                self._dropped[location] = copy
        if copy is not None and not copy.holds:
            remove(copy.path)

    def make_room(self) -> bool:
        """Remove all that is not held, since the disk is full; returns whether there was any."""
        return self._remove(0, spared=0)

    def _shrink(self) -> None:
        self._remove(self._most_bytes, spared=1)

    def _remove(self, most_bytes: int, *, spared: int) -> bool:
        gone: list[Path] = []
        with self._lock:
            size_bytes = sum(copy.size_bytes for copy in self._copies.values())
            for location in list(self._copies)[: len(self._copies) - spared]:
                if size_bytes <= most_bytes:
                    break
                copy = self._copies[location]
                if not copy.holds:
                    del self._copies[location]
                    size_bytes -= copy.size_bytes
                    gone.append(copy.path)
        for path in gone:
            remove(path)
        return bool(gone)


def _size_on_disk(path: Path) -> int:
    """What is free again once it is removed: of small files and holes that is not their length."""
    size_bytes = os.lstat(path).st_blocks
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            size_bytes += os.lstat(os.path.join(directory, name)).st_blocks
    return size_bytes * BLOCK_BYTES
