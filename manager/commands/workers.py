"""`worker-manager logs` and `worker-manager terminate`: single workers, by name.

Only our own: those that the ledger of this home knows, asked of the backend of their pool.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from manager.options import connection_options

if TYPE_CHECKING:
    from backends.base import Backend
    from manager.ledger import Launch, Ledger


def logs_command() -> click.Command:
    return click.Command(
        "logs",
        params=[
            *connection_options(),
            click.Argument(["worker"], metavar="WORKER"),
        ],
        callback=_logs,
        help="What a worker printed. WORKER is its name, as `status` shows it.",
    )


def terminate_command() -> click.Command:
    return click.Command(
        "terminate",
        params=[
            *connection_options(),
            click.Argument(["workers"], nargs=-1, required=True, metavar="WORKER…"),
        ],
        callback=_terminate,
        help=(
            "Ask workers to end; does not wait until they have. Asked again later, one that did "
            "not follow is ended by force. A pool below its minimum launches others."
        ),
    )


def _logs(home: str | None, worker: str, verbose: bool) -> int:
    """Raises UsageError, BackendError."""
    with _Workers(home) as ours:
        launch, backend = ours.find(worker)
        text = backend.logs(launch.job_id or str(launch.key))
    print(text, end="" if text.endswith("\n") else "\n")
    return 0


def _terminate(home: str | None, workers: Sequence[str], verbose: bool) -> int:
    """Raises UsageError before anything is asked to end."""
    failed = False
    with _Workers(home) as ours:
        found = {worker: ours.find(worker) for worker in dict.fromkeys(workers)}
        by_backend: dict[Backend, list[Launch]] = {}
        for launch, backend in found.values():
            by_backend.setdefault(backend, []).append(launch)
        for backend, launches in by_backend.items():
            names = {launch.job_id or str(launch.key): str(launch.key) for launch in launches}
            for job_id, error in backend.terminate(list(names)).items():
                failed = failed or error is not None
                if error is not None:
                    print(f"worker-manager: {names[job_id]}: {error}", file=sys.stderr)
                else:
                    print(f"{names[job_id]} was asked to end")
    return 1 if failed else 0


class _Workers:
    """The workers that this home ever launched, by name."""

    def __init__(self, home: str | None) -> None:
        from bundles.home import Home
        from manager.installation import Installation

        self._installation = Installation(Home.find(home))
        self._ledger: Ledger | None = None
        self._backends: dict[str, Backend] = {}

    def __enter__(self) -> _Workers:
        from manager.ledger import Ledger

        self._ledger = Ledger.read_only(self._installation.ledger_path)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def find(self, worker: str) -> tuple[Launch, Backend]:
        """The launch of that name, and the backend of its pool. Raises UsageError for a name that
        is not in the ledger, and BackendError."""
        from backends.base import LaunchKey
        from bundles.errors import UsageError

        key = LaunchKey.parse(worker)
        launch = self._ledger.launch(key) if key is not None and self._ledger is not None else None
        if launch is None:
            raise UsageError(
                f"no manager of {self._installation.home.path} launched a worker {worker!r}: "
                "`worker-manager status` shows those there are, --home says where else to look"
            )
        return launch, self._backend(launch.key.pool)

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            assert self._ledger is not None
            pool = next(pool for pool in self._ledger.pools() if pool.name == name)
            self._backends[name] = self._installation.backend(pool, os.environ)
        return self._backends[name]
