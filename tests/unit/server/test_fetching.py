from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from bundles.errors import ServerFault
from bundles.server import fetching as fetching_module
from bundles.server.fetching import Fetching
from bundles.server.store import Store


class SlowStore:
    """Fetches when it may. ``holds``: how many there are of each location."""

    def __init__(self) -> None:
        self.may_fetch = threading.Semaphore(0)
        self.error: Exception | None = None
        self.fetches = 0
        self.present: set[str] = set()
        self.holds: dict[str, int] = {}

    def hold(self, location: str) -> Path | None:
        if location not in self.present:
            return None
        self.holds[location] = self.holds.get(location, 0) + 1
        return Path(location)

    def fetch(self, location: str) -> None:
        self.fetches += 1
        assert self.may_fetch.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        self.present.add(location)


def play(scene: Callable[[Fetching, SlowStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = SlowStore()
        fetching = Fetching(cast(Store, store))
        try:
            await asyncio.wait_for(scene(fetching, store), 60)
        finally:
            fetching.close()

    asyncio.run(run())


def test_those_who_want_the_same_wait_for_one_fetch_and_hold_it_each() -> None:
    async def scene(fetching: Fetching, store: SlowStore) -> None:
        readers = [asyncio.ensure_future(fetching.hold("a")) for _ in range(20)]
        store.may_fetch.release()
        assert await asyncio.gather(*readers) == [Path("a")] * 20
        assert (store.fetches, store.holds) == (1, {"a": 20})

    play(scene)


def test_who_wants_what_is_there_waits_for_no_fetch() -> None:
    async def scene(fetching: Fetching, store: SlowStore) -> None:
        store.present.add("here")
        waiting = [asyncio.ensure_future(fetching.hold(f"away-{n}")) for n in range(50)]
        assert await fetching.hold("here") == Path("here")
        for _ in waiting:
            store.may_fetch.release()
        await asyncio.gather(*waiting)

    play(scene)


def test_a_fetch_that_takes_long_goes_on_and_its_reader_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching_module, "PATIENCE_SECONDS", 0.05)

    async def scene(fetching: Fetching, store: SlowStore) -> None:
        for _ in range(2):
            with pytest.raises(ServerFault, match="on their way"):
                await fetching.hold("a")
        store.may_fetch.release()
        await asyncio.wait(list(fetching._fetches.values()))
        assert await fetching.hold("a") == Path("a")
        assert store.fetches == 1

    play(scene)


def test_a_fetch_that_fails_fails_all_who_wait_and_is_tried_again_for_others() -> None:
    async def scene(fetching: Fetching, store: SlowStore) -> None:
        store.error = ServerFault("away")
        readers = [asyncio.ensure_future(fetching.hold("a")) for _ in range(3)]
        await asyncio.sleep(0)
        store.may_fetch.release()
        errors = await asyncio.gather(*readers, return_exceptions=True)
        assert [str(error) for error in errors] == ["away"] * 3
        store.error = None
        store.may_fetch.release()
        assert await fetching.hold("a") == Path("a")
        assert store.fetches == 2

    play(scene)
