"""Workers as tasks of Azure Batch: one task a worker, in one long-lived job, on a given pool.

Importing this package loads no SDK; making and asking the backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.azure_batch.options import AzureSettings, options
from backends.base import Backend, Context

__all__ = ["create", "options"]


def create(context: Context, settings: Mapping[str, Any]) -> Backend:
    """The backend, from the values of its options. Raises Invalid; asks nothing of Azure."""
    from backends.azure_batch.backend import AzureBatch

    return AzureBatch(context, AzureSettings.read(settings))
