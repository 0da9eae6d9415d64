from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.lease import CODALAB_LEASE_SECONDS, Lease
from worker.loop import Timer
from worker.stages import Stage


class Clockwork:
    """A loop whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[Timer] = []

    def clock(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, len(self._timers), callback)
        self._timers.append(timer)
        return timer

    def pass_seconds(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.when <= end]:
            first = min(due)
            self._timers.remove(first)
            self.now = first.when
            first.fire()
        self.now = end

    @property
    def waiting(self) -> int:
        return sum(timer.callback is not None for timer in self._timers)


class Held:
    """Runs of which only is known that they are there, and which were given back."""

    def __init__(self) -> None:
        self.held: dict[str, object] = {"run": object()}
        self.given: list[tuple[Stage, ...]] = []

    def give_back(self, *stages: Stage) -> None:
        self.given.append(stages)


@pytest.fixture
def loop() -> Clockwork:
    return Clockwork()


@pytest.fixture
def runs() -> Held:
    return Held()


@pytest.fixture
def lease(loop: Clockwork, runs: Held) -> Lease:
    return Lease(loop, runs, stops=True)  # type: ignore[arg-type]


def test_what_runs_is_given_back_once_the_lease_is_over(
    loop: Clockwork, runs: Held, lease: Lease
) -> None:
    lease.renew(loop.now, 30)
    loop.pass_seconds(29)
    assert runs.given == []
    loop.pass_seconds(1)
    assert runs.given == [(Stage.PREPARING, Stage.RUNNING)]
    loop.pass_seconds(1000)
    assert len(runs.given) == 1


def test_a_lease_counts_from_when_the_check_in_was_sent(
    loop: Clockwork, runs: Held, lease: Lease
) -> None:
    lease.renew(loop.now - 25, 30)
    loop.pass_seconds(6)
    assert len(runs.given) == 1


def test_a_renewed_lease_is_a_whole_one_and_needs_one_timer_only(
    loop: Clockwork, runs: Held, lease: Lease
) -> None:
    for _ in range(10):
        lease.renew(loop.now, 30)
        loop.pass_seconds(20)
    assert runs.given == []
    assert loop.waiting == 1
    loop.pass_seconds(20)
    assert len(runs.given) == 1
    lease.renew(loop.now, 30)
    loop.pass_seconds(40)
    assert len(runs.given) == 2


def test_a_lease_that_is_shorter_than_the_one_before_counts(
    loop: Clockwork, runs: Held, lease: Lease
) -> None:
    lease.renew(loop.now, 60)
    lease.renew(loop.now, 2)
    loop.pass_seconds(2)
    assert len(runs.given) == 1
    assert loop.waiting == 0


def test_a_server_that_does_not_say_has_codalabs_minute(
    loop: Clockwork, runs: Held, lease: Lease
) -> None:
    lease.renew(loop.now, None)
    loop.pass_seconds(CODALAB_LEASE_SECONDS - 1)
    assert runs.given == []
    loop.pass_seconds(1)
    assert len(runs.given) == 1


def test_without_runs_there_is_nothing_to_lose(
    loop: Clockwork, runs: Held, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    runs.held.clear()
    lease.renew(loop.now, 30)
    loop.pass_seconds(60)
    assert runs.given == []
    assert caplog.text == ""


def test_runs_that_may_go_on_do_and_it_is_said(
    loop: Clockwork, runs: Held, caplog: pytest.LogCaptureFixture
) -> None:
    lease = Lease(loop, runs, stops=False)  # type: ignore[arg-type]
    lease.renew(loop.now, 30)
    loop.pass_seconds(60)
    assert runs.given == []
    assert "late results are refused" in caplog.text
