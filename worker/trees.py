"""Directory trees: remove one whatever its modes are, measure one, make one read-only."""

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEEPEST = 100
"""Directories in each other that are worked on at once."""


def remove_tree(path: Path) -> None:
    """Remove a file or a directory with all in it, also what its owner made unwritable.

    What vanishes meanwhile is fine. Raises OSError when something stays.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    _open_up(path)
    root = os.open(path, _DIRECTORY)
    try:
        while _empty(root, root, 0):
            pass
    finally:
        os.close(root)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _empty(place: int, root: int, depth: int) -> bool:
    """Remove all in a directory; whether something of it was put aside in ``root``.

    What is deeper than descriptors and the stack may reach is moved up, and goes later.
    """
    with os.scandir(place) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    is_unfinished = False
    for name, is_directory in found:
        with suppress(FileNotFoundError):
            if not is_directory:
                os.unlink(name, dir_fd=place)
                continue
            _open_up(name, place)
            if depth == DEEPEST:
                os.rename(name, uuid.uuid4().hex, src_dir_fd=place, dst_dir_fd=root)
                is_unfinished = True
                continue
            inside = os.open(name, _DIRECTORY, dir_fd=place)
            try:
                is_unfinished |= _empty(inside, root, depth + 1)
            finally:
                os.close(inside)
            os.rmdir(name, dir_fd=place)
    return is_unfinished


def _open_up(name: str | Path, place: int | None = None) -> None:
    """Let its owner change a directory. Only directories keep what is in them."""
    mode = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=place)


def make_readable(path: Path) -> None:
    """Let its owner read all that is in a directory, whatever modes it was given."""
    todo = [os.fspath(path)]
    while todo:
        current = todo.pop()
        with suppress(OSError):
            _open_up(current)
            with os.scandir(current) as entries:
                for entry in entries:
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        todo.append(entry.path)
                    elif stat.S_ISREG(mode) and not mode & stat.S_IRUSR:
                        os.chmod(entry.path, stat.S_IMODE(mode) | stat.S_IRUSR)


def measure_tree(path: Path) -> tuple[int, int]:
    """(bytes, files): sizes of all files in a directory, or of one file, links not followed.

    What vanishes meanwhile, or cannot be read, does not count.
    """
    size_bytes = files = 0
    todo = [os.fspath(path)]
    while todo:
        current = todo.pop()
        try:
            entries = os.scandir(current)
        except NotADirectoryError:
            return os.lstat(current).st_size, 1
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        size_bytes += entry.stat(follow_symlinks=False).st_size
                        files += 1
                except OSError:
                    continue
    return size_bytes, files


def make_read_only(path: Path) -> tuple[int, int]:
    """Take away every right to write: a reminder to runs, and a barrier to all but root.

    Returns what ``measure_tree`` does, in the same walk.
    """
    size_bytes = files = 0
    todo = [os.fspath(path)]
    while todo:
        current = todo.pop()
        status = os.lstat(current)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            with os.scandir(current) as entries:
                todo += [entry.path for entry in entries]
            mode |= stat.S_IRUSR | stat.S_IXUSR
        else:
            size_bytes += status.st_size
            files += 1
            if stat.S_ISLNK(mode) or not mode & 0o222:
                continue
        os.chmod(current, stat.S_IMODE(mode) & ~0o222)
    return size_bytes, files
