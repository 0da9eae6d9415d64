"""What a manager does with its lease, tick by tick. How one is had: test_lease.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pool_stand import Stand

from bundles.errors import Conflict
from manager.lease import RETRY_SECONDS, LeaseLost


class Lease:
    """One that is held, or not, as a test says."""

    def __init__(self) -> None:
        self.is_lost = False
        self.is_lost_on_the_way = False
        self.since_another = float("inf")

    def take(self) -> None:
        if self.is_lost:
            raise LeaseLost("another manager keeps a pool")

    def fence(self, pool: str) -> int | None:
        if self.is_lost_on_the_way:
            raise LeaseLost("it is not sure any more")
        return None

    def seconds_since_another(self, pool: str) -> float:
        return self.since_another


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


@pytest.fixture
def lease() -> Lease:
    return Lease()


def test_without_its_lease_a_manager_looks_at_nothing_and_says_so_once(
    stand: Stand, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    pool = stand.start(low=1)
    pool.manager.lease = pool.keeper.lease = lease  # type: ignore[assignment]
    lease.is_lost = True
    for _ in range(5):
        assert pool.guarded_tick() == RETRY_SECONDS  # the server has made it wait already
    assert stand.server.asked == []
    assert stand.backend.launched == []
    assert caplog.text.count("another manager keeps a pool") == 1
    lease.is_lost = False
    pool.tick()
    assert len(stand.backend.launched) == 1


def test_a_lease_that_is_lost_on_the_way_leaves_no_intent(stand: Stand, lease: Lease) -> None:
    pool = stand.start(low=1)
    pool.manager.lease = pool.keeper.lease = lease  # type: ignore[assignment]
    lease.is_lost_on_the_way = True
    with pytest.raises(Conflict):
        pool.tick()
    assert stand.backend.launched == []
    assert stand.outcomes() == []


def test_what_another_homes_manager_launched_last_is_waited_for(stand: Stand, lease: Lease) -> None:
    stand.backend.capabilities = replace(stand.backend.capabilities, listing_lag_seconds=60.0)
    pool = stand.start(low=1)
    pool.manager.lease = pool.keeper.lease = lease  # type: ignore[assignment]
    lease.since_another = 59.0
    decision = pool.tick()
    assert decision.launch == 0
    assert any("may not be listed yet" in reason.sentence for reason in decision.reasons)
    lease.since_another = 60.0
    assert pool.tick().launch == 1
