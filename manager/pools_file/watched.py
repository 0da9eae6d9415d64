"""Notices that the pools file has changed, and what it says then. A file that cannot be used is
said once, and changes nothing.

Reading a few kilobytes costs less than to be wrong about time stamps: the content is what counts,
so that editors, atomic replacement and the links of a Kubernetes ConfigMap all do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.pools_file.reading import BadPoolsFile, PoolsFile, parse, read_text

log = logging.getLogger("manager")


@dataclass(frozen=True, slots=True)
class _Content:
    """What a look found: a text that others may read or not, or why it could not be read."""

    text: str = ""
    is_private: bool = True
    problems: tuple[str, ...] = ()


class WatchedFile:
    """``used``: what the pools are kept by. ``problems``: of the file as it is now; none when it
    is the one in use."""

    def __init__(self, used: PoolsFile, said: Mapping[str, Any]) -> None:
        self.used = used
        self.problems: tuple[str, ...] = ()
        self._said = said
        self._path: Path = used.path
        self._seen = self._judged = _read(self._path)
        if self._judged.text != used.text:  # it was changed since: the first look finds it again
            self._judged = _Content(used.text)

    def look(self, *, asked: bool = False) -> PoolsFile | None:
        """The file when it is another than the one in use, and can be used; else None.

        Two looks have to find the same, unless somebody ``asked``: one alone may come while the
        file is being written.
        """
        content = _read(self._path)
        is_settled = content == self._seen or asked
        self._seen = content
        if not is_settled or (content == self._judged and not asked):
            return None
        self._judged = content
        if content.problems:
            self.refuse(content.problems)
            return None
        if content.text == self.used.text:
            self.problems = ()
            log.info("%s is what the pools are kept by", self._path)
            return None
        try:
            return parse(content.text, self._path, self._said, is_private=content.is_private)
        except BadPoolsFile as error:
            self.refuse(error.problems)
            return None

    def refuse(self, problems: Sequence[str]) -> None:
        """The file as it is now cannot be used; the one in use stays."""
        self.problems = tuple(problems)
        for problem in problems:
            log.error("%s", problem)
        log.error("%s cannot be used as it is now: the pools are kept as before", self._path)

    def accept(self, file: PoolsFile) -> None:
        self.used = file
        self.problems = ()


def _read(path: Path) -> _Content:
    try:
        text, is_private = read_text(path)
    except BadPoolsFile as error:
        return _Content(problems=error.problems)
    return _Content(text, is_private)
