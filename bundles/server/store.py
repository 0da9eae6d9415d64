"""Contents of bundles on disk. Nothing about bundles here: a place has a name, and holds a file or
a directory that never changes once it is committed.

A crash leaves at most places that no bundle refers to; ``sweep`` removes them at the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from bundles.archive import check_path, is_inside, pack, readable_name, unpack
from bundles.errors import NotFound, ServerFault

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
SHA256_DIGITS = 64
DIRECTORY_DIGITS = 2
MARK = "database"
RECOVERED = "lost+found"
"""In the root of a file system of its own (mke2fs(8)); only root may read it."""
LOCATION = re.compile(r"[0-9a-f]{2}/0x[0-9a-f]{32}-[0-9a-f-]+")
"""Nothing else at the same place is ours to list, or to sweep away."""


class StoreFault(ServerFault):
    """The service that contents lie at failed. ``details``: its own words, for the log alone."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class Store(Protocol):
    """Where contents lie. Every method blocks, and raises ServerFault, or OSError for what the
    disk says (that it is full, say)."""

    def prepare(self, identity: str) -> None:
        """Get ready for the database that is known by ``identity``, and throw away what was
        arriving when the last server ended. Raises ServerFault when what lies there belongs to
        another one, whose contents the first ``sweep`` would remove."""

    def close(self) -> None:
        """End what is under way."""

    def open(self) -> Path:
        """A new temporary place: a path that does not exist yet, on the store's own disk."""

    def discard_open(self, place: Path) -> None:
        """Give a temporary place up."""

    def commit(self, place: Path, uuid: str, sha256: str | None = None) -> str:
        """Keep what lies at a temporary place, also through a power cut; returns the location to
        find it by. ``sha256``: the digest of a file, in hexadecimal, to be kept with it; a
        directory has none."""

    def make_room(self) -> bool:
        """Remove copies that can be had again, since the disk is full; whether there were any."""

    def hold(self, location: str) -> Path | None:
        """The file or directory there, which stays at this path until ``release``. None: it has to
        be fetched before. This one does not block."""

    def fetch(self, location: str) -> None:
        """Bring what ``hold`` has not. Raises NotFound."""

    def release(self, location: str) -> None:
        """Undo one ``hold``."""

    def delete(self, location: str) -> None:
        """Remove contents; those that are gone already are no error."""

    def list(self) -> Iterator[str]:
        """Every location there is, or an error: never fewer."""

    def check(self) -> None:
        """See that contents can be reached, cheaply."""


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that workers may have the file system of."""

    def lay_out(self, location: str) -> None:
        """Make an empty directory there, for a worker that shares the store's file system; one
        that is there already stays."""

    def address(self, location: str) -> str:
        """Where such a worker finds contents: an absolute path."""

    def measure(self, location: str) -> int:
        """The bytes of the files there together, as they lie on disk now."""


class DirectoryStore:
    """A store in one directory: `incoming/` for what arrives, and 256 directories by uuid.

    A location ends with the digest of the file there, if it is one. In a directory that was given
    (not the home's own, which has its database beside it), `database` says whose it is.
    """

    def __init__(self, root: Path, *, is_given: bool = False) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._mark = root / MARK if is_given else None

    def prepare(self, identity: str) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._mark is not None:
            mark = self._mark.read_text(errors="replace") if self._mark.exists() else ""
            if mark:
                check_mark(str(self._root), mark, identity)
            elif any(path.name not in (MARK, RECOVERED) for path in self._root.iterdir()):
                raise not_ours(str(self._root))
            else:
                self._mark.write_text(identity)
                _sync(self._mark)
                _sync(self._root)
        if self._incoming.exists():
            remove(self._incoming)
        self._incoming.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Nothing is under way but in the caller's threads."""

    def open(self) -> Path:
        return self._incoming / secrets.token_hex(8)

    def discard_open(self, place: Path) -> None:
        remove(place)

    def commit(self, place: Path, uuid: str, sha256: str | None = None) -> str:
        location = f"{uuid[2:4]}/{uuid}-{place.name}" + (f"-{sha256}" if sha256 else "")
        target = self._root / location
        _write_through(place)
        try:
            os.rename(place, target)
        except FileNotFoundError:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(place, target)
        _sync(target.parent)
        return location

    def make_room(self) -> bool:
        return False

    def hold(self, location: str) -> Path:
        return self._root / location

    def fetch(self, location: str) -> None:
        """Nothing has to be."""

    def release(self, location: str) -> None:
        """Nothing is held."""

    def lay_out(self, location: str) -> None:
        (self._root / location).mkdir(mode=0o755, parents=True, exist_ok=True)

    def address(self, location: str) -> str:
        return str((self._root / location).absolute())

    def measure(self, location: str) -> int:
        size_bytes = 0
        todo = [os.fspath(self._root / location)]  # a list, since users make trees of any depth
        while todo:
            with suppress(OSError), os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        size_bytes += entry.stat(follow_symlinks=False).st_size
        return size_bytes

    def delete(self, location: str) -> None:
        remove(self._root / location)

    def list(self) -> Iterator[str]:
        for directory in sorted(self._root.iterdir()):
            if len(directory.name) == DIRECTORY_DIGITS and directory.is_dir():
                for place in directory.iterdir():
                    location = f"{directory.name}/{place.name}"
                    if LOCATION.fullmatch(location):
                        yield location

    def check(self) -> None:
        self._incoming.stat()


def check_mark(place: str, mark: str, identity: str) -> None:
    """Raises ServerFault unless a place that is marked is that database's."""
    if mark.strip() != identity:
        raise ServerFault(
            f"the contents at {place} belong to another database: give that one with --database, "
            "or a place of its own to this one with --contents"
        )


def not_ours(place: str) -> ServerFault:
    """What to say of a place that holds something and is not marked."""
    return ServerFault(
        f"there is something at {place} that no server of bundles has put there: give an empty "
        "place with --contents"
    )


def sha256_in(location: str) -> str | None:
    """The digest that was kept with a file."""
    _, _, last = location.rpartition("-")
    return last if len(last) == SHA256_DIGITS else None


def find(root: Path, path: str) -> Path:
    """The file or directory at a path of the contents at ``root``. Raises NotFound, UsageError."""
    found = root / check_path(path) if path else root
    if not os.path.lexists(found) or not is_inside(root, found.parent if path else root):
        raise NotFound(f"there is nothing at {path!r} in the bundle")
    return found


def location_of_run(uuid: str, claim: int) -> str:
    """Where a worker that shares the file system writes what a run comes to."""
    return f"{uuid[2:4]}/{uuid}-{claim}"


def sweep(store: Store, candidates: Iterable[str], referenced: set[str]) -> int:
    """Delete those of the candidates that nobody refers to; returns how many there were."""
    count = 0
    for location in candidates:
        if location not in referenced:
            store.delete(location)
            count += 1
    return count


def delete_all(store: Store, locations: Iterable[str]) -> None:
    """Delete each of them."""
    for location in locations:
        store.delete(location)


@dataclass(frozen=True, slots=True)
class Received:
    """``size_bytes``: of all files together. ``sha256`` of a single file, in hexadecimal."""

    is_directory: bool
    size_bytes: int
    sha256: str | None = None


def receive(stream: BinaryIO, place: Path, *, archive: bool) -> Received:
    """What arrived, put at a temporary place: unpacked if it is an archive, else as a file.

    Raises UsageError for a damaged or hostile archive, OSError when the disk is full.
    """
    if archive:
        place.mkdir(mode=0o700)
        return Received(True, unpack(stream, place))
    digest = hashlib.sha256()
    with open(place, "xb") as file:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        return Received(False, file.tell(), digest.hexdigest())


def describe(root: Path, path: Path, depth: int) -> dict[str, Any]:
    """CodaLab's target info of what lies at ``path``; links are described, not followed."""
    try:
        status = os.lstat(path)
    except OSError:
        raise NotFound("there is nothing at this path of the bundle") from None
    info: dict[str, Any] = {
        "name": readable_name(path.name),
        "size": status.st_size,
        "perm": stat.S_IMODE(status.st_mode),
    }
    if stat.S_ISLNK(status.st_mode):
        info |= {"type": "link", "link": readable_name(os.readlink(path))}
    elif stat.S_ISDIR(status.st_mode):
        info["type"] = "directory"
        if depth > 0:
            info["contents"] = []
            for name in sorted(os.listdir(path)):
                # A run on a shared file system may have removed it meanwhile.
                with suppress(NotFound, FileNotFoundError, NotADirectoryError):
                    info["contents"].append(describe(root, path / name, depth - 1))
    else:
        info["type"] = "file"
    return info


def readable(root: Path, path: Path) -> Path:
    """The path with its links followed. Raises NotFound when that leads out of the contents, or to
    something that is neither a file nor a directory."""
    real = Path(os.path.realpath(path))
    if not is_inside(root, real) or not (real.is_file() or real.is_dir()):
        raise NotFound(f"{path.name!r} cannot be read: it leads to nothing inside the bundle")
    return real


def pack_directory(path: Path) -> Iterator[bytes]:
    """A directory as a tar.gz."""
    return pack(path)


def _write_through(place: Path) -> None:
    # The database, which is as careful, must not know of contents that a power cut took away.
    if place.is_file():
        _sync(place)
        return
    for directory, _, names in os.walk(place):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                _sync(path)
        _sync(directory)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    def force(function: Any, name: str, error: Any) -> None:
        # A directory without the right to write keeps its entries: take the right and try again.
        try:
            os.chmod(os.path.dirname(name), 0o700)
            os.chmod(name, 0o700)
            if function in (os.scandir, os.listdir, os.open):
                shutil.rmtree(name, ignore_errors=True)
            else:
                function(name)
        except OSError as again:
            log.warning("%s cannot be removed: %s", name, again.strerror)

    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=force)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
