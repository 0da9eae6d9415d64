"""Reads journals back: every line as values, oldest first. Not for writing them: journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundles.errors import UsageError
from manager.journal import FORMAT, KEPT_FILES
from manager.policy import Decision, PoolConfig
from manager.snapshot import Snapshot

LONGEST_LINE_BYTES = 64 * 1024**2
"""Ten times the tick of 10,000 jobs: what is longer comes from elsewhere, and may have no end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``time`` in seconds since the epoch.

    ``decision`` is None when the observation failed, and ``error`` says why. ``config`` and
    ``snapshot`` are also None in a line of an earlier program that wrote them otherwise or not at
    all. ``repeats``: ticks like the one of the line before that went unwritten between the two.
    """

    time: float
    pool: str
    decision: Decision | None
    snapshot: Snapshot | None = None
    config: PoolConfig | None = None
    results: tuple[Mapping[str, Any], ...] = ()
    repeats: int = 0
    error: str = ""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def launched(self) -> int:
        """How many launches the backend accepted."""
        return sum("launch" in result and "job" in result for result in self.results)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Entry:
        """Raises UsageError for a line of a later program, and KeyError, TypeError or ValueError
        for what is no line of a journal."""
        if document.get("format", 0) > FORMAT:
            raise UsageError(
                f"the journal is of format {document['format']} and this program knows up to "
                f"{FORMAT}: read it with the program that wrote it, or a later one"
            )
        decision = document["decision"]
        return cls(
            time=float(document["time"]),
            pool=document["pool"],
            decision=Decision.from_document({"end": (), **decision}) if decision else None,
            snapshot=_or_none(Snapshot, document["snapshot"]),
            config=_or_none(PoolConfig, document.get("config")),
            results=tuple(document.get("results") or ()),
            repeats=document.get("repeats", 0),
            error=document.get("error", ""),
            document=document,
        )


def _or_none(kind: Any, document: Mapping[str, Any] | None) -> Any:
    """The value, None for none, or for one of before it had its present form."""
    if document is None:
        return None
    try:
        return kind.from_document(document)
    except (KeyError, TypeError, ValueError):
        return None


def read_journal(path: Path) -> Iterator[Entry]:
    """Every line of a journal and of those that were rotated away from it, oldest first.

    What is no whole line, as a manager that was killed leaves, is passed over. No file is no line.
    Raises OSError and UsageError.
    """
    older = [path.with_name(f"{path.name}.{number}") for number in range(KEPT_FILES, 0, -1)]
    for part in (*older, path):
        try:
            file = part.open("rb")
        except FileNotFoundError:
            continue
        with file:
            while line := file.readline(LONGEST_LINE_BYTES):
                if len(line) == LONGEST_LINE_BYTES:
                    raise UsageError(f"{part} is no journal: a line of it does not end")
                try:
                    document = json.loads(line)
                    entry = Entry.from_document(document)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                yield entry
