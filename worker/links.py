"""Dependencies in a run's directory: links to the cached contents, made before and taken out after.

A child path may be nested (`a/b`), lie within another's (`a` and `a/b`), or be `.`, which puts
the contents of a directory beside the command. Where two want the same name the more exact one,
that is the longer path, wins.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from bundles.archive import check_path, is_inside

OUTPUTS = ("stdout", "stderr")


def place_links(
    directory: Path, contents: Mapping[str, Path], shown: Mapping[str, Path] | None = None
) -> None:
    """Link each child path in ``directory`` to its contents; to where they are ``shown`` to the
    run, if that is elsewhere.

    Raises UsageError for a path that leaves the directory, OSError when a link cannot be made.
    """
    paths = {posixpath.normpath(check_path(path) or "."): path for path in contents}
    for path in sorted(paths, key=_depth, reverse=True):
        target = directory if path == "." else directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        content = contents[paths[path]]
        _place(target, content, (shown or contents)[paths[path]])
    for name in OUTPUTS:
        # The command's own go there; through a link they would overwrite the dependency's.
        if (directory / name).is_symlink():
            (directory / name).unlink()


def _depth(path: str) -> int:
    return 0 if path == "." else path.count("/") + 1


def _place(target: Path, content: Path, shown: Path) -> None:
    if not os.path.lexists(target):
        target.symlink_to(shown)
        return
    if target.is_symlink() or not target.is_dir() or not content.is_dir():
        return
    for name in os.listdir(content):
        _place(target / name, content / name, shown / name)


def remove_links(directory: Path, child_paths: Iterable[str], *places: Path) -> None:
    """Take out every link to one of the ``places`` or into it, and the directories that were made
    for links alone."""
    prefixes = tuple(f"{place}/" for place in places)
    todo = [os.fspath(directory)]
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:
            continue
        for entry in entries:
            with suppress(OSError):
                if entry.is_symlink():
                    if f"{os.readlink(entry.path)}/".startswith(prefixes):
                        os.unlink(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    for path in sorted(child_paths, key=_depth, reverse=True):
        parent = posixpath.normpath(path)
        while parent not in ("", ".", "/"):
            if is_inside(directory, directory / posixpath.dirname(parent)):
                with suppress(OSError):  # it is not empty, so it is the run's now
                    os.rmdir(directory / parent)
            parent = posixpath.dirname(parent)
