"""What wakes and ends a manager: changes at the server, and signals. Nothing here decides.

A pipe rather than threading.Event: a signal handler may ring while the main thread is inside any
wait, and an Event's lock, taken twice by one thread, would hang it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this process to end while it waited for something outside."""


class Alarm:
    """Rings from any thread or signal handler; waited for by the main thread alone."""

    def __init__(self) -> None:
        self.stopped = False
        self._interruptible = False
        self._hung_up = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def __del__(self) -> None:
        # Only when no thread can ring any more: the numbers may be given to other files.
        os.close(self._reader)
        os.close(self._writer)

    def listen(self, *, reloads: bool = False) -> None:
        """Let SIGTERM, SIGINT and SIGHUP stop the wait, or the interruptible call under way.

        Not a SIGHUP that is ignored: whoever said nohup wants this to go on. ``reloads``: SIGHUP
        is for ``take_hangup``, and stops nothing.
        """
        for number in SIGNALS:
            if number == signal.SIGHUP and reloads:
                signal.signal(number, self._on_hangup)
                continue
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._on_signal)

    def let_go(self) -> None:
        """From now on a signal ends this process at once, as it would any other."""
        for number in SIGNALS:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop()
        if self._interruptible:
            raise Stopped

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._hung_up = True
        self.ring()

    def take_hangup(self) -> bool:
        """Whether a SIGHUP came since this was asked last."""
        hung_up, self._hung_up = self._hung_up, False
        return hung_up

    def stop(self) -> None:
        self.stopped = True
        self.ring()

    def ring(self) -> None:
        """Wake the wait; rings before it is waited for are kept, as one."""
        # A full pipe already rings; a closed one has nobody to wake.
        with suppress(OSError):
            os.write(self._writer, b"!")

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a ring; True when there was one, False when time ran out."""
        if self.stopped:
            return True
        ready, _, _ = select.select([self._reader], [], [], max(0.0, timeout_seconds))
        if ready:
            with suppress(BlockingIOError):
                os.read(self._reader, 4096)
        return bool(ready)

    def pause(self, seconds: float) -> None:
        """Let time pass, whoever rings, unless it is to stop."""
        deadline = time.monotonic() + seconds
        while not self.stopped and (left := deadline - time.monotonic()) > 0:
            self.wait(left)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Calls in here are left by Stopped as soon as a signal comes."""
        self._interruptible = True
        try:
            if self.stopped:
                raise Stopped
            yield
        finally:
            self._interruptible = False
