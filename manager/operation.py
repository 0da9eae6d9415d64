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
    from manager.metrics import Metrics

log = logging.getLogger("manager")


class Operation:
    """Of one pool. A context: what it started ends with it."""

    def __init__(
        self, pool: str, backend_name: str, config: PoolConfig, environ: Mapping[str, str]
    ) -> None:
        self.systemd = Systemd(environ)
        self._pulse = Pulse()
        self._metrics: Metrics | None = None
        self._pool = pool
        self._backend_name = backend_name
        self._config = config
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
        self._metrics = Metrics(registry, self._pool, self._backend_name, self._config)
        server = self._stack.enter_context(MetricsServer(host, port, registry, self._pulse))
        log.info("metrics are at %s/metrics", server.address)

    def around(self, backend: Backend) -> Backend:
        """The backend, watched, and metered when somebody looks."""
        if self._metrics is not None:
            from manager.metrics import MeteredBackend

            backend = MeteredBackend(backend, self._metrics)
        return WatchedBackend(backend, self._pulse)

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        return (self._pulse,) if self._metrics is None else (self._pulse, self._metrics)
