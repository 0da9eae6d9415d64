"""Runs on a file system that the server shares: it says where everything lies (`location`), and
nothing is downloaded or uploaded.

The server makes the directory of a run, and counts and keeps what is in it at the end.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundles.archive import is_inside
from worker.runtimes.base import CannotStart
from worker.stages import Event, Uploaded
from worker.trees import remove_tree

PATIENCE_SECONDS = 60.0
"""How long a directory may take to show: so long NFS clients believe that it is not there."""
_HINT = "is the server's storage mounted here, at the same path?"


class NotThere(CannotStart):
    """What the server says is there is not, or not yet."""


def directory_of(bundle: Mapping[str, Any]) -> Path | None:
    """Where a run is to write; None when that is the worker's own business."""
    location = bundle.get("location")
    return Path(location) if location else None


def without_locations(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """For a worker that shares nothing, whatever the server says."""
    dependencies = [{**d, "location": None} for d in bundle.get("dependencies") or ()]
    return {**bundle, "location": None, "dependencies": dependencies}


def find(bundle: Mapping[str, Any]) -> dict[tuple[str, str], Path]:
    """The contents of the dependencies that are where the server says, by (uuid, path).

    Raises NotThere, also for the run's own directory; CannotStart for a path that leaves its
    bundle.
    """
    directory = directory_of(bundle)
    if directory is None or not directory.is_absolute() or not directory.is_dir():
        raise NotThere(f"The directory {directory} of this bundle is not there: {_HINT}")
    found = {}
    for dependency in bundle.get("dependencies") or ():
        uuid, path = dependency["parent_uuid"], dependency.get("parent_path") or ""
        if not dependency.get("location"):
            continue
        root = Path(dependency["location"])
        if not os.path.lexists(root):
            raise NotThere(f"The dependency {uuid} is not at {root}: {_HINT}")
        content = root / path if path else root
        if not content.exists():
            raise CannotStart(
                f"Cannot fetch dependency {uuid}/{path}: there is nothing at {path!r}"
            )
        if not is_inside(root, content):
            raise CannotStart(f"Cannot fetch dependency {uuid}/{path}: it leads out of the bundle")
        found[(uuid, path)] = content
    return found


def places(bundle: Mapping[str, Any]) -> list[Path]:
    """Where the dependencies lie."""
    return [Path(d["location"]) for d in bundle.get("dependencies") or () if d.get("location")]


def leave(directory: Path, exclude: Sequence[str]) -> Event:
    """Keep the results where they are, without what is not wanted (as `bundles.archive.pack`)."""
    todo = [""] if exclude else []
    while todo:
        path = todo.pop()
        with os.scandir(directory / path) as entries:
            found = list(entries)
        for entry in found:
            inner = f"{path}/{entry.name}" if path else entry.name
            if any(fnmatch.fnmatchcase(name, p) for p in exclude for name in (entry.name, inner)):
                remove_tree(Path(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                todo.append(inner)
    return Uploaded()
