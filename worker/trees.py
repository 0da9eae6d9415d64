"""Directory trees: remove one whatever its modes are, measure one, make one read-only."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


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
    shutil.rmtree(path, onerror=_open_up)


def _open_up(function: Callable[..., Any], path: str, _: Any) -> None:
    # Only directories keep what is in them from being removed.
    parent = os.path.dirname(path)
    for directory in (parent, path):
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(directory).st_mode):
                os.chmod(directory, 0o700)
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


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


def make_read_only(path: Path) -> None:
    """Take away every right to write: a reminder to runs, and a barrier to all but root."""
    todo = [os.fspath(path)]
    while todo:
        current = todo.pop()
        mode = os.lstat(current).st_mode
        if stat.S_ISLNK(mode):
            continue
        if stat.S_ISDIR(mode):
            with os.scandir(current) as entries:
                todo += [entry.path for entry in entries]
            mode |= stat.S_IRUSR | stat.S_IXUSR
        os.chmod(current, stat.S_IMODE(mode) & ~0o222)
