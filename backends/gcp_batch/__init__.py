"""Workers as tasks of GCP Batch: one job for each worker, or for each row of workers.

Importing this package loads no SDK; making and asking the backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.base import Backend, Context
from backends.gcp_batch.options import GcpSettings, options

__all__ = ["create", "lifetime_seconds", "options"]


def lifetime_seconds(settings: Mapping[str, Any]) -> float | None:
    """Until Batch ends a task."""
    hours = settings.get("max_run_hours")
    return None if hours is None else float(hours * 3600)


def create(context: Context, settings: Mapping[str, Any]) -> Backend:
    """The backend, from the values of its options. Raises Invalid; asks nothing of Google."""
    from backends.gcp_batch.backend import GcpBatch

    return GcpBatch(context, GcpSettings.read(settings))
