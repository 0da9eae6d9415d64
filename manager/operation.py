"""What stands around one manager while it keeps its pool: watchdog, systemd, metrics, health.

Decides nothing; a manager without it would keep the pool just as well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from backends.base import Backend
from manager.alarm import Alarm
from manager.governor import CallsWitness, GovernedBackend, Governor, Governors
from manager.money import Account, Budget, Period
from manager.policy import PoolConfig
from manager.pulse import Pulse
from manager.systemd import READY, Systemd
from manager.watchdog import Watchdog
from manager.witness import Witness
from manager.wrapped import WatchedBackend

if TYPE_CHECKING:
    from manager.metrics import Metrics, PoolMetrics

log = logging.getLogger("manager")


class Operation(Witness):
    """Of the pools that one process keeps. A context: what it started ends with it."""

    def __init__(self, environ: Mapping[str, str], alarm: Alarm) -> None:
        self.systemd = Systemd(environ)
        self.pulse = Pulse()
        self._alarm = alarm
        self._governors = Governors()
        self._metrics: Metrics | None = None
        self._by_pool: dict[str, PoolMetrics] = {}
        self._paces: dict[str, Governor] = {}
        self.kept: Collection[str] = ()
        """The names of the pools that are kept now."""
        self._said = ""
        self._stack = ExitStack()

    def __enter__(self) -> Operation:
        self._stack.enter_context(Watchdog(self.pulse, self.systemd))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def serve(self, host: str, port: int) -> None:
        """Count from now on, and serve what is counted. Raises CannotServe."""
        from prometheus_client import CollectorRegistry

        from manager.metrics import Metrics
        from manager.metrics_server import MetricsServer

        registry = CollectorRegistry()
        self._metrics = Metrics(registry)
        server = self._stack.enter_context(MetricsServer(host, port, registry, self.pulse))
        log.info("metrics are at %s/metrics", server.address)

    # Which pools

    def keeps(self, pool: str, backend_name: str, config: PoolConfig) -> None:
        """A pool is kept from now on, or with other limits."""
        if self._metrics is None:
            return
        from manager.metrics import PoolMetrics

        if pool not in self._by_pool:
            self._by_pool[pool] = PoolMetrics(self._metrics, pool, backend_name)
        self._by_pool[pool].configured(config)

    def keeps_no_more(self, pool: str) -> None:
        self._paces.pop(pool, None)
        if self._by_pool.pop(pool, None) is not None and self._metrics is not None:
            self._metrics.forget(pool)

    def around(self, pool: str, backend_name: str, backend: Backend) -> Backend:
        """The backend of a pool that is kept: metered when somebody looks, no faster than its
        account allows, and watched."""
        governor = self._governors.of(backend_name, backend, pool)
        metrics = self._by_pool.get(pool)
        if metrics is not None:
            from manager.metrics import MeteredBackend

            backend = MeteredBackend(backend, metrics)
        if governor is not None:
            self._paces[pool] = governor
            backend = GovernedBackend(backend, governor, self._pause, metrics or CallsWitness())
        return WatchedBackend(backend, self.pulse)

    def _pause(self, seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            self._alarm.pause(seconds)
        else:  # the alarm is waited for by the main thread alone, which does not wait for this one
            threading.Event().wait(seconds)

    def leased(self, pool: str, is_held: Callable[[], bool]) -> None:
        """A pool is ours by a lease; ``is_held`` says whether it still is, to any thread."""
        if pool in self._by_pool:
            self._by_pool[pool].leased(is_held)

    def configured(self, *, is_good: bool) -> None:
        """The pools file was read: it holds from now on, or what it said before does."""
        if self._metrics is not None:
            self._metrics.is_config_good.set(is_good)

    def say(self, error: Exception | None = None) -> None:
        """To `systemctl status`: what is kept, or why nothing can be done now."""
        kind = "pool" if len(self.kept) == 1 else "pools"
        doing = str(error) if error is not None else f"keeping the {kind} {', '.join(self.kept)}"
        if doing != self._said:
            self.systemd.tell(READY, f"STATUS={' '.join(doing.split())}")
        self._said = doing

    # Who wants to know

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Of the ticks of all pools."""
        return (self,)

    def witnesses_of(self, pool: str) -> tuple[Witness, ...]:
        """Of what is seen and decided in one pool."""
        metrics = self._by_pool.get(pool)
        return (self.pulse,) if metrics is None else (self.pulse, metrics)

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        self.pulse.ticked(seconds, error, wait_seconds)
        self.say(error)
        self._governors.ticked(seconds, error, wait_seconds)
        for pool, metrics in self._by_pool.items():
            metrics.ticked(seconds, error, wait_seconds)
            if pool in self._paces:
                metrics.paced(self._paces[pool].calls_per_second)

    def paid(self, accounts: Mapping[str, Account], budget: Budget, now: float) -> None:
        if self._metrics is None:
            return
        for pool, account in accounts.items():
            if pool in self._by_pool:
                self._by_pool[pool].paid_for(account, now)
        for period in Period:
            most = budget.of(period)
            if most is None:  # no budget, or none any more
                self._metrics.whole_budget.remove(period)
            else:
                self._metrics.whole_budget.labels(period).set(most)
