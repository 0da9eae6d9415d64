from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pool_fakes import FakeBackend

from backends.base import JobResources, JobState, LaunchKey, LaunchRequest, Unreachable
from bundles.errors import BundlesError, Conflict, NotAuthenticated
from bundles.errors import Unreachable as ServerUnreachable
from manager.alarm import Alarm
from manager.lease import MARGIN_SECONDS, TTL_SECONDS, Lease, LeasedBackend, LeaseLost


class Keeper:
    """A server that keeps leases, as it looks to one client. ``now`` is everybody's clock."""

    def __init__(self, *features: str) -> None:
        self.server = "http://s"
        self.features: frozenset[str] = frozenset()
        self.offered = frozenset(features)
        self.now = 1000.0
        self.takes_seconds = 0.0
        self.error: BundlesError | None = None
        self.leases: dict[str, tuple[str, int]] = {}
        self.requests: list[str] = []

    def _answer(self, request: str) -> None:
        self.requests.append(request)
        self.now += self.takes_seconds
        if self.error is not None:
            raise self.error
        self.features = self.offered

    def whoami(self) -> dict[str, Any]:
        self._answer("whoami")
        return {}

    def acquire_leases(
        self, names: Sequence[str], holder: str, ttl_seconds: float, *, wait_seconds: float
    ) -> dict[str, int]:
        self._answer("acquire")
        for name in names:
            found, _ = self.leases.get(name, (holder, 0))
            if found not in ("", holder):
                self.now += wait_seconds
                raise Conflict(f"{name} is held by {found}")
        for name in names:
            found, fence = self.leases.get(name, ("", 0))
            self.leases[name] = (holder, fence + (found != holder))
        return {name: self.leases[name][1] for name in names}

    def renew_leases(self, fences: Mapping[str, int], holder: str) -> None:
        self._answer("renew")
        if any(self.leases[name] != (holder, fence) for name, fence in fences.items()):
            raise Conflict("no longer held")

    def release_leases(self, fences: Mapping[str, int], holder: str) -> None:
        self._answer("release")
        for name in fences:
            self.leases[name] = ("", self.leases[name][1])

    def give_to_another(self, name: str) -> None:
        self.leases[name] = ("another", self.leases.get(name, ("", 0))[1] + 1)


@pytest.fixture
def server() -> Keeper:
    return Keeper("leases", "tokens")


@pytest.fixture
def alarm() -> Alarm:
    return Alarm()


@pytest.fixture
def lease(server: Keeper, alarm: Alarm, tmp_path: Path) -> Iterator[Lease]:
    with make(server, alarm, tmp_path) as made:
        made.want("p")
        yield made


def make(server: Keeper, alarm: Alarm, directory: Path) -> Lease:
    return Lease(server, alarm, directory, clock=lambda: server.now)  # type: ignore[arg-type]


def test_it_is_sure_for_its_time_less_what_a_call_may_take(server: Keeper, lease: Lease) -> None:
    assert not lease.is_held
    lease.take()
    assert lease.is_held
    assert lease.fence("p") == 1
    server.now += TTL_SECONDS - MARGIN_SECONDS - 0.01
    assert lease.is_held
    server.now += 0.02
    assert not lease.is_held
    with pytest.raises(LeaseLost):
        lease.fence("p")


def test_its_time_counts_from_before_the_server_was_asked(server: Keeper, lease: Lease) -> None:
    lease.take()
    server.now += 5
    server.takes_seconds = 7
    lease.renew()
    assert lease.is_held
    server.now += TTL_SECONDS - MARGIN_SECONDS - 7
    assert not lease.is_held


def test_one_that_is_held_is_not_asked_for_again(server: Keeper, lease: Lease) -> None:
    lease.take()
    asked = len(server.requests)
    lease.take()
    assert len(server.requests) == asked


def test_a_renewed_one_has_its_whole_time_again(server: Keeper, lease: Lease) -> None:
    lease.take()
    for _ in range(5):
        server.now += 5
        lease.renew()
        assert lease.is_held


def test_while_the_server_is_away_it_runs_out_and_comes_back_with_the_server(
    server: Keeper, lease: Lease
) -> None:
    lease.take()
    server.error = ServerUnreachable("away")
    server.now += 5
    lease.renew()
    assert lease.is_held
    server.now += TTL_SECONDS
    assert not lease.is_held
    with pytest.raises(ServerUnreachable):
        lease.take()
    server.error = None
    lease.take()
    assert lease.fence("p") == 1


def test_one_that_another_has_taken_is_lost_and_rings(
    server: Keeper, lease: Lease, alarm: Alarm
) -> None:
    lease.take()
    server.give_to_another("p")
    lease.renew()
    assert not lease.is_held
    assert alarm.wait(0)
    with pytest.raises(LeaseLost, match="p is held by another; --pool NAME"):
        lease.take()


def test_after_a_wait_it_is_taken_and_that_is_said(
    server: Keeper, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.give_to_another("p")
    began = server.now
    with pytest.raises(LeaseLost):
        lease.take()
    assert server.now == began  # what it waits for is said first
    with pytest.raises(LeaseLost):
        lease.take()
    assert server.now > began
    server.leases["p"] = ("", 1)
    lease.take()
    assert lease.fence("p") == 2
    assert "this manager keeps p now" in caplog.text


def test_of_several_pools_all_are_held_or_none(server: Keeper, lease: Lease) -> None:
    lease.want("q")
    server.give_to_another("q")
    with pytest.raises(LeaseLost):
        lease.take()
    assert not lease.is_held
    assert "p" not in server.leases


def test_a_pool_more_is_wanted_before_it_is_held(server: Keeper, lease: Lease) -> None:
    lease.take()
    lease.want("q")
    assert not lease.is_held
    lease.take()
    assert (lease.fence("p"), lease.fence("q")) == (1, 1)


def test_a_pool_that_another_keeps_is_not_added(server: Keeper, lease: Lease) -> None:
    lease.take()
    server.give_to_another("q")
    with pytest.raises(LeaseLost, match="q is held by another"):
        lease.claim("q")
    assert lease.is_held
    lease.claim("r")
    assert lease.is_held
    assert lease.fence("r") == 1


def test_a_pool_that_is_added_while_the_server_is_away_is_taken_when_it_is_back(
    server: Keeper, lease: Lease
) -> None:
    lease.take()
    server.error = ServerUnreachable("away")
    lease.claim("q")
    assert not lease.is_held
    server.error = None
    lease.take()
    assert lease.fence("q") == 1


def test_a_pool_that_is_kept_no_more_is_given_back_and_the_others_stay(
    server: Keeper, lease: Lease
) -> None:
    lease.want("q")
    lease.take()
    lease.drop("q")
    assert server.leases["p"][0] != ""
    assert server.leases["q"] == ("", 1)
    assert lease.is_held
    lease.renew()
    assert lease.is_held


def test_a_home_knows_when_another_has_kept_its_pool_since(
    server: Keeper, alarm: Alarm, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()

    def take(place: Path) -> float:
        with make(server, alarm, place) as lease:
            lease.want("p")
            lease.take()
            server.now += 3
            return lease.seconds_since_another("p")

    assert take(tmp_path) == float("inf")
    assert take(tmp_path) == float("inf")
    assert take(tmp_path / "other") == 3
    assert take(tmp_path / "other") == float("inf")
    assert take(tmp_path) == 3


def test_a_home_that_was_killed_need_not_wait_for_itself_and_another_must(
    server: Keeper, alarm: Alarm, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    killed, again = make(server, alarm, tmp_path), make(server, alarm, tmp_path)
    other = make(server, alarm, tmp_path / "other")
    for lease in (killed, again, other):
        lease.want("p")
    killed.take()
    again.take()
    with pytest.raises(LeaseLost):
        other.take()
    for lease in (killed, again, other):
        lease.__exit__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holder", "other", "p.fence"]


def test_at_the_end_all_is_given_back(server: Keeper, alarm: Alarm, tmp_path: Path) -> None:
    with make(server, alarm, tmp_path) as lease:
        lease.want("p")
        lease.take()
    assert server.leases == {"p": ("", 1)}


def test_a_server_that_keeps_none_leaves_it_at_the_lock_and_that_is_said_once(
    alarm: Alarm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = Keeper()
    with make(server, alarm, tmp_path) as lease:
        lease.want("p")
        assert not lease.is_held
        lease.take()
        lease.take()
        assert lease.is_held
        assert lease.fence("p") is None
        lease.claim("q")
        lease.drop("p")
    assert caplog.text.count("http://s keeps no leases") == 1
    assert server.requests == ["whoami"]


def test_wrong_credentials_are_no_lost_lease(server: Keeper, lease: Lease) -> None:
    server.error = NotAuthenticated("who are you?")
    with pytest.raises(NotAuthenticated):
        lease.take()


def test_without_it_nothing_is_launched_and_nothing_is_ended(server: Keeper, lease: Lease) -> None:
    inner = FakeBackend()
    job = inner.add(JobState.PENDING)
    backend = LeasedBackend(inner, lease)
    key = LaunchKey.make("p", 7)
    request = LaunchRequest(key, ("worker",), JobResources(1, 0, 1))
    [refused] = backend.launch([request])
    assert isinstance(refused, Unreachable)
    assert isinstance(backend.terminate([job.id])[job.id], Unreachable)
    assert (inner.launched, inner.asked_to_end) == ([], [])
    assert backend.list_jobs() == [job]
    lease.take()
    backend.launch([request])
    backend.terminate([job.id])
    assert (inner.launched, inner.asked_to_end) == ([request], [job.id])
