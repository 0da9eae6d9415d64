from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_fakes import FakeBackend

from backends.base import (
    BackendError,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Throttled,
)
from manager.governor import (
    BURST_CALLS,
    FASTEST,
    GROWTH,
    LONGEST_WAITS_SECONDS,
    SLOWEST,
    CallsWitness,
    GovernedBackend,
    Governor,
    Governors,
)
from manager.wrapped import WrappedBackend


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Service(FakeBackend):
    """Refuses as many calls as it is told to."""

    account: str | None = "ours"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.refusals: list[Throttled] = []

    def _refusal(self, operation: str) -> Throttled | None:
        self.calls.append(operation)
        return self.refusals.pop() if self.refusals else None

    def list_jobs(self) -> list[object]:  # type: ignore[override]
        if refusal := self._refusal("list"):
            raise refusal
        return list(self.jobs)

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        refusal = self._refusal("launch")
        return [refusal] * len(requests) if refusal else super().launch(requests)

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        refusal = self._refusal("terminate")
        return dict.fromkeys(job_ids, refusal) if refusal else super().terminate(job_ids)


def requests(number: int) -> list[LaunchRequest]:
    keys = LaunchKey.make_row("p", 1, number)
    return [LaunchRequest(key, ("worker",), JobResources(1, 0, 1)) for key in keys]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def governor(clock: Clock) -> Governor:
    return Governor(clock)


@pytest.fixture
def governed(service: Service, governor: Governor, clock: Clock) -> GovernedBackend:
    return GovernedBackend(service, governor, clock.pause, CallsWitness())


def test_nobody_waits_for_a_service_that_never_complained(
    governed: GovernedBackend, clock: Clock
) -> None:
    for _ in range(1000):
        governed.list_jobs()
    assert not any(isinstance(r, Throttled) for r in governed.launch(requests(1000)))
    assert clock.pauses == []


def test_a_complaint_halves_the_pace_and_time_gives_it_back(
    governed: GovernedBackend, governor: Governor, service: Service, clock: Clock
) -> None:
    for _ in range(100):  # ten calls a second
        governed.list_jobs()
        clock.now += 0.1
    service.refusals.append(Throttled("slower"))
    with pytest.raises(Throttled):
        governed.list_jobs()
    assert governor.calls_per_second == pytest.approx(5, abs=0.1)
    clock.now += 10
    assert governor.calls_per_second == pytest.approx(5 + 10 * GROWTH, abs=0.1)
    clock.now += FASTEST / GROWTH
    assert governor.calls_per_second is None


def test_complaints_about_the_same_calls_slow_down_once(governor: Governor, clock: Clock) -> None:
    governor.made(100)
    for _ in range(5):
        governor.throttled(None)
    assert governor.calls_per_second == 5
    clock.now += 6
    governor.throttled(None)
    assert governor.calls_per_second is not None
    assert governor.calls_per_second < 5


def test_the_pace_of_calls_is_what_the_bucket_fills_at(
    governed: GovernedBackend, governor: Governor, clock: Clock
) -> None:
    governor.made(20)
    governor.throttled(None)
    began, asked = clock.now, 0
    while clock.now < began + 60:
        governor.end_tick()
        governed.list_jobs()
        asked += 1
    earned = 60 * 1 + GROWTH * 60**2 / 2
    assert earned - BURST_CALLS <= asked <= earned + 1


def test_what_would_wait_longer_than_a_tick_may_is_not_asked_and_says_how_long(
    governed: GovernedBackend, governor: Governor, service: Service, clock: Clock
) -> None:
    service.refusals.append(Throttled("slower", 300))
    assert isinstance(governed.launch(requests(3))[0], Throttled)
    service.calls.clear()
    clock.now += 10
    with pytest.raises(Throttled) as refused:
        governed.list_jobs()
    assert refused.value.retry_after_seconds == pytest.approx(290)
    assert "290 s" in str(refused.value)
    assert all(isinstance(result, Throttled) for result in governed.launch(requests(3)))
    assert isinstance(governed.terminate(["1"])["1"], Throttled)
    assert (service.calls, service.launched, service.asked_to_end) == ([], [], [])
    clock.now += 291
    assert governed.list_jobs() == []


def test_all_waits_of_a_tick_together_are_bounded(
    governed: GovernedBackend, governor: Governor, clock: Clock
) -> None:
    governor.made(20)
    governor.throttled(None)
    for _ in range(1000):
        with suppress(Throttled):
            governed.list_jobs()
    assert 0 < sum(clock.pauses) <= LONGEST_WAITS_SECONDS
    before = len(clock.pauses)
    with pytest.raises(Throttled):
        governed.list_jobs()
    governor.end_tick()
    governed.list_jobs()
    assert len(clock.pauses) == before + 1


def test_launches_and_ends_come_before_lists(
    governed: GovernedBackend, governor: Governor, service: Service, clock: Clock
) -> None:
    governor.made(20)
    governor.throttled(None)
    clock.now += 1.2  # a call is saved, and that is all
    assert governor.wait_seconds(1, is_urgent=True) == 0
    assert governor.wait_seconds(1, is_urgent=False) > 0
    job = service.add(JobState.PENDING)
    governed.terminate([job.id])
    assert clock.pauses == []


def test_many_ends_leave_a_debt_of_one_burst_at_most(governor: Governor, clock: Clock) -> None:
    governor.made(20)
    governor.throttled(None)
    governor.made(10_000)
    assert governor.wait_seconds(1, is_urgent=True) <= 2 * BURST_CALLS


def test_a_wait_that_a_signal_cut_short_asks_nothing(service: Service, governor: Governor) -> None:
    governor.throttled(None)
    governed = GovernedBackend(service, governor, lambda seconds: None, CallsWitness())
    assert isinstance(governed.launch(requests(1))[0], Throttled)
    assert service.calls == []


def test_waits_and_refusals_are_told(service: Service, governor: Governor, clock: Clock) -> None:
    waits: list[float] = []
    refusals: list[str] = []

    class Told(CallsWitness):
        def waited(self, seconds: float) -> None:
            waits.append(seconds)

        def refused(self, operation: str) -> None:
            refusals.append(operation)

    governed = GovernedBackend(service, governor, clock.pause, Told())
    governor.made(20)
    governor.throttled(None)
    governed.list_jobs()
    assert waits == clock.pauses != []
    governor.throttled(1000)
    with pytest.raises(Throttled):
        governed.list_jobs()
    governed.terminate(["1"])
    assert refusals == ["list_jobs", "terminate"]


def test_what_is_no_call_is_not_counted(
    governed: GovernedBackend, governor: Governor, service: Service
) -> None:
    governor.throttled(1000)
    assert governed.launch([]) == []
    assert governed.terminate([]) == {}


def test_pools_of_one_account_share_a_pace_and_others_do_not() -> None:
    governors = Governors()
    one, other, elsewhere, here = Service(), Service(), Service(), Service()
    elsewhere.account = "theirs"
    here.account = None
    first = governors.of("aws-batch", one, "a")
    assert first is not None
    assert governors.of("aws-batch", other, "b") is first
    assert governors.of("aws-batch", elsewhere, "c") is not first
    assert governors.of("slurm", other, "d") is not first
    assert governors.of("local-process", here, "e") is None
    first.patience_seconds = 0
    governors.ticked(1, None, 1)
    assert first.patience_seconds == LONGEST_WAITS_SECONDS
    silent = FakeBackend()
    assert governors.of("mine", silent, "f") is governors.of("mine", silent, "f")
    assert governors.of("mine", silent, "f") is not governors.of("mine", silent, "g")
    wrapped = WrappedBackend(silent)
    assert governors.of("mine", wrapped, "f") is governors.of("mine", silent, "f")
    assert governors.of("aws-batch", WrappedBackend(one), "h") is first


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.integers(1, 50),
            st.booleans(),
            st.none() | st.floats(0, 400),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_pace_stays_in_bounds_and_a_wait_ends(
    events: list[tuple[float, int, bool, float | None, bool]],
) -> None:
    clock = Clock()
    governor = Governor(clock)
    for seconds, calls, is_urgent, said, complains in events:
        clock.now += seconds
        wait = governor.wait_seconds(calls, is_urgent=is_urgent)
        assert 0 <= wait <= 2 * BURST_CALLS / SLOWEST + 400
        clock.now += wait
        assert governor.wait_seconds(calls, is_urgent=is_urgent) < 0.01
        governor.made(calls)
        if complains:
            governor.throttled(said)
            assert governor.wait_seconds(1, is_urgent=True) >= (said or 0.0) - 0.01
        rate = governor.calls_per_second
        assert rate is None or SLOWEST <= rate < FASTEST
