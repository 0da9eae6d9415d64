"""What a changed file does to the pools that are kept, without any pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles.errors import NotAuthenticated, Unreachable
from manager.alarm import Alarm
from manager.pools_file.reading import PoolsFile, load
from manager.pools_file.watched import WatchedFile
from manager.reload import LONGEST_RETRY_SECONDS, RETRY_SECONDS, Reload

POOL = '[[pools]]\nname = "{}"\nbackend = "{}"\n'


class FakeKeeping:
    """Remembers what it was told; keeps local-process pools."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.pools: list[Any] = []
        self.settings: dict[str, Any] = {}
        self.renewed: list[list[Any]] = []
        self.refused: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    def renew(self, manager: Any, pools: list[Any], settings: Any) -> None:
        self.renewed.append(pools)
        if self.error:
            raise self.error

    def backend_name(self, pool: str) -> str:
        return "local-process"

    def file_is_refused(self, problems: tuple[str, ...]) -> None:
        self.refused.append(tuple(problems))


class FakePool:
    def __init__(self, name: str) -> None:
        self.name = name


class FakeManager:
    budget: Any = None
    soft_fraction = 0.0


class Bench:
    """A file, and a Reload of it over fakes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keeping, self.manager, self.alarm = FakeKeeping(), FakeManager(), Alarm()
        self.now = 0.0
        self.error: Exception | None = None
        self.write("")
        keeping: Any = self.keeping
        manager: Any = self.manager
        pools_of: Any = self.pools_of
        self.reload = Reload(
            WatchedFile(load(path), {}), self.alarm, keeping, manager, pools_of, lambda: self.now
        )

    def write(self, first: str, name: str = "p", backend: str = "local-process") -> None:
        self.path.write_text(first + POOL.format(name, backend))

    def pools_of(self, file: PoolsFile) -> list[FakePool]:
        if self.error:
            raise self.error
        return [FakePool(pool.name) for pool in file.pools]

    def tick(self, times: int = 2) -> None:
        for _ in range(times):
            self.reload()

    @property
    def problem(self) -> str:
        return "\n".join(self.keeping.refused[-1])

    @property
    def names(self) -> list[list[str]]:
        return [[pool.name for pool in pools] for pools in self.keeping.renewed]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))
    return Bench(tmp_path / "pools.toml")


def test_what_changed_is_kept_from_the_next_tick_on_with_its_budget(bench: Bench) -> None:
    bench.tick(3)
    assert bench.names == []
    bench.write("sleep-time = 2\n[budget]\nper-day = 3\nsoft-fraction = 0.5\n", "q")
    bench.tick(3)
    assert bench.names == [["q"]]
    assert (bench.manager.budget.per_day, bench.manager.soft_fraction) == (3, 0.5)


@pytest.mark.parametrize(
    "line",
    ["server = 'http://x'", "home = '/x'", "password-file = 'x'", "metrics-port = 1",
     "log-format = 'json'", "restart-after-seconds = 9"],
)  # fmt: skip
def test_what_a_process_has_for_good_is_refused_by_its_line(bench: Bench, line: str) -> None:
    bench.write(f"\n{line}\n", "q")
    bench.tick(3)
    assert bench.names == []
    key = line.partition(" ")[0]
    assert bench.problem.startswith(f"{bench.path}:2: {key}: cannot change while pools are kept")


def test_a_pool_never_changes_its_backend_as_its_workers_would_be_lost_sight_of(
    bench: Bench,
) -> None:
    bench.write("", "p", "slurm")
    bench.tick(3)
    assert bench.names == []
    assert bench.problem == (
        f"{bench.path}:3: the workers of p are local-process's: give a pool of slurm a name of "
        "its own"
    )


def test_pools_that_cannot_be_made_are_refused(bench: Bench) -> None:
    bench.error = NotAuthenticated("no credentials")
    bench.write("", "q")
    bench.tick(3)
    assert bench.names == []
    assert bench.problem == f"{bench.path}: no credentials"


def test_a_change_that_failed_half_way_is_made_again_at_the_next_tick(bench: Bench) -> None:
    bench.keeping.error = Unreachable("away")
    bench.write("", "q")
    bench.tick(1)
    for _ in range(2):
        with pytest.raises(Unreachable):
            bench.tick(1)
    bench.keeping.error = None
    bench.tick(3)
    assert bench.names == [["q"]] * 3


def test_pools_that_could_not_be_kept_are_tried_again_after_longer_and_longer(
    bench: Bench,
) -> None:
    bench.keeping.missing = ["p"]
    bench.tick()
    assert bench.names == []
    tried = []
    for _ in range(5):
        before = bench.now
        while len(bench.names) == len(tried):
            bench.now += RETRY_SECONDS / 4
            bench.keeping.error = Unreachable("still away")
            bench.tick(1)
        tried.append(bench.now - before)
    assert tried == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS, 8 * RETRY_SECONDS,
                     LONGEST_RETRY_SECONDS]  # fmt: skip


@pytest.fixture
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_hangup_has_the_file_read_at_once_and_stops_nothing(bench: Bench) -> None:
    bench.alarm.listen(reloads=True)
    bench.write("", "q")
    with bench.alarm.interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
    assert bench.alarm.wait(0)
    bench.tick(1)
    assert bench.names == [["q"]]
    assert not bench.alarm.stopped
