"""The main thread's event loop: posted calls, file descriptors, signals and timers wake it.

It polls nothing: without an event it sleeps until the next timer. Not asyncio, since everything
that takes time (transfers, scans, and the SDKs of container runtimes) is synchronous and happens
in threads, which post what came of it.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import queue
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

Callback = Callable[[], None]


@dataclass(order=True)
class Timer:
    """A call to come at ``when`` (the loop's clock); ``cancel`` may be called any number of
    times."""

    when: float
    number: int
    callback: Callback | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class Loop:
    """Everything but ``post`` and ``stop`` is for the thread that calls ``run``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._posted: collections.deque[Callback] = collections.deque()
        self._timers: list[Timer] = []
        self._numbers = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._waking, self._woken = socket.socketpair()
        for end in (self._waking, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._hear)

    def post(self, callback: Callback) -> None:
        """Call ``callback`` in the loop's thread, soon. From any thread."""
        self._posted.append(callback)
        self._wake()

    def stop(self) -> None:
        """End ``run`` once the callback under way has ended. From any thread."""
        self._stopped = True
        self._wake()

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback`` that many seconds from now, unless the timer is cancelled."""
        timer = Timer(self.clock() + seconds, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call ``callback`` whenever the descriptor is readable, until ``unwatch``."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call ``callback`` in the loop when the signal comes. From the main thread only."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)

    def run(self, failed: Callable[[Exception], None]) -> None:
        """Serve events until ``stop``. What a callback raises goes to ``failed``."""
        while not self._stopped:
            for callback in self._due():
                if self._stopped:
                    return
                try:
                    callback()
                except Exception as error:
                    failed(error)

    def close(self) -> None:
        """Give the descriptors back; signals get their default action again."""
        if self._signals:
            signal.set_wakeup_fd(-1)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)
            self._signals.clear()
        self._selector.close()
        self._waking.close()
        self._woken.close()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: nobody is left to wake
            self._waking.send(b"\0")

    def _due(self) -> list[Callback]:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        timeout: float | None = None
        if self._posted:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0].when - self.clock())
        due: list[Callback] = [key.data for key, _ in self._selector.select(timeout)]
        for _ in range(len(self._posted)):
            due.append(self._posted.popleft())
        now = self.clock()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            due.append(timer.fire)
        return due

    def _hear(self) -> None:
        try:
            heard = self._woken.recv(4096)
        except BlockingIOError:
            return
        for number in sorted(set(heard) - {0}):
            callback = self._signals.get(number)
            if callback is not None:
                callback()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a job in a thread came to: its value, or what it raised."""

    result: T | None = None
    error: Exception | None = None

    @property
    def value(self) -> T:
        """The value; raises what the job raised."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Pool:
    """Up to ``size`` threads for jobs that take time. They never keep the process from ending."""

    def __init__(self, loop: Loop, name: str, size: int) -> None:
        self._loop = loop
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callback] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """Do ``job`` in a thread, then call ``done`` with its outcome in the loop."""

        def whole() -> None:
            try:
                outcome = Outcome(result=job())
            except Exception as error:
                outcome = Outcome(error=error)
            self._loop.post(lambda: done(outcome))

        with self._lock:
            is_new = self._idle == 0 and self._threads < self._size
            if is_new:
                self._threads += 1
            elif self._idle:
                self._idle -= 1
        self._jobs.put(whole)
        if is_new:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            with self._lock:
                self._idle += 1
