"""Answers to `read` messages: what lies in a run's directory, and never what lies outside it.

Links that lead out (to dependencies, or anywhere else) are refused. For threads: files are large.
"""

from __future__ import annotations

import gzip
import os
import posixpath
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bundles.archive import DEEPEST, check_path, is_inside, pack, readable_name
from bundles.errors import BundlesError, NotFound, UsageError

CHUNK_BYTES = 256 * 1024
COMPRESSION_LEVEL = 1
_GZIP_WINDOW_BITS = 31


@dataclass(frozen=True, slots=True)
class Answer:
    """Either a document (``reply``), or compressed bytes (``reply_data``)."""

    document: Mapping[str, Any] | None = None
    content: bytes | Iterator[bytes] = b""


def answer(directory: Path, uuid: str, path: str, arguments: Mapping[str, Any]) -> Answer:
    """Do what the `read_args` of a message say. Errors become documents with an `error_code`."""
    try:
        return _answer(directory, uuid, path, arguments)
    except BundlesError as error:
        return refusal(error.status, str(error))
    except (KeyError, TypeError, ValueError) as error:
        return refusal(400, f"the read arguments make no sense: {error!r}")
    except OSError as error:
        status = 404 if isinstance(error, FileNotFoundError) else 500
        return refusal(status, f"{path or uuid} cannot be read: {error.strerror}")


def refusal(status: int, sentence: str) -> Answer:
    """The answer that is an error."""
    return Answer(document={"error_code": status, "error_message": readable_name(sentence)})


def _answer(directory: Path, uuid: str, path: str, arguments: Mapping[str, Any]) -> Answer:
    kind = arguments["type"]
    target = _target(directory, path)
    if kind == "get_target_info":
        depth = min(int(arguments.get("depth") or 0), DEEPEST)
        name = posixpath.basename(path.rstrip("/")) or uuid
        with _opened(directory, target.parent, os.O_DIRECTORY) as place:
            info = _describe(place, target.name, name, depth)
        info["resolved_target"] = {"bundle_uuid": uuid, "subpath": path}
        return Answer(document={"target_info": info})
    if kind == "stream_directory":
        if not target.is_dir():
            raise UsageError(f"{path or uuid} is no directory")
        return Answer(content=_packed(directory, target))
    if kind == "stream_file":
        return Answer(content=_compressed(directory, target))
    if kind == "read_file_section":
        first, length = _number(arguments, "offset"), _number(arguments, "length")
        return Answer(content=_compressed(directory, target, first, length))
    if kind == "summarize_file":
        with _open(directory, target) as file:
            text = summarize(
                file,
                head_lines=_number(arguments, "num_head_lines"),
                tail_lines=_number(arguments, "num_tail_lines"),
                line_bytes=_number(arguments, "max_line_length"),
                truncation=str(arguments.get("truncation_text") or ""),
            )
        return Answer(content=gzip.compress(text, COMPRESSION_LEVEL))
    raise UsageError(f"there is no way {kind!r} to read")


def _number(arguments: Mapping[str, Any], name: str) -> int:
    number = int(arguments[name])
    if number < 0:
        raise UsageError(f"{name} is {number}: it must be 0 or more")
    return number


def _target(directory: Path, path: str) -> Path:
    target = directory / check_path(path)
    if not os.path.lexists(target):
        raise NotFound(f"there is no {path!r} in the run's directory")
    if not is_inside(directory, target):
        raise NotFound(f"{path!r} leads out of the run's directory")
    return Path(os.path.realpath(target))


@contextmanager
def _opened(directory: Path, target: Path, flags: int = 0) -> Iterator[int]:
    # What was looked at may be something else by now: what counts is what was opened.
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(target, flags)
    try:
        opened = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
        root = os.path.realpath(directory)
        # Where the run's directory itself lies is not the run's to change.
        if target != Path(root).parent and os.path.commonpath([root, opened]) != root:
            raise NotFound(f"{target.name} leads out of the run's directory")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _open(directory: Path, target: Path) -> Iterator[BinaryIO]:
    with _opened(directory, target) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{target.name} is no file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file


def _packed(directory: Path, target: Path) -> Iterator[bytes]:
    opening = _opened(directory, target, os.O_DIRECTORY)
    descriptor = opening.__enter__()

    def chunks() -> Iterator[bytes]:
        try:
            yield from pack(Path(f"/proc/self/fd/{descriptor}"))
        finally:
            opening.__exit__(None, None, None)

    return chunks()


def _compressed(
    directory: Path, target: Path, first: int = 0, length: int = sys.maxsize
) -> bytes | Iterator[bytes]:
    """What is in one chunk of a file at once, what is in more as a stream."""
    # Opened here, not when the first chunk is asked for: then it is too late to refuse.
    opening = _open(directory, target)
    file = opening.__enter__()

    def chunks() -> Iterator[bytes]:
        try:
            packer = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
            left = length
            while chunk := file.read(min(CHUNK_BYTES, left)):
                left -= len(chunk)
                yield packer.compress(chunk)
            yield packer.flush()
        finally:
            opening.__exit__(None, None, None)

    try:
        file.seek(first)
    except BaseException:
        opening.__exit__(None, None, None)
        raise
    return b"".join(chunks()) if length <= CHUNK_BYTES else chunks()


def _describe(place: int, entry: str, name: str, depth: int) -> dict[str, Any]:
    status = os.stat(entry, dir_fd=place, follow_symlinks=False)
    info: dict[str, Any] = {
        "name": readable_name(name),
        "size": status.st_size,
        "perm": stat.S_IMODE(status.st_mode),
    }
    if stat.S_ISLNK(status.st_mode):
        link = readable_name(os.readlink(entry, dir_fd=place))
        return {**info, "type": "link", "link": link}
    if not stat.S_ISDIR(status.st_mode):
        return {**info, "type": "file"}
    info["type"] = "directory"
    if depth > 0:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        inside = os.open(entry, flags, dir_fd=place)
        try:
            info["contents"] = list(_described(inside, depth - 1))
        finally:
            os.close(inside)
    return info


def _described(place: int, depth: int) -> Iterator[dict[str, Any]]:
    for name in sorted(os.listdir(place)):
        with suppress(FileNotFoundError, NotADirectoryError):  # the run has removed it meanwhile
            yield _describe(place, name, name, depth)


def summarize(
    file: BinaryIO, *, head_lines: int, tail_lines: int, line_bytes: int, truncation: str
) -> bytes:
    """The first and the last lines of a file, with ``truncation`` between them if any is left out.

    Lines count for at most ``line_bytes`` each, so that not more is read (CodaLab's
    `summarize_file`).
    """
    if head_lines + tail_lines == 0:
        raise UsageError("num_head_lines and num_tail_lines are both 0: one must be more")
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size_bytes <= (head_lines + tail_lines) * line_bytes:
        lines = file.readlines()
        if len(lines) <= head_lines + tail_lines:
            return b"".join(_ended(lines))
        head, tail = lines[:head_lines], lines[len(lines) - tail_lines :]
    else:
        head = file.read(head_lines * line_bytes).splitlines(keepends=True)[:head_lines]
        if head and not head[-1].endswith(b"\n") and len(head) > 1:
            head.pop()  # only whole lines
        tail = []
        if tail_lines:
            # One byte more, so that the first line is whole if it begins just there.
            file.seek(max(0, size_bytes - tail_lines * line_bytes - 1))
            tail = file.read().splitlines(keepends=True)[1:][-tail_lines:]
    between = [truncation.encode()] if head_lines and tail_lines else []
    return b"".join([*_ended(head), *between, *_ended(tail)])


def _ended(lines: list[bytes]) -> list[bytes]:
    if lines and not lines[-1].endswith(b"\n"):
        return [*lines[:-1], lines[-1] + b"\n"]
    return lines
