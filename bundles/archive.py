"""Directories as tar.gz streams, both ways, for contents that come from people we do not trust.

tarfile reads and writes the format; what is ours is what may be in it. Nothing here knows bundles
or servers.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import posixpath
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bundles.errors import UsageError

CHUNK_BYTES = 256 * 1024
COMPRESSION_LEVEL = 1
"""zlib's fastest: results travel once, mostly over fast networks, and levels above cost a core."""
_GZIP_WINDOW_BITS = 31  # zlib writes a gzip header and trailer


def check_path(path: str) -> str:
    """A path inside a bundle, as is. Raises UsageError if it leaves it (`..`, absolute, NUL)."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UsageError(f"the path {path!r} leaves the bundle: give one inside it")
    return path


def pack(root: Path, *, exclude: Sequence[str] = ()) -> Iterator[bytes]:
    """The directory ``root`` as a tar.gz, in chunks, with paths relative to it.

    ``exclude``: shell patterns; a file or directory is left out when its name or its path
    matches one. Left out as well: sockets, pipes, devices, links that leave ``root``, and what
    vanishes meanwhile. A file that grows or shrinks while it is read is cut or filled with zeros
    to the size it had.
    """
    compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    pending = bytearray()
    for chunk in _tar_chunks(root, exclude):
        pending += compressor.compress(chunk)
        if len(pending) >= CHUNK_BYTES:
            yield bytes(pending)
            pending.clear()
    pending += compressor.flush()
    yield bytes(pending)


def _tar_chunks(root: Path, exclude: Sequence[str]) -> Iterator[bytes]:
    for path, status in _walk(str(root), "", exclude):
        member = _member(str(root), path, status)
        if member is None:
            continue
        if not member.isreg():
            yield member.tobuf(tarfile.PAX_FORMAT)
            continue
        try:
            # A pipe put in the file's place since it was looked at must not block us.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(os.path.join(root, path), flags)
        except OSError:
            continue
        with open(descriptor, "rb") as file:
            yield member.tobuf(tarfile.PAX_FORMAT)
            yield from _exactly(file, member.size)
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _exactly(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left > 0:
        chunk = file.read(min(CHUNK_BYTES, left)) or bytes(min(CHUNK_BYTES, left))
        left -= len(chunk)
        yield chunk


def _walk(
    root: str, directory: str, exclude: Sequence[str]
) -> Iterator[tuple[str, os.stat_result]]:
    try:
        entries = sorted(os.scandir(os.path.join(root, directory)), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = posixpath.join(directory, entry.name)
        if any(fnmatch.fnmatchcase(name, p) for p in exclude for name in (entry.name, path)):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root, path, exclude)


def _member(root: str, path: str, status: os.stat_result) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(status.st_mode)
    member.mtime = int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        member.size = status.st_size
    elif stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        try:
            target = os.readlink(os.path.join(root, path))
        except OSError:
            return None
        if os.path.isabs(target) or not is_inside(root, os.path.join(root, path)):
            return None
        member.type, member.linkname = tarfile.SYMTYPE, target
    else:
        return None
    return member


def is_inside(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether ``path``, with every link followed, lies in ``root`` (or is it)."""
    real_root = os.path.realpath(root)
    return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root


def unpack(stream: BinaryIO, destination: Path) -> int:
    """Unpack a tar (plain or gzip) into the existing, empty directory ``destination``.

    Returns the bytes of the files in it. Raises UsageError for an archive that is damaged or cut
    off, or that holds an absolute path, a `..`, a link that leaves the directory, a path through
    a link, or anything but files, directories and links; some members may have been unpacked by
    then: the caller throws the directory away. Errors of ``stream`` and of the disk pass through.
    """
    buffered = io.BufferedReader(_Unbuffered(stream), CHUNK_BYTES)
    try:
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            # gzip reads to its trailer and checks it, which tarfile's own stream mode does not.
            with gzip.GzipFile(fileobj=buffered, mode="rb") as plain:
                return _unpack_tar(io.BufferedReader(plain, CHUNK_BYTES), destination)
        return _unpack_tar(buffered, destination)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"the archive cannot be unpacked: {error}") from error
    except ValueError as error:  # tarfile, on numbers and names that are none
        raise UsageError(f"the archive cannot be unpacked: {error}") from error


def _unpack_tar(stream: BinaryIO, destination: Path) -> int:
    # CPython's `data` filter alone was got round by chains of links (CVE-2025-4517), so what
    # it checks by path is checked here by what was unpacked: no member goes through a link, a
    # hard link names a file of this archive, and at the end every link is followed once.
    files: set[str] = set()
    links: set[str] = set()
    size_bytes = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = _checked_name(member.name, links)
            if name == ".":
                continue
            path = destination / name
            if member.isreg():
                _make_way(path)
                files.add(name)
                links.discard(name)
                size_bytes += member.size
            elif member.issym():
                _make_way(path)
                files.discard(name)
                links.add(name)
            elif member.islnk():
                target = _checked_name(member.linkname, links)
                if target not in files:
                    raise UsageError(f"the archive links {name!r} to {target!r}, not a file of it")
                if target != name:
                    _make_way(path)
                    files.add(name)
            elif member.isdir():
                if name in links:
                    raise UsageError(f"the archive has {name!r} both as a link and a directory")
            else:
                raise UsageError(f"the archive holds {name!r}, not a file, directory or link")
            try:
                archive.extract(member, destination, set_attrs=not member.isdir(), filter="data")
            except tarfile.FilterError as error:
                # Its own sentence names the directory, which is nobody's business.
                raise UsageError(f"the archive's {member.name!r} leaves it") from error
    while stream.read(CHUNK_BYTES):  # to the end, so that a checksum there is checked
        pass
    for name in links:
        if not is_inside(destination, destination / name):
            raise UsageError(f"the archive's link {name!r} leaves it")
    return size_bytes


def _checked_name(name: str, links: set[str]) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise UsageError(f"the archive holds {name!r}: a path that leaves it")
    normal = posixpath.normpath(name)
    parent = posixpath.dirname(normal)
    while parent:
        if parent in links:
            raise UsageError(f"the archive holds {name!r}: a path through the link {parent!r}")
        parent = posixpath.dirname(parent)
    return normal


def _make_way(path: Path) -> None:
    # An archive may hold a name twice; the later one must not be written through the earlier.
    if path.is_symlink() or path.is_file():
        path.unlink()


class _Unbuffered(io.RawIOBase):
    """Any object with ``read(size)`` as the raw stream that io.BufferedReader wants."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


class ChunkStream(io.RawIOBase):
    """Chunks of bytes, such as a download's, as a readable binary stream."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
