"""What was seen and decided, a line of JSON each: one file a pool, rotated by size.

A tick that saw and decided what the one before it did is not written again, except once in
HEARTBEAT_SECONDS. Holds no secret: a Snapshot and a Decision have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1
"""Of a line, and in it. Lines of before there was one have none, and no ``config``."""
MAX_BYTES = 4 * 1024**2
KEPT_FILES = 3
HEARTBEAT_SECONDS = 300.0
_TAIL_BYTES = 64 * 1024
_LONGER = 8


class Journal:
    """The journal of one pool, written by its manager alone.

    Every line is `{"format", "time", "pool", "config", "snapshot", "decision", "results",
    "repeats"}`: all that the decision was made of. ``repeats`` is how many ticks alike went
    unwritten before this one.
    """

    def __init__(self, path: Path, pool: str, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._pool = pool
        self._max_bytes = max_bytes
        self._last: str | None = None
        self._last_time = 0.0
        self._repeats = 0

    def write(
        self,
        now: float,
        snapshot: Mapping[str, Any] | None,
        decision: Mapping[str, Any] | None,
        results: Sequence[Mapping[str, Any]] = (),
        *,
        config: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> bool:
        """Write a tick; False when it was a repetition and left out. Raises OSError.

        A tick whose observation failed has no snapshot and no decision, but an ``error``.
        """
        launch = decision and decision["launch"]
        same = json.dumps([config, snapshot, launch, error], sort_keys=True)
        if not results and same == self._last and 0 <= now - self._last_time < HEARTBEAT_SECONDS:
            self._repeats += 1
            return False
        line: dict[str, Any] = {
            "format": FORMAT,
            "time": round(now, 3),
            "pool": self._pool,
            "config": config,
            "snapshot": snapshot,
            "decision": decision,
            "results": list(results),
            "repeats": self._repeats,
        }
        if error:
            line["error"] = error
        self._append(json.dumps(line) + "\n")
        self._last, self._last_time, self._repeats = same, now, 0
        return True

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if self._path.stat().st_size + len(line) > self._max_bytes:
                self._rotate()
        except FileNotFoundError:
            pass
        with self._path.open("a+b") as file:
            if self._last is None and file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a manager that was killed left half a line
                    line = "\n" + line
            file.write(line.encode())

    def _rotate(self) -> None:
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))


def last_entry(path: Path) -> dict[str, Any] | None:
    """The newest whole line of a journal; None when there is none. Raises OSError."""
    for candidate in (path, path.with_name(f"{path.name}.1")):
        tail_bytes, size = _TAIL_BYTES, _TAIL_BYTES + 1
        while size > tail_bytes // _LONGER:  # a line of a large pool may be longer than the tail
            try:
                with candidate.open("rb") as file:
                    size = file.seek(0, 2)
                    file.seek(max(0, size - tail_bytes))
                    lines = file.read().split(b"\n")
            except FileNotFoundError:
                break
            # The first piece may be the end of a line, the last one the beginning of one.
            entry = _last_object(lines[1:] if size > tail_bytes else lines)
            if entry is not None:
                return entry
            tail_bytes *= _LONGER
    return None


def _last_object(lines: Sequence[bytes]) -> dict[str, Any] | None:
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            return entry
    return None


def entries_after(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines written after ``offset`` bytes, and the offset after them.

    For whoever follows a journal from its beginning; a rotation begins it anew.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset if offset <= size else 0)
            start = file.tell()
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 0
    whole = [line for line in lines if line.endswith(b"\n")]
    return [json.loads(line) for line in whole], start + sum(map(len, whole))
