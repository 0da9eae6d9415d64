"""One pool as its options describe it, and what is made of it. Asks nobody anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from backends import registry
from backends.base import Backend, JobResources
from bundles.home import (
    Credentials,
    Home,
    find_credentials,
    find_server,
    read_password_file,
)
from manager.command import WorkerOptions
from manager.installation import Installation, default_pool
from manager.options import check_together
from manager.policy import PoolConfig
from manager.queue import QueueConfig

if TYPE_CHECKING:
    from bundles.client import Client
    from manager.launcher import Launcher
    from manager.ledger import Pool as PoolRow
    from manager.observe import Observer


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as the options describe it; nothing has been asked of anyone yet."""

    name: str
    backend_name: str
    server: str
    credentials: Credentials
    installation: Installation
    worker: WorkerOptions
    settings: Mapping[str, Any]

    @property
    def resources(self) -> JobResources:
        return JobResources(
            cpus=self.settings["cpus"],
            gpus=self.settings["gpus"],
            memory_bytes=self.settings["memory_mb"] * 1024**2,
        )

    def backend(self) -> Backend:
        """Raises BackendError."""
        context = self.installation.context(
            self.name, os.environ, self.settings["worker_work_dir_prefix"]
        )
        return registry.load(self.backend_name).create(context, self.settings)

    def launcher(self) -> Launcher:
        from manager.launcher import Launcher

        life = registry.lifetime_seconds(self.backend_name, self.settings)
        return Launcher(self.server, self.worker, self.resources, self.credentials, life)

    def client(self) -> Client:
        from bundles.client import Client

        return Client(self.server, self.credentials)

    @property
    def queue(self) -> QueueConfig:
        return QueueConfig.from_settings(self.backend_name, self.settings)

    @property
    def config(self) -> PoolConfig:
        return config_of(self.backend_name, self.settings)

    def kept_settings(self) -> dict[str, Any]:
        """What `status` needs to find the pool's jobs again, and people to know what it was.

        An option whose input a terminal would hide is a secret, and is kept nowhere.
        """
        left_out = {"home", "verbose", "output", "plan", "dry_run", "once", "temp_session"}
        left_out |= {"password_file", "metrics_host", "metrics_port", "log_format"}
        own = registry.load(self.backend_name).options()
        left_out |= {option.name for option in own if option.name and option.hide_input}
        return {name: value for name, value in self.settings.items() if name not in left_out}

    def row(self) -> PoolRow:
        """As the ledger keeps it."""
        from manager.ledger import Pool as PoolRow

        return PoolRow(self.name, self.backend_name, self.server, self.kept_settings())

    def observer(self, client: Client, backend: Backend) -> Observer:
        from manager.observe import Observer

        return Observer(client, backend, self.name, self.queue)


def config_of(backend_name: str, settings: Mapping[str, Any]) -> PoolConfig:
    """What the options of a pool say of how many workers it shall have."""
    return PoolConfig(
        shape=QueueConfig.from_settings(backend_name, settings).shape,
        min_workers=settings["min_workers"],
        max_workers=settings["max_workers"],
        min_seconds_between_workers=settings["min_seconds_between_workers"],
        max_launches_per_minute=settings["max_launches_per_minute"],
        patience_seconds=settings.get("patience_seconds"),
        drain_grace_seconds=settings["drain_grace_seconds"],
        registration_seconds=settings["registration_seconds"],
    )


def make_pool(backend_name: str, settings: dict[str, Any]) -> Pool:
    """Raises UsageError and NotAuthenticated."""
    check_together(settings)
    home = Home.find(settings["home"])
    server = find_server(settings["server"], home)
    worker = worker_of(settings)
    password_file = settings["password_file"]
    return Pool(
        name=settings["pool"] or default_pool(backend_name, server, home),
        backend_name=backend_name,
        server=server,
        credentials=(
            read_password_file(password_file) if password_file else find_credentials(server, home)
        ),
        installation=Installation(home),
        worker=worker,
        settings=settings,
    )


def worker_of(settings: Mapping[str, Any]) -> WorkerOptions:
    """What the options say of every worker. Raises UsageError."""
    worker = WorkerOptions(
        executable=settings["worker_executable"],
        tag=settings["worker_tag"],
        group=settings["worker_group"],
        idle_seconds=settings["worker_idle_seconds"],
        exit_after_num_runs=settings["worker_exit_after_num_runs"],
        download_dependencies_max_retries=settings["worker_download_dependencies_max_retries"],
        max_work_dir_size=settings["worker_max_work_dir_size"],
        delete_work_dir_on_exit=settings["worker_delete_work_dir_on_exit"],
        exit_on_exception=settings["worker_exit_on_exception"],
        tag_exclusive=settings["worker_tag_exclusive"],
        pass_down_termination=settings["worker_pass_down_termination"],
        checkin_frequency_seconds=settings["worker_checkin_frequency_seconds"],
        shared_memory_size_gb=settings["worker_shared_memory_size_gb"],
        preemptible=settings["worker_preemptible"],
    )
    try:
        if not worker.command(shares_files=True):
            raise ValueError("it is empty")
    except ValueError as error:
        raise click.UsageError(
            f"--worker-executable {worker.executable!r} is not a command: {error}"
        ) from error
    return worker
