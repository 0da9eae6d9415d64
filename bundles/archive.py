"""Directories as tar.gz streams, both ways, for contents that come from people we do not trust.

tarfile reads and writes the format, ISA-L compresses it; what is ours is what may be in it. Nothing
here knows bundles or servers.
"""

from __future__ import annotations

import errno
import fnmatch
import gzip
import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import isal
from isal import igzip, isal_zlib

from bundles.errors import UsageError

CHUNK_BYTES = 256 * 1024
COMPRESSION_LEVEL = 1
"""Contents travel once, mostly over fast networks. ISA-L makes them as small as zlib does at its
level 1 in a quarter of the time; levels above cost a core."""
HOLE_BYTES = 1024**2
"""A smaller hole in a file costs less when it is packed as zeros."""
MOST_SPARSE_BYTES = 8 * 1024**3 - 2 * HOLE_BYTES
"""tarfile cannot read a file with holes that has more in it."""
_GZIP_WINDOW_BITS = 31  # a gzip header and trailer
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEEPEST = 200
"""More directories in directories than this are refused: who walks them later may recurse."""


def check_path(path: str) -> str:
    """A path inside a bundle, as is. Raises UsageError if it leaves it (`..`, absolute, NUL)."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UsageError(f"the path {path!r} leaves the bundle: give one inside it")
    return path


def readable_name(name: str) -> str:
    """A name of a file as JSON can hold it: Linux takes any bytes, and JSON only text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def pack(root: Path, *, exclude: Sequence[str] = ()) -> Iterator[bytes]:
    """The directory ``root`` as a tar.gz, in chunks, with paths relative to it.

    ``exclude``: shell patterns; a file or directory is left out when its name or its path
    matches one. Left out as well: sockets, pipes, devices, links that leave ``root``, and what
    vanishes meanwhile. A file that grows or shrinks while it is read is cut or filled with zeros
    to the size it had. Holes are not read: a terabyte without content is packed at once.
    Raises UsageError for directories too deep in each other.
    """
    return compress(_tar_chunks(root, exclude))


def packing() -> str:
    """What the bytes that ``pack`` makes of a directory depend on, besides the directory."""
    return f"2 isal-{isal.__version__}"


def compress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes as gzip, in chunks; the same bytes for the same chunks."""
    compressor = isal_zlib.compressobj(COMPRESSION_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW_BITS)
    pending = bytearray()
    for chunk in chunks:
        pending += compressor.compress(chunk)
        if len(pending) >= CHUNK_BYTES:
            yield bytes(pending)
            pending.clear()
    pending += compressor.flush()
    yield bytes(pending)


def _tar_chunks(root: Path, exclude: Sequence[str]) -> Iterator[bytes]:
    try:
        descriptor = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
    except OSError:
        yield bytes(2 * tarfile.BLOCKSIZE)
        return
    try:
        for place, path, status in _walk(descriptor, "", exclude, 0):
            member = _member(str(root), place, path, status)
            if member is None:
                continue
            if member.isreg():
                yield from _file(member, place, status)
            else:
                yield member.tobuf(tarfile.PAX_FORMAT)
    finally:
        os.close(descriptor)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _file(member: tarfile.TarInfo, place: int, status: os.stat_result) -> Iterator[bytes]:
    name = posixpath.basename(member.name)
    try:
        # A pipe put in the file's place since it was looked at must not block us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=place)
    except OSError:
        return
    with open(descriptor, "rb") as file:
        pieces = _pieces(descriptor, status)
        if pieces is not None:
            yield from _sparse_member(member, file, pieces)
            return
        yield header_of(member)
        yield from _exactly(file, member.size)
        yield bytes(-member.size % tarfile.BLOCKSIZE)


def header_of(file: tarfile.TarInfo) -> bytes:
    """What ``tobuf(PAX_FORMAT)`` makes of a file without an owner, in a quarter of the time if it
    is like most."""
    is_short = len(file.name) <= 100 and file.name.isascii() and file.size < 8**11
    if not (is_short and isinstance(file.mtime, int) and 0 <= file.mtime < 8**11):
        return file.tobuf(tarfile.PAX_FORMAT)
    header = b"%s%07o\0%s%011o\0%011o\0%s%s" % (
        file.name.encode().ljust(100, b"\0"),
        file.mode,
        _PLAIN_HEADER[108:124],
        file.size,
        file.mtime,
        b" " * 8,
        _PLAIN_HEADER[156:],
    )
    return b"%s%06o\0%s" % (header[:148], sum(header), header[155:])


_PLAIN_HEADER = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)


def _pieces(descriptor: int, status: os.stat_result) -> list[tuple[int, int]] | None:
    """(offset, bytes) of all that is no hole, if leaving out the holes is worth it."""
    size_bytes, stored_bytes = status.st_size, status.st_blocks * 512
    if size_bytes - stored_bytes < HOLE_BYTES or stored_bytes > MOST_SPARSE_BYTES:
        return None
    pieces: list[tuple[int, int]] = []
    end = 0
    try:
        while end < size_bytes:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size_bytes)
            if pieces and begin - sum(pieces[-1]) < HOLE_BYTES:
                begin = pieces.pop()[0]
            pieces.append((begin, end - begin))
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data after here
            return None
    os.lseek(descriptor, 0, os.SEEK_SET)
    return pieces


def _sparse_member(
    member: tarfile.TarInfo, file: BinaryIO, pieces: Sequence[tuple[int, int]]
) -> Iterator[bytes]:
    """As GNU tar writes it in its format 1.0: a list of the pieces, then the pieces. An empty one
    at the end says where the file ends."""
    numbers = [n for piece in (*pieces, (member.size, 0)) for n in piece]
    index = "".join(f"{n}\n" for n in (len(pieces) + 1, *numbers)).encode()
    index += bytes(-len(index) % tarfile.BLOCKSIZE)
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": member.name,
        "GNU.sparse.realsize": str(member.size),
    }
    member.size = len(index) + sum(size_bytes for _, size_bytes in pieces)
    yield member.tobuf(tarfile.PAX_FORMAT)
    yield index
    for offset, size_bytes in pieces:
        file.seek(offset)
        yield from _exactly(file, size_bytes)
    yield bytes(-member.size % tarfile.BLOCKSIZE)


def _exactly(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left > 0:
        chunk = file.read(min(CHUNK_BYTES, left)) or bytes(min(CHUNK_BYTES, left))
        left -= len(chunk)
        yield chunk


def _walk(
    place: int, directory: str, exclude: Sequence[str], depth: int
) -> Iterator[tuple[int, str, os.stat_result]]:
    """(descriptor of its directory, path, status) of everything.

    By descriptors: who owns the tree may be at work in it, and put a link where a directory was.
    """
    if depth > DEEPEST:
        raise UsageError(f"there are more than {DEEPEST} directories in each other")
    try:
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = posixpath.join(directory, entry.name)
        if any(fnmatch.fnmatchcase(name, p) for p in exclude for name in (entry.name, path)):
            continue
        try:
            status = os.stat(entry.name, dir_fd=place, follow_symlinks=False)
        except OSError:
            continue
        yield place, path, status
        if stat.S_ISDIR(status.st_mode):
            try:
                inside = os.open(entry.name, _DIRECTORY, dir_fd=place)
            except OSError:
                continue
            try:
                yield from _walk(inside, path, exclude, depth + 1)
            finally:
                os.close(inside)


def _member(root: str, place: int, path: str, status: os.stat_result) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(status.st_mode)
    member.mtime = int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        member.size = status.st_size
    elif stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        try:
            target = os.readlink(posixpath.basename(path), dir_fd=place)
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


def unpack(stream: BinaryIO, destination: Path, *, read_only: bool = False) -> int:
    """Unpack a tar (plain or gzip) into the existing, empty directory ``destination``.

    Returns the bytes of the files in it. Raises UsageError for an archive that is damaged or cut
    off, or that holds an absolute path, a `..`, a link that leaves the directory, a path through
    a link, a path too deep, or anything but files, directories and links; some members may have
    been unpacked by then: the caller throws the directory away. Raises OSError (ENOSPC) for one
    whose holes and hard links stand for more than the disk has room for. Errors of ``stream`` and
    of the disk pass through.

    Of the modes only the owner's are kept, and nobody else may write: no set-user-id, no sticky
    bit. With ``read_only`` the owner may not write the files either. Owners are not kept. Memory
    does not grow with the number of files.
    """
    buffered = io.BufferedReader(_Forward(stream), CHUNK_BYTES)
    try:
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            # It reads to the trailer and checks it, which tarfile's own stream mode does not.
            with igzip.GzipFile(fileobj=buffered) as plain:  # type: ignore[no-untyped-call]
                found = io.BufferedReader(_Forward(plain), CHUNK_BYTES)
                return _Unpacking(destination, read_only).run(found)
        return _Unpacking(destination, read_only).run(buffered)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]
        raise UsageError(f"the archive cannot be unpacked: {error}") from error
    except ValueError as error:  # tarfile, on numbers and names that are none
        raise UsageError(f"the archive cannot be unpacked: {error}") from error


class _Unpacking:
    """One archive on its way into an empty directory.

    What tarfile's `data` filter checks by path was got round by chains of links (CVE-2025-4517).
    Here nothing is ever made through a link: every directory on the way to a member is one that
    was made here. So links are harmless while they are made, and at the end each is followed once.
    tarfile's own `extract` would look at every path again, at three times the cost of a small file.
    """

    def __init__(self, destination: Path, read_only: bool) -> None:
        self._root = str(destination)
        self._kept_bits = 0o555 if read_only else 0o755
        self._directories = {""}
        self._links: set[str] = set()
        self._size_bytes = 0
        self._unbacked_bytes = 0
        """What files say they hold without any bytes for it in the archive."""
        status = os.statvfs(destination)
        self._room_bytes = status.f_bavail * status.f_frsize

    def run(self, stream: BinaryIO) -> int:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                name = _checked_name(member.name)
                if name:
                    self._take(archive, member, name)
        while stream.read(CHUNK_BYTES):  # to the end, so that a checksum there is checked
            pass
        for name in self._links:
            if not is_inside(self._root, f"{self._root}/{name}"):
                raise UsageError(f"the archive's link {name!r} leaves it")
        return self._size_bytes

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        if member.isdir():
            if name in self._links:
                raise UsageError(f"the archive has {name!r} both as a link and a directory")
            self._make_directory(name)
            return
        if not (member.isreg() or member.issym() or member.islnk()):
            raise UsageError(f"the archive holds {name!r}, not a file, directory or link")
        self._make_directory(posixpath.dirname(name))
        path = f"{self._root}/{name}"
        if member.islnk():
            self._link_hard(member, name, path)
            return
        # An archive may hold a name twice; the later one must not be written through the earlier.
        if member.issym():
            self._make_way(name, path)
            os.symlink(member.linkname, path)
            self._links.add(name)
            return
        try:
            descriptor = os.open(path, _NEW_FILE, 0o600)
        except FileExistsError:
            self._make_way(name, path)
            descriptor = os.open(path, _NEW_FILE, 0o600)
        try:
            if member.size:
                self._write(archive, member, descriptor)
            os.fchmod(descriptor, _mode(member.mode) & self._kept_bits)
            os.utime(descriptor, (member.mtime, member.mtime))
        finally:
            os.close(descriptor)
        self._size_bytes += member.size

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, descriptor: int) -> None:
        source = archive.fileobj  # as `extract` reads it: pieces of a sparse file follow another
        assert source is not None
        source.seek(member.offset_data)
        pieces = getattr(member, "sparse", None)
        if pieces is None:
            _copy(source, descriptor, member.size)
            return
        self._claim(member.size, member.name)
        os.truncate(descriptor, member.size)
        for offset, size_bytes in pieces:
            os.lseek(descriptor, offset, os.SEEK_SET)
            _copy(source, descriptor, size_bytes)

    def _link_hard(self, member: tarfile.TarInfo, name: str, path: str) -> None:
        target = _checked_name(member.linkname)
        parent = posixpath.dirname(target)
        source = f"{self._root}/{target}"
        try:
            status = os.lstat(source) if parent in self._directories else None
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the archive links {name!r} to {target!r}, not a file of it")
        if target == name:
            return
        self._claim(status.st_size, name)
        self._make_way(name, path)
        os.link(source, path, follow_symlinks=False)

    def _claim(self, size_bytes: int, name: str) -> None:
        self._unbacked_bytes += size_bytes
        if self._unbacked_bytes > self._room_bytes:
            raise OSError(errno.ENOSPC, "the archive stands for more than the disk holds", name)

    def _make_directory(self, name: str) -> None:
        if name in self._directories:
            return
        parent = posixpath.dirname(name)
        self._make_directory(parent)
        if name in self._links:
            raise UsageError(f"the archive holds a path through the link {name!r}")
        try:
            os.mkdir(f"{self._root}/{name}", 0o755)
        except FileExistsError:
            raise UsageError(f"the archive has {name!r} both as a file and a directory") from None
        self._directories.add(name)

    def _make_way(self, name: str, path: str) -> None:
        if name in self._directories:
            raise UsageError(f"the archive has {name!r} both as a file and a directory")
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._links.discard(name)


class _Member(tarfile.TarInfo):
    """A member, read from its header at a third of the cost if it is a file like most: what makes
    no difference to unpacking is left out. Whatever is unusual, or wrong, tarfile judges."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == tarfile.BLOCKSIZE and buf[156:158] == _NO_LINK and not buf[345]:
            fields = [bytes(buf[field]).rstrip(b" \0") for field in _NUMBERS]
            if all(map(bytes.isdigit, fields)):
                with suppress(ValueError):  # an 8 or a 9
                    mode, size_bytes, mtime, checksum = (int(field, 8) for field in fields)
                    if sum(buf) - sum(buf[148:156]) + 8 * ord(" ") == checksum:
                        member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
                        member.mode, member.size, member.mtime = mode, size_bytes, mtime
                        return member
        return super().frombuf(buf, encoding, errors)


_NO_LINK = tarfile.REGTYPE + b"\0"
"""In a header, where the type lies and what it links to begins."""
_NUMBERS = (slice(100, 108), slice(124, 136), slice(136, 148), slice(148, 156))
"""In a header: mode, size, time of change, checksum (POSIX.1-1988 ustar)."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _copy(source: _Readable, descriptor: int, size_bytes: int) -> None:
    left = size_bytes
    while left > 0:
        chunk = memoryview(source.read(min(CHUNK_BYTES, left)))
        if not chunk:
            raise tarfile.ReadError("unexpected end of data")
        left -= len(chunk)
        while chunk:  # a short write means that the disk is full; the next one says so
            chunk = chunk[os.write(descriptor, chunk) :]


def _mode(mode: int) -> int:
    kept = mode & 0o755 | 0o600
    return kept if mode & 0o100 else kept & ~0o111


def _checked_name(name: str) -> str:
    """Normal, "" for the top. Raises UsageError."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise UsageError(f"the archive holds {name!r}: a path that leaves it")
    if name.count("/") > DEEPEST:
        raise UsageError(f"the archive holds {name[:60]!r}…: more than {DEEPEST} levels deep")
    normal = posixpath.normpath(name)
    return "" if normal == "." else normal


class _Forward(io.RawIOBase):
    """Any object with ``read(size)`` as a raw stream that can be skipped through: all of seeking
    that tarfile needs to read an archive. Its own stream mode costs half as much again."""

    def __init__(self, stream: _Readable) -> None:
        self._stream = stream
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + (self._position if whence == os.SEEK_CUR else 0)
        if whence == os.SEEK_END or target < self._position:
            raise io.UnsupportedOperation("the stream goes forward only")
        while self._position < target:
            chunk = self._stream.read(min(CHUNK_BYTES, target - self._position))
            if not chunk:
                break
            self._position += len(chunk)
        return self._position


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
