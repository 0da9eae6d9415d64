"""In which line of a TOML file each key stands; tomllib does not tell (nor does tomlkit)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]
"""Of keys and positions in arrays: ("pools", 1, "max-workers")."""


class Positions:
    """The lines of a text that tomllib has read as a whole, and that is known to be TOML so."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        lengths: dict[Path, int] = {}
        table: Path = ()
        for line, statement, document in _statements(text):
            if statement.lstrip().startswith("["):
                table = _header(document, lengths)
                self._note(table, line)
            else:
                for path in _paths(document):
                    self._note(table + path, line)

    def _note(self, path: Path, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def line(self, path: Sequence[str | int]) -> int:
        """The line of a key, of what it stands in when there is no such key, else the first."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(tuple(path[:length]))
            if line is not None:
                return line
        return 1


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Each statement's first line, text and content: as many lines as tomllib needs to read it."""
    pending = ""
    first = 0
    for number, line in enumerate(text.split("\n"), 1):
        first = first if pending else number
        pending += line + "\n"
        try:
            document = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        yield first, pending, document
        pending = ""


def _header(document: Mapping[str, Any], lengths: dict[Path, int]) -> Path:
    """The path of `[a.b]` or `[[a.b]]`, read by itself; counts the tables of each array."""
    path: Path = ()
    value: Any = document
    while isinstance(value, Mapping) and value:
        [(key, value)] = value.items()
        path = (*path, key)
        if isinstance(value, list):
            lengths[path] = lengths.get(path, 0) + 1
            value = value[0]
        if path in lengths:
            path = (*path, lengths[path] - 1)
    return path


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (key,)
            yield from ((key, *path) for path in _paths(inner))
