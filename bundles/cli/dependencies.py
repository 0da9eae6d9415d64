"""What `bundles run` is told to put beside a command: `KEY:UUID[/PATH]`. Asks no server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bundles.archive import check_path
from bundles.cli.names import split_target
from bundles.errors import UsageError


@dataclass(frozen=True, slots=True)
class Wish:
    """One dependency as it was typed; ``key`` is `""` when the bundle's name is to be it."""

    key: str
    bundle: str
    path: str


def parse_wish(text: str) -> Wish:
    """`KEY:UUID[/PATH]`, `:UUID[/PATH]` or `UUID[/PATH]`.

    Without a key, the last part of the path is it. Raises UsageError for a key or path that
    leads out of where it belongs.
    """
    key, colon, target = text.partition(":")
    if not colon:
        key, target = "", text
    bundle, path = split_target(target)
    if not bundle:
        raise UsageError(f"the dependency {text!r} names no bundle: write KEY:UUID[/PATH]")
    return Wish(parse_key(key) if key else path.rpartition("/")[2], bundle, path)


def parse_key(key: str) -> str:
    """A relative path under which a run sees a dependency. Raises UsageError for any other."""
    try:
        check_path(key)
    except UsageError:
        raise UsageError(
            f"the key {key!r} leads out of the run's directory: give a relative path without .."
        ) from None
    normal = key.rstrip("/")
    if not normal or "." in normal.split("/") or "" in normal.split("/"):
        raise UsageError(f"the key {key!r} is no name for a dependency: write one like data")
    return normal


def check_keys(keys: Iterable[str]) -> None:
    """Raises UsageError if two dependencies would take the same place."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UsageError(f"two dependencies have the key {key!r}: give each its own")
        for other in seen:
            if key.startswith(other + "/") or other.startswith(key + "/"):
                raise UsageError(f"the keys {other!r} and {key!r} are one inside the other")
        seen.add(key)
