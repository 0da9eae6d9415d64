"""Workers as jobs of AWS Batch: one array job a launch, its children the workers, on one queue.

Importing this package loads no SDK; making the backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.aws_batch.options import AwsSettings, options
from backends.base import Backend, Context

__all__ = ["create", "lifetime_seconds", "options"]


def lifetime_seconds(settings: Mapping[str, Any]) -> float | None:
    """Until Batch ends an attempt."""
    seconds: float | None = settings.get("timeout")
    return seconds


def create(context: Context, settings: Mapping[str, Any]) -> Backend:
    """The backend, from the values of its options. Raises Invalid; asks nothing of AWS."""
    from backends.aws_batch.backend import AwsBatch

    return AwsBatch(context, AwsSettings.read(settings))
