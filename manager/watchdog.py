"""Ends a manager that is stuck, so that whoever started it starts it anew; its workers go on.

A stuck manager is one in which the same step has not come back for three ticks' time, although
every call has a time-out. What it was about to do is in the ledger: the next manager finishes it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

from manager.pulse import Pulse
from manager.systemd import ALIVE, Systemd

LOOK_SECONDS = 5.0
LAST_WORDS_SECONDS = 5.0
STUCK_EXIT = 1

log = logging.getLogger("manager")


class Watchdog(threading.Thread):
    """Looks at ``pulse`` every few seconds and tells systemd that all is well, or ends the
    process by ``end``. Watches the thread that made it. A context: it watches inside."""

    def __init__(
        self,
        pulse: Pulse,
        systemd: Systemd,
        *,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._pulse = pulse
        self._systemd = systemd
        self._end = end
        self._clock = clock
        self._watched = threading.get_ident()
        self._closing = threading.Event()
        asked = systemd.watchdog_seconds
        # Twice in the time that systemd allows, as sd_watchdog_enabled(3) recommends.
        self.look_seconds = LOOK_SECONDS if asked is None else min(LOOK_SECONDS, asked / 2)

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()

    def run(self) -> None:
        last = self._clock()
        while not self._closing.wait(self.look_seconds):
            now = self._clock()
            self.look(now - last)
            last = now

    def look(self, since_seconds: float) -> None:
        """One look, so long after the one before: more than planned, and everything stood still."""
        late_seconds = since_seconds - self.look_seconds
        if late_seconds > self.look_seconds:
            self._pulse.forgive(late_seconds)
        if not self._pulse.is_stuck:
            self._systemd.tell(ALIVE)
            return
        # The log may be what the other thread is stuck in: it is not waited for.
        words = threading.Thread(target=self._say_why, daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)
        self._end(STUCK_EXIT)

    def _say_why(self) -> None:
        log.critical(
            "stuck for %.0f s in %s: this process ends, the workers go on; start it again",
            self._pulse.overdue_seconds,
            _place(self._watched),
        )


@contextmanager
def at_most(seconds: float, *, end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """What is done in here takes no longer: the process is ended in the midst of it."""

    def give_up() -> None:
        log.critical("not done within %.0f s: this process ends, workers may be left", seconds)
        end(STUCK_EXIT)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _place(thread: int) -> str:
    """Where a thread is: the innermost three calls, outermost first."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    calls = traceback.extract_stack(frame)[-3:]
    return " > ".join(
        f"{call.name} ({PurePath(call.filename).name}:{call.lineno})" for call in calls
    )
