from __future__ import annotations

from collections.abc import Sequence

import pytest
from pool_fakes import NOW, FakeBackend

from backends.base import (
    BackendError,
    Capabilities,
    Idempotency,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Unreachable,
)
from manager.pulse import TICK_SECONDS, Pulse
from manager.wrapped import LEAST_LAUNCHES, WatchedBackend


class SlowBackend(FakeBackend):
    """Every call takes a while of ``now``; counts the requests of each launch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.now = NOW
        self.seconds = seconds
        self.parts: list[int] = []

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        self.now += self.seconds
        self.parts.append(len(requests))
        return super().launch(requests)


def requests(number: int) -> list[LaunchRequest]:
    keys = LaunchKey.make_row("p", 1, number)
    return [LaunchRequest(key, ("worker",), JobResources(1, 0, 1)) for key in keys]


@pytest.mark.parametrize(
    ("per_call", "number", "parts"),
    [
        (1, 25, [LEAST_LAUNCHES, LEAST_LAUNCHES, 5]),
        (1000, 2500, [1000, 1000, 500]),
        (1, 3, [3]),
        (1, 0, []),
    ],
)
def test_a_long_launch_is_cut_where_calls_end_and_its_results_keep_their_order(
    per_call: int, number: int, parts: list[int]
) -> None:
    backend = SlowBackend(0.0)
    backend.capabilities = Capabilities(per_call, Idempotency.SERVICE, 60.0)
    asked = requests(number)
    results = WatchedBackend(backend, Pulse()).launch(asked)
    assert backend.parts == parts
    assert [getattr(result, "key", None) for result in results] == [r.key for r in asked]


def test_a_launch_that_goes_on_is_not_taken_for_one_that_is_stuck() -> None:
    backend = SlowBackend(TICK_SECONDS - 1)
    pulse = Pulse(lambda: backend.now)
    pulse.beat()
    WatchedBackend(backend, pulse).launch(requests(10 * LEAST_LAUNCHES))
    assert backend.now - NOW > 9 * TICK_SECONDS
    assert pulse.is_alive
    assert pulse.overdue_seconds == 0


def test_a_call_that_fails_is_no_sign_of_life_and_nothing_is_swallowed() -> None:
    backend = FakeBackend()
    backend.error = Unreachable("no answer")
    now = NOW
    pulse = Pulse(lambda: now)
    watched = WatchedBackend(backend, pulse)
    pulse.beat()
    now += 10
    with pytest.raises(BackendError):
        watched.list_jobs()
    assert pulse.overdue_seconds == 10
    backend.error = None
    job = backend.add(JobState.PENDING)
    assert watched.list_jobs() == [job]
    assert pulse.overdue_seconds == 0
    assert watched.terminate([job.id]) == {job.id: None}
    backend.outputs[job.id] = "words"
    assert (watched.check(), watched.logs(job.id), watched.work_directory) == ([], "words", "/")
