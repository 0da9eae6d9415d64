from __future__ import annotations

import pytest
from sqlalchemy import Connection, create_engine, insert

from bundles.server import pruning, schema

NOW = 2e9
OLD = NOW - pruning.KEPT_SECONDS - 1
FIRST = 1_700_000_000_000_000


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 10)
    monkeypatch.setattr(pruning, "AT_LEAST", 20)
    monkeypatch.setattr(pruning, "AT_MOST", 50)


def find(*ages: tuple[int, float]) -> int | None:
    """Among so many transitions of each time, the oldest first; counted from the first one."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        schema.migrate(connection)
        fill(connection, [time for number, time in ages for _ in range(number)])
        found = pruning.find_batch(connection, NOW)
    engine.dispose()
    return None if found is None else found - FIRST


def fill(connection: Connection, times: list[float]) -> None:
    rows = [
        {
            "id": FIRST + number,
            "uuid": "0x0",
            "owner_id": "0",
            "from_state": None,
            "to_state": "created",
            "time": time,
            "claim": 0,
            "worker_id": None,
            "reason": "",
        }
        for number, time in enumerate(times)
    ]
    if rows:
        connection.execute(insert(schema.transition), rows)


def test_the_oldest_batch_goes_once_all_of_it_is_old() -> None:
    assert find((30, OLD)) == 9
    assert find((10, OLD), (20, NOW)) == 9
    assert find((9, OLD), (40, NOW)) is None


def test_so_many_stay_however_old_they_are() -> None:
    assert find() is None
    assert find((29, OLD)) is None


def test_no_more_stay_than_that_however_young_they_are() -> None:
    assert find((59, NOW)) is None
    assert find((60, NOW)) == 9
