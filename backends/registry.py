"""Which backends there are, by name, and the options of each. Loads a backend when it is named.

Imports no backend, and so no SDK, before `load` is called: `worker-manager --help` reads this
table alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import click

from backends.base import Backend, Context


@dataclass(frozen=True, slots=True)
class Entry:
    """A backend as the command line sees it before it is loaded."""

    name: str
    module: str
    summary: str


class BackendModule(Protocol):
    """What the module of a backend offers at its top level, importable without its SDK."""

    def options(self) -> list[click.Option]:
        """The options of its own. Every backend has `cpus`, `gpus` and `memory_mb` among them."""
        ...

    def create(self, context: Context, settings: Mapping[str, Any]) -> Backend:
        """The backend, from the values of its options. Raises BackendError."""
        ...


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("local-process", "backends.local_process", "Workers as processes of this machine."),
        Entry("aws-batch", "backends.aws_batch", "Workers as jobs of AWS Batch."),
        Entry("local-docker", "backends.local_docker", "Workers as containers of this machine."),
        Entry("azure-batch", "backends.azure_batch", "Workers as tasks of Azure Batch."),
        Entry("slurm", "backends.slurm", "Workers as jobs of a Slurm cluster."),
    )
}


def load(name: str) -> BackendModule:
    """The module of a backend. Raises KeyError for a name that is not registered."""
    return cast(BackendModule, importlib.import_module(ENTRIES[name].module))
