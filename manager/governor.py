"""The budget of calls of one account at a compute service, shared by all pools that have it.

There is no limit until the service asks for a pause: what it takes is nowhere told in advance. From
then on calls are paced below the rate at which it complained, and the pace grows again with time.
Not for what a call costs in time or how it ended: manager.metrics.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from backends.base import (
    Backend,
    BackendError,
    Job,
    LaunchRequest,
    LaunchResult,
    OfAccount,
    Throttled,
)
from manager.witness import Witness
from manager.wrapped import WrappedBackend

T = TypeVar("T")

MEASURED_SECONDS = 10.0
"""The pace at which the service complained is that of so long before."""
DECREASE = 0.5
GROWTH = 0.05
"""Calls a second, more with each second that nobody complains."""
SLOWEST = 0.1
FASTEST = 50.0
"""Calls a second; one who gets so far needs no limit any more."""
ONE_COMPLAINT_SECONDS = 5.0
"""Complaints so close together are one: they are about the same calls."""
BURST_CALLS = 10
"""So many may be made at once when few were made before."""
LEFT_BY_LISTS = 5
LONGEST_WAITS_SECONDS = 10.0
"""All waits of one tick together: a tick is bounded. What would have to wait longer is refused."""
JOBS_A_CALL = 100
"""What services tell of in one answer, as a rule."""
ROUNDING_SECONDS = 0.01


class Governor:
    """Paces the calls of one account, from any thread; ``clock``: seconds that never go back.

    A token bucket: ``calls_per_second`` fills it, None while there is no limit. What the service
    does for us (launches, ends) may empty it; lists leave LEFT_BY_LISTS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._made: deque[tuple[float, int]] = deque()
        self._rate: float | None = None
        self._tokens = 0.0
        self._filled = clock()
        self._paused_until = -math.inf
        self._complained = -math.inf
        self.patience_seconds = LONGEST_WAITS_SECONDS
        """How long the calls of this tick may still wait."""

    @property
    def calls_per_second(self) -> float | None:
        with self._lock:
            self._fill()
            return self._rate

    def end_tick(self) -> None:
        with self._lock:
            self.patience_seconds = LONGEST_WAITS_SECONDS

    def admit(
        self, calls: int, pause: Callable[[float], None], *, is_urgent: bool
    ) -> tuple[float, float]:
        """Let so many calls be made together, when their time has come.

        Returns how long ``pause`` was asked to wait for it, and 0; or how long it would be until
        then, when this tick cannot wait for it, or ``pause`` comes back too soon.
        """
        waited = 0.0
        while True:
            with self._lock:
                wait = self.wait_seconds(calls, is_urgent=is_urgent)
                if wait <= ROUNDING_SECONDS:
                    self.made(calls)
                    return waited, 0.0
                if wait > self.patience_seconds:
                    return waited, wait
                self.patience_seconds -= wait
            pause(wait)
            waited += wait

    def wait_seconds(self, calls: int, *, is_urgent: bool) -> float:
        """How long until so many calls may be made together, 0 for now. Takes nothing."""
        with self._lock:
            self._fill()
            pause = max(0.0, self._paused_until - self._clock())
            if self._rate is None:
                return pause
            wanted = min(calls if is_urgent else calls + LEFT_BY_LISTS, BURST_CALLS)
            missing = max(0.0, wanted - self._tokens)
            # When rate * w + GROWTH * w² / 2 is what is missing.
            fast = math.sqrt(self._rate**2 + 2 * GROWTH * missing)
            return max(pause, (fast - self._rate) / GROWTH)

    def made(self, calls: int) -> None:
        """So many calls are made now. Who made too many is in debt, by a burst at most."""
        with self._lock:
            self._fill()
            now = self._clock()
            self._made.append((now, calls))
            while self._made[0][0] < now - MEASURED_SECONDS:
                self._made.popleft()
            if self._rate is not None:
                self._tokens = max(self._tokens - calls, -BURST_CALLS)

    def throttled(self, retry_after_seconds: float | None) -> None:
        """The service asked for a pause, of so many seconds if it said so."""
        with self._lock:
            self._fill()
            now = self._clock()
            if retry_after_seconds is not None:
                self._paused_until = max(self._paused_until, now + retry_after_seconds)
            if now - self._complained < ONE_COMPLAINT_SECONDS:
                return
            self._complained = now
            measured = self._measured()
            rate = measured if self._rate is None else min(self._rate, measured)
            self._rate = max(SLOWEST, rate * DECREASE)
            self._tokens = 0.0

    def _measured(self) -> float:
        recent = self._clock() - MEASURED_SECONDS
        return sum(calls for when, calls in self._made if when >= recent) / MEASURED_SECONDS

    def _fill(self) -> None:
        now = self._clock()
        since, self._filled = now - self._filled, now
        if self._rate is None:
            return
        earned = (self._rate + GROWTH * since / 2) * since
        self._rate += GROWTH * since
        self._tokens = min(self._tokens + earned, BURST_CALLS)
        if self._rate >= FASTEST:
            self._rate = None


class Governors(Witness):
    """The governor of each account that the pools of this process have."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._governors: dict[tuple[str, str], Governor] = {}

    def of(self, backend_name: str, backend: Backend, pool: str) -> Governor | None:
        """The one of a pool's account; None when its calls are nobody else's business."""
        account = backend.account if isinstance(backend, OfAccount) else ""
        if account is None:
            return None
        key = (backend_name, account or f"the pool {pool}")
        return self._governors.setdefault(key, Governor(self._clock))

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        for governor in self._governors.values():
            governor.end_tick()


class CallsWitness:
    """Is told how calls are paced, from any thread."""

    def waited(self, seconds: float) -> None:
        """A call was made later than it could have been."""

    def refused(self, operation: str) -> None:
        """A call was put off to a later tick."""


class GovernedBackend(WrappedBackend):
    """Asks a backend no faster than its governor allows.

    ``pause`` waits so many seconds, or shorter when the process is to end. What cannot be asked in
    this tick is Throttled, as if the service had said so.
    """

    def __init__(
        self,
        inner: Backend,
        governor: Governor,
        pause: Callable[[float], None],
        witness: CallsWitness,
    ) -> None:
        super().__init__(inner)
        self._governor = governor
        self._pause = pause
        self._witness = witness
        self._listed = 0

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run or not requests:
            return self.inner.launch(requests, dry_run=dry_run)
        calls = math.ceil(len(requests) / self.capabilities.launches_per_call)
        refusal = self._refusal("launch", calls, is_urgent=True)
        if refusal is not None:
            return [refusal for _ in requests]
        results = self.inner.launch(requests)
        self._learn(results)
        return results

    def list_jobs(self) -> list[Job]:
        calls = max(1, math.ceil(self._listed / JOBS_A_CALL))
        jobs = self._asked("list_jobs", calls, self.inner.list_jobs)
        self._listed = len(jobs)
        return jobs

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        if not job_ids:
            return self.inner.terminate(job_ids)
        refusal = self._refusal("terminate", len(job_ids), is_urgent=True)
        if refusal is not None:
            return dict.fromkeys(job_ids, refusal)
        results = self.inner.terminate(job_ids)
        self._learn(list(results.values()))
        return results

    def logs(self, job_id: str) -> str:
        return self._asked("logs", 1, lambda: self.inner.logs(job_id))

    def _asked(self, operation: str, calls: int, ask: Callable[[], T]) -> T:
        refusal = self._refusal(operation, calls, is_urgent=False)
        if refusal is not None:
            raise refusal
        try:
            return ask()
        except Throttled as error:
            self._learn([error])
            raise

    def _refusal(self, operation: str, calls: int, *, is_urgent: bool) -> Throttled | None:
        """Wait until the calls may be made; why they may not, if that would take too long."""
        waited, left = self._governor.admit(calls, self._pause, is_urgent=is_urgent)
        if waited:
            self._witness.waited(waited)
        if not left:
            return None
        self._witness.refused(operation)
        return Throttled(
            f"the service asked for fewer calls: it is not asked for {left:.0f} s more", left
        )

    def _learn(self, results: Sequence[object]) -> None:
        asked = [error for error in results if isinstance(error, Throttled)]
        if asked:
            said = [e.retry_after_seconds for e in asked if e.retry_after_seconds is not None]
            self._governor.throttled(max(said, default=None))
