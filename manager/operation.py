"""What stands around one manager while it keeps its pool: watchdog, systemd, metrics, health.

Decides nothing; a manager without it would keep the pool just as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from backends.base import Backend
from manager.policy import PoolConfig
from manager.pulse import Pulse
from manager.systemd import Systemd
from manager.watchdog import Watchdog
from manager.witness import Witness
from manager.wrapped import WatchedBackend

if TYPE_CHECKING:
    from manager.metrics import Metrics, PoolMetrics

log = logging.getLogger("manager")


class Operation:
    """Of the pools that one process keeps. A context: what it started ends with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.systemd = Systemd(environ)
        self._pulse = Pulse()
        self._metrics: Metrics | None = None
        self._by_pool: dict[str, PoolMetrics] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Operation:
        self._stack.enter_context(Watchdog(self._pulse, self.systemd))
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
        server = self._stack.enter_context(MetricsServer(host, port, registry, self._pulse))
        log.info("metrics are at %s/metrics", server.address)

    def keeps(self, pool: str, backend_name: str, config: PoolConfig) -> None:
        """A pool is kept from now on, or with other limits."""
        if self._metrics is None:
            return
        from manager.metrics import PoolMetrics

        if pool not in self._by_pool:
            self._by_pool[pool] = PoolMetrics(self._metrics, pool, backend_name)
        self._by_pool[pool].configured(config)

    def keeps_no_more(self, pool: str) -> None:
        if self._by_pool.pop(pool, None) is not None and self._metrics is not None:
            self._metrics.forget(pool)

    def around(self, pool: str, backend: Backend) -> Backend:
        """The backend of a pool that is kept, watched, and metered when somebody looks."""
        if pool in self._by_pool:
            from manager.metrics import MeteredBackend

            backend = MeteredBackend(backend, self._by_pool[pool])
        return WatchedBackend(backend, self._pulse)

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Of the ticks of all pools."""
        return (self._pulse, *self._by_pool.values())

    def witnesses_of(self, pool: str) -> tuple[Witness, ...]:
        """Of what is seen and decided in one pool."""
        metrics = self._by_pool.get(pool)
        return (self._pulse,) if metrics is None else (self._pulse, metrics)
