"""Failures of the service: the right error of the taxonomy, in bounded time, and nothing done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.base import (
    BackendError,
    EndCause,
    Job,
    JobState,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from backends.conformance.harness import Circumstance, Harness
from backends.conformance.stand import Case, Stand, jobs_of, needs


def name_of(value: object) -> str:
    """How a parameter reads in a test's name."""
    return value.name.lower() if isinstance(value, Circumstance) else getattr(value, "__name__", "")


_REFUSALS: list[tuple[Circumstance, type[BackendError]]] = [
    (Circumstance.THROTTLED, Throttled),
    (Circumstance.UNAUTHORIZED, Unauthorized),
    (Circumstance.UNREACHABLE, Unreachable),
    (Circumstance.HANGING, Unreachable),
]
_refusals = pytest.mark.parametrize(("circumstance", "error"), _REFUSALS, ids=name_of)


class Failing(Case):
    """Every test asks something of a service that does not do it."""

    def test_a_list_that_fails_before_its_end_is_an_error(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.LIST_TORN)
        jobs = stand.launch(stand.harness.more_than_a_page)
        stand.listed(job.key for job in jobs)
        with (
            stand.harness.during(Circumstance.LIST_TORN),
            within(stand.harness),
            pytest.raises(BackendError),
        ):
            stand.backend.list_jobs()
        assert len(stand.backend.list_jobs()) == len(jobs)

    def test_a_service_that_asks_to_wait_is_obeyed(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.BRIEFLY_THROTTLED)
        job = stand.launch_one()
        stand.listed([job.key])
        for ask in (
            lambda: stand.backend.list_jobs(),
            lambda: jobs_of(stand.backend.launch(stand.requests(1))),
            lambda: _must_be_none(stand.backend.terminate([job.id])),
        ):
            began = time.monotonic()
            with stand.harness.during(Circumstance.BRIEFLY_THROTTLED):
                ask()
            assert time.monotonic() - began >= (stand.harness.retry_after_seconds or 0.0)

    @_refusals
    def test_a_refused_list_is_an_error_of_its_kind(
        self, stand: Stand, circumstance: Circumstance, error: type[BackendError]
    ) -> None:
        job = stand.launch_one()
        stand.listed([job.key])
        with refusing(stand, circumstance), pytest.raises(error) as raised:
            stand.backend.list_jobs()
        _is_a_sentence(stand, raised.value)
        assert list(stand.listed([job.key])) == [job.key]  # and by the same backend

    @_refusals
    def test_a_refused_launch_is_an_error_of_its_kind(
        self, stand: Stand, circumstance: Circumstance, error: type[BackendError]
    ) -> None:
        requests = stand.requests(2)
        with refusing(stand, circumstance):
            results = stand.backend.launch(requests)
        assert [type(result) for result in results] == [error] * 2, results
        for result in results:
            _is_a_sentence(stand, result)
        if circumstance is not Circumstance.HANGING:  # which may have heard it
            assert stand.backend.list_jobs() == []
        jobs = jobs_of(stand.backend.launch(stand.requests(1)))
        stand.listed(job.key for job in jobs)

    @_refusals
    def test_a_refused_end_is_an_error_of_its_kind(
        self, stand: Stand, circumstance: Circumstance, error: type[BackendError]
    ) -> None:
        job = stand.run_one()
        with refusing(stand, circumstance):
            results = stand.backend.terminate([job.id])
        assert {key: type(result) for key, result in results.items()} == {job.id: error}
        assert stand.backend.terminate([job.id]) == {job.id: None}
        stand.until_over(job)

    @_refusals
    def test_a_refused_log_is_an_error_of_its_kind(
        self, stand: Stand, circumstance: Circumstance, error: type[BackendError]
    ) -> None:
        job = stand.run_one()
        with refusing(stand, circumstance), pytest.raises(error):
            stand.backend.logs(job.id)

    def test_a_service_without_a_machine_is_out_of_capacity(self, stand: Stand) -> None:
        """At once, or later by the job's end; or it waits and says what for."""
        needs(stand.harness, Circumstance.OUT_OF_CAPACITY)
        (request,) = stand.requests(1)
        with stand.harness.during(Circumstance.OUT_OF_CAPACITY), within(stand.harness):
            (result,) = stand.backend.launch([request])
            if isinstance(result, Job):
                stand.until(lambda: _lacks_a_machine(stand, result), "the job lacks a machine")
            else:
                assert isinstance(result, OutOfCapacity), result
                assert stand.backend.list_jobs() == []

    def test_a_quota_that_is_used_up_is_said(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.QUOTA_EXCEEDED)
        requests = stand.requests(2)
        with stand.harness.during(Circumstance.QUOTA_EXCEEDED), within(stand.harness):
            results = stand.backend.launch(requests)
        assert [type(result) for result in results] == [QuotaExceeded] * 2, results
        assert stand.backend.list_jobs() == []


@contextmanager
def within(harness: Harness) -> Iterator[None]:
    """What is inside may take as long as the backend promises."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < harness.longest_call_seconds


@contextmanager
def refusing(stand: Stand, circumstance: Circumstance) -> Iterator[None]:
    needs(stand.harness, circumstance)
    with stand.harness.during(circumstance), within(stand.harness):
        yield


def _is_a_sentence(stand: Stand, error: object) -> None:
    assert isinstance(error, BackendError)
    assert str(error).strip()
    assert "\n" not in str(error)
    if isinstance(error, Throttled) and stand.harness.retry_after_seconds is not None:
        assert error.retry_after_seconds == pytest.approx(stand.harness.retry_after_seconds)


def _lacks_a_machine(stand: Stand, launched: Job) -> bool:
    job = stand.job(launched.key)
    if job.state is JobState.ENDED:
        assert job.cause is EndCause.OUT_OF_CAPACITY, job
        return True
    assert job.state is JobState.PENDING, job
    return bool(job.why)


def _must_be_none(results: dict[str, BackendError | None]) -> None:
    assert set(results.values()) == {None}
