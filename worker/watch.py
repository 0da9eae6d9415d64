"""Watches what runs use, as often as it is worth: time exactly, memory every second, disk less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from worker.held import Held
from worker.limits import disk_exceeded, memory_exceeded, time_exceeded
from worker.loop import Loop, Outcome, Pool, Timer
from worker.runtimes.base import Runtime
from worker.trees import measure_tree

FIRST_MEASURE_SECONDS = 0.25
MEASURE_SECONDS = 1.0
MEASURE_SHARE = 20
"""Of the time, at most one part in so many goes into measuring."""
FIRST_DISK_SECONDS = 0.5
DISK_SECONDS = 1.0
UNLIMITED_DISK_SECONDS = 5.0
DISK_SHARE = 10

Exceeded = Callable[[Held, str], None]
"""Called with the sentence for the limit that a run passed."""


class Watch:
    """For the loop's thread. Sleeps while nothing runs."""

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        pool: Pool,
        exceeded: Exceeded,
        *,
        now: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._runtime = runtime
        self._pool = pool
        self._exceeded = exceeded
        self._now = now
        self._watched: dict[str, Held] = {}
        self._timer: Timer | None = None

    def begin(self, held: Held) -> None:
        """The run's command runs; it is watched until it does no longer."""
        limit = held.run.resources.time_seconds
        if limit > 0:
            self._check_time_later(held, held.started + limit - self._now())
        self._measure_disk_later(held, FIRST_DISK_SECONDS)
        self._watched[held.run.key] = held
        if self._timer is None:
            self._timer = self._loop.call_later(FIRST_MEASURE_SECONDS, self._measure)

    def end(self, held: Held) -> None:
        """The run's command has ended."""
        self._watched.pop(held.run.key, None)

    def _check_time_later(self, held: Held, seconds: float) -> None:
        callback = partial(self._check_time, held)
        held.timers.append(self._loop.call_later(max(0.01, seconds), callback))

    def _check_time(self, held: Held) -> None:
        if not held.is_running:
            return
        elapsed = self._now() - held.started
        sentence = time_exceeded(held.run.resources, elapsed)
        if sentence is not None:
            self._exceeded(held, sentence)
        else:  # it was a moment early
            self._check_time_later(held, held.run.resources.time_seconds - elapsed)

    def _measure(self) -> None:
        self._timer = None
        if not self._watched:
            return
        before = self._loop.clock()
        usages = self._runtime.measure()
        for key, held in list(self._watched.items()):
            usage = usages.get(key)
            if usage is None or not held.is_running:
                continue
            held.usage = usage
            if memory_exceeded(held.run.resources, usage.memory_bytes) and not held.run.stopping:
                memory_bytes = self._runtime.confirm_memory(key)
                held.usage = replace(usage, memory_bytes=memory_bytes)
                sentence = memory_exceeded(held.run.resources, memory_bytes)
                if sentence is not None:
                    held.is_forced = True
                    self._exceeded(held, sentence)
        cost = self._loop.clock() - before
        pause = max(MEASURE_SECONDS, MEASURE_SHARE * cost)
        self._timer = self._loop.call_later(pause, self._measure)

    def _measure_disk_later(self, held: Held, seconds: float) -> None:
        held.timers = [timer for timer in held.timers if timer.callback is not None]
        held.timers.append(self._loop.call_later(seconds, partial(self._measure_disk, held)))

    def _measure_disk(self, held: Held) -> None:
        before = self._loop.clock()

        def done(outcome: Outcome[tuple[int, int]]) -> None:
            if not held.is_running:
                return
            held.disk_bytes, _ = outcome.value
            sentence = disk_exceeded(held.run.resources, held.disk_bytes)
            if sentence is not None:
                self._exceeded(held, sentence)
            least = DISK_SECONDS if held.run.resources.disk_bytes else UNLIMITED_DISK_SECONDS
            cost = self._loop.clock() - before
            self._measure_disk_later(held, max(least, DISK_SHARE * cost))

        if held.is_running:
            self._pool.submit(partial(measure_tree, held.directory), done)
