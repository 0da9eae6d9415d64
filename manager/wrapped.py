"""Backends around a backend: one that forwards, one that shows that calls come back.

Not for what a call costs or how it ends: manager.metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import (
    Backend,
    BackendError,
    Capabilities,
    Finding,
    Job,
    LaunchRequest,
    LaunchResult,
    OfAccount,
)
from manager.pulse import Pulse

LEAST_LAUNCHES = 10
"""A part of a launch has so many requests or more: what a call can launch is never cut."""


class WrappedBackend:
    """Forwards everything; one that adds something overrides what it concerns."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def account(self) -> str | None:
        return self.inner.account if isinstance(self.inner, OfAccount) else ""

    @property
    def work_directory(self) -> str:
        return self.inner.work_directory

    def check(self) -> list[Finding]:
        return self.inner.check()

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        return self.inner.launch(requests, dry_run=dry_run)

    def list_jobs(self) -> list[Job]:
        return self.inner.list_jobs()

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        return self.inner.terminate(job_ids)

    def logs(self, job_id: str) -> str:
        return self.inner.logs(job_id)


class WatchedBackend(WrappedBackend):
    """Each call that comes back is a sign of life. Long launches are cut into parts, so that a
    thousand workers launched one by one are not taken for a manager that is stuck."""

    def __init__(self, inner: Backend, pulse: Pulse) -> None:
        super().__init__(inner)
        self._pulse = pulse

    def check(self) -> list[Finding]:
        findings = self.inner.check()
        self._pulse.beat()
        return findings

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        longest = max(self.capabilities.launches_per_call, LEAST_LAUNCHES)
        results: list[LaunchResult] = []
        for first in range(0, len(requests), longest):
            part = requests[first : first + longest]
            results += self.inner.launch(part, dry_run=dry_run)
            self._pulse.beat()
        return results

    def list_jobs(self) -> list[Job]:
        jobs = self.inner.list_jobs()
        self._pulse.beat()
        return jobs

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results = self.inner.terminate(job_ids)
        self._pulse.beat()
        return results
