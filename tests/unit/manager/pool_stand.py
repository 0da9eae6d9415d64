"""One pool over fakes, whose manager can be killed between any two steps and started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer, SolePool

from backends.base import JobResources
from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import Alarm
from manager.command import WorkerOptions
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.launcher import Launcher
from manager.ledger import Ledger, Outcome, Pool
from manager.observe import Observer
from manager.policy import PoolConfig
from manager.queue import QueueConfig


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


class Stand:
    """One pool over fakes, whose manager can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = FakeServer(features="tokens", root=True)
        self.backend = FakeBackend()
        self.now = NOW
        self.settings: dict[str, str] = {}
        self.ledger: Ledger | None = None
        self._client = Client(
            "http://s", Credentials(token="t"), transport=httpx.MockTransport(self.server)
        )

    def start(
        self,
        low: int = 0,
        high: int = 3,
        sleep_seconds: float = 5.0,
        *,
        is_proven: bool = True,
    ) -> SolePool:
        """A new manager over the same ledger, as after a crash."""
        self.close_ledger()
        self.ledger = Ledger(self.directory / "ledger.db", clock=self.clock)
        self.ledger.describe(Pool("p", "fake", "http://s", self.settings))
        if is_proven:
            self.ledger.prove("p", NOW)
        queue = QueueConfig(cpus=1, gpus=0, memory_bytes=2 * GIB)
        keeper = PoolKeeper(
            pool="p",
            config=PoolConfig(queue.shape, low, high),
            observer=Observer(self._client, self.backend, "p", queue),
            backend=self.backend,
            launcher=Launcher(
                "http://s", WorkerOptions(), JobResources(1, 0, 2 * GIB), Credentials(token="t")
            ),
            client=self._client,
            ledger=self.ledger,
            journal=Journal(self.directory / "p.jsonl", "p"),
            alarm=Alarm(),
            clock=self.clock,
        )
        return SolePool(keeper, self._no_feed, sleep_seconds=sleep_seconds)

    def clock(self) -> float:
        return self.now

    def shapes(self, count: int) -> None:
        self.server.shapes = []
        self.server.bundles = []
        self.server.stage(count)

    def outcomes(self) -> list[Outcome | None]:
        assert self.ledger is not None
        return [launch.outcome for launch in reversed(self.ledger.recent("p", 100))]

    def close_ledger(self) -> None:
        if self.ledger is not None:
            self.ledger.close()

    def close(self) -> None:
        self.close_ledger()
        self._client.close()

    @staticmethod
    def _no_feed() -> Any:
        raise AssertionError("the server offers no changes")


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool) -> None:
    whole: Callable[..., Any] = getattr(owner, name)

    def killed(*arguments: Any, **named: Any) -> Any:
        if after:
            whole(*arguments, **named)
        raise KilledError

    monkeypatch.setattr(owner, name, killed)
