"""Which backends there are, by name: ours, and those that other packages install.

A package offers a backend by an entry point of the group `worker_manager.backends`, whose object is
a BackendModule. Imports no backend, and so no SDK, before `load` is called: `worker-manager --help`
reads names alone.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from backends.base import Backend, Context, Invalid

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "worker_manager.backends"
REQUIRED = ("cpus", "gpus", "memory_mb")
"""Settings that the manager reads of every backend."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A backend as the command line sees it before it is loaded.

    ``aliases``: further names, which are not shown. ``plugin``: where it comes from, None: ours.
    """

    name: str
    module: str
    summary: str
    aliases: tuple[str, ...] = ()
    plugin: EntryPoint | None = None


class BackendModule(Protocol):
    """What the module of a backend offers at its top level, importable without its SDK."""

    def options(self) -> list[click.Option]:
        """The options of its own. Every backend has `cpus`, `gpus` and `memory_mb` among them."""
        ...

    def create(self, context: Context, settings: Mapping[str, Any]) -> Backend:
        """The backend, from the values of its options. Raises BackendError."""
        ...

    # A module may also say `lifetime_seconds(settings) -> float | None`: see the function here.


class BrokenBackend(Invalid):
    """A backend that cannot be loaded; the message says which, whose it is, and what is missing."""


OURS = (
    Entry("local-process", "backends.local_process", "Workers as processes of this machine."),
    Entry("local-docker", "backends.local_docker", "Workers as containers of this machine."),
    Entry("slurm", "backends.slurm", "Workers as jobs of a Slurm cluster.", ("slurm-batch",)),
    Entry("aws-batch", "backends.aws_batch", "Workers as jobs of AWS Batch."),
    Entry("azure-batch", "backends.azure_batch", "Workers as tasks of Azure Batch."),
    Entry("gcp-batch", "backends.gcp_batch", "Workers as tasks of GCP Batch."),
)


@functools.cache
def entries() -> dict[str, Entry]:
    """Every backend by name. A plugin's name that is taken by one of ours, or by an earlier plugin,
    is not in it."""
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in OURS}
    taken = {*found, *(alias for entry in OURS for alias in entry.aliases)}
    for plugin in sorted(entry_points(group=GROUP), key=lambda plugin: plugin.name):
        if plugin.name not in taken:
            taken.add(plugin.name)
            summary = f"From {_distribution(plugin)}."
            found[plugin.name] = Entry(plugin.name, plugin.value, summary, plugin=plugin)
    return found


def names() -> list[str]:
    """Every name that a backend may be called by, aliases included."""
    return [name for entry in entries().values() for name in (entry.name, *entry.aliases)]


def find(name: str) -> Entry:
    """The entry of a name or an alias. Raises KeyError for a name that is not registered."""
    for entry in entries().values():
        if name == entry.name or name in entry.aliases:
            return entry
    raise KeyError(name)


def load(name: str) -> BackendModule:
    """The module of a backend. Raises KeyError for a name that is not registered, and BrokenBackend
    for a plugin that cannot be loaded or does not offer what a backend has to."""
    entry = find(name)
    if entry.plugin is None:
        return cast(BackendModule, importlib.import_module(entry.module))
    whose = f"the backend {name} ({_distribution(entry.plugin)})"
    try:
        module = entry.plugin.load()
        offered = {option.name for option in module.options()}
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise BrokenBackend(
            f"{whose} cannot be loaded: {type(error).__name__}: {error}; repair or uninstall it"
        ) from error
    missing = [setting for setting in REQUIRED if setting not in offered]
    missing += [] if callable(getattr(module, "create", None)) else ["create"]
    if missing:
        raise BrokenBackend(f"{whose} offers no {', '.join(missing)}: see docs/write-a-backend.md")
    return cast(BackendModule, module)


def lifetime_seconds(name: str, settings: Mapping[str, Any]) -> float | None:
    """How long a worker with these settings lives at most, as far as the module of the backend says
    (`lifetime_seconds(settings)`, which it need not have); None: no limit is known. ``settings``
    may be those of an earlier version, without some."""
    try:
        said = getattr(load(name), "lifetime_seconds", None)
    except (KeyError, BrokenBackend):
        return None
    return cast(float | None, said(settings)) if said is not None else None


def _distribution(plugin: EntryPoint) -> str:
    package = plugin.dist
    return f"{package.name} {package.version}" if package is not None else plugin.value
