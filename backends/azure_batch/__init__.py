"""Workers as tasks of Azure Batch: one task a worker, in one long-lived job, on a given pool.

Importing this package loads no SDK; making and asking the backend does.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from backends.azure_batch.options import AzureSettings, options
from backends.base import Backend, Context, Invalid

__all__ = ["create", "options"]

_LIBRARIES = ("azure-batch", "azure-identity", "azure-storage-blob")


def create(context: Context, settings: Mapping[str, Any]) -> Backend:
    """The backend, from the values of its options. Raises Invalid; asks nothing of Azure."""
    from backends.azure_batch.backend import AzureBatch

    for library in _LIBRARIES:
        try:
            version(library)
        except PackageNotFoundError:
            raise Invalid(
                f"Azure Batch needs {library}: pip install 'worker-manager[azure]'"
            ) from None
    return AzureBatch(context, AzureSettings.read(settings))
