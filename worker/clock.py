"""Epoch seconds that go on evenly when the system's clock is set: a run's time limit means time.

Neither the clock of a lease (the server's) nor that of a timer (worker.loop's).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import orjson

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
JUMP_SECONDS = 1.0
"""Differences below are the slewing of NTP: not worth a write."""


class SteadyClock:
    """Called, it says the time: as the system's clock had it when it was last ``settle``d, and the
    monotonic time since then. A worker that is started again goes on with the same reckoning,
    unless the machine was restarted: the monotonic clock has begun anew by then.
    """

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot_id: Callable[[], str] = lambda: _read_boot_id(),
    ) -> None:
        """``path``: where the reckoning is kept."""
        self._path = path
        self._wall = wall
        self._monotonic = monotonic
        self._boot_id = boot_id()
        self._offset = wall() - monotonic()
        try:
            document = orjson.loads(path.read_bytes())
            if self._boot_id and document["boot_id"] == self._boot_id:
                self._offset = float(document["offset_seconds"])
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the first start, or the machine lost power: the present reckoning will do
        self._write()

    def __call__(self) -> float:
        return self._offset + self._monotonic()

    def settle(self) -> None:
        """Take the system's time anew. For moments at which no run is being timed."""
        offset = self._wall() - self._monotonic()
        if abs(offset - self._offset) > JUMP_SECONDS:
            self._offset = offset
            self._write()

    def _write(self) -> None:
        document = {"boot_id": self._boot_id, "offset_seconds": self._offset}
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_bytes(orjson.dumps(document))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("the time cannot be kept for the next start: %s", error)


def _read_boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
