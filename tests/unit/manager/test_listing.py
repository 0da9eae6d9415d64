from __future__ import annotations

import logging
import threading

import pytest
from pool_fakes import FakeBackend

from backends.base import Job, JobState, Unreachable
from manager.alarm import Alarm
from manager.listing import Lister


class Broken(FakeBackend):
    """Raises what no backend should."""

    def list_jobs(self) -> list[Job]:
        raise KeyError("jobs")


class Slow(FakeBackend):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.asked = 0

    def list_jobs(self) -> list[Job]:
        self.asked += 1
        assert self.let.wait(60)
        return super().list_jobs()


def test_pools_are_listed_each_by_itself_and_errors_are_told() -> None:
    well, ill = FakeBackend(), FakeBackend()
    job = well.add(JobState.ACTIVE)
    ill.error = Unreachable("no answer")
    assert Lister().list({"a": well, "b": ill}, Alarm()) == {"a": [job], "b": ill.error}


def test_a_list_that_fails_in_an_unforeseen_way_is_not_an_empty_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "manager"):
        listed = Lister().list({"a": FakeBackend(), "b": Broken()}, Alarm())
    assert listed["a"] == []
    assert isinstance(listed["b"], Unreachable)
    assert "KeyError" in caplog.text


def test_a_list_that_comes_too_late_is_no_list_and_is_not_asked_for_twice() -> None:
    slow = Slow()
    lister = Lister(seconds=0.01)
    try:
        for _ in range(2):
            listed = lister.list({"a": FakeBackend(), "b": slow}, Alarm())
            assert isinstance(listed["b"], Unreachable)
    finally:
        slow.let.set()
    assert slow.asked == 1
