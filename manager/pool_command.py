"""`worker-manager <backend>`: keeps one pool of workers, or says what it would do."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from backends import registry
from backends.base import Backend, JobResources
from bundles.errors import UsageError
from bundles.home import (
    Credentials,
    Home,
    find_credentials,
    find_server,
    read_password_file,
)
from manager.alarm import Alarm, Stopped
from manager.command import WorkerOptions
from manager.installation import Installation, default_pool
from manager.options import check_together, pool_options
from manager.policy import Decision, PoolConfig, decide
from manager.snapshot import Snapshot

if TYPE_CHECKING:
    from bundles.client import Client
    from manager.observe import Observer

log = logging.getLogger("manager")


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as the options describe it; nothing has been asked of anyone yet."""

    name: str
    backend_name: str
    server: str
    credentials: Credentials
    installation: Installation
    config: PoolConfig
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

    def client(self) -> Client:
        from bundles.client import Client

        return Client(self.server, self.credentials)

    def observer(self, client: Client, backend: Backend) -> Observer:
        from manager.observe import Observer, QueueConfig

        queue = QueueConfig(
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            memory_bytes=self.resources.memory_bytes,
            search=self.settings["search"],
            tag=self.worker.tag,
            tag_exclusive=self.worker.tag_exclusive,
            prefilter=not self.settings["no_prefilter"],
        )
        return Observer(client, backend, self.name, queue, os.environ)


def pool_command(backend_name: str) -> click.Command:
    """The command of one backend, with the common options and its own."""
    entry = registry.ENTRIES[backend_name]
    own = registry.load(backend_name).options()

    def run(**settings: Any) -> int:
        return _run(backend_name, settings)

    return click.Command(
        backend_name,
        params=[*own, *pool_options()],
        callback=run,
        help=f"{entry.summary}\n\nOptions may stand on either side of the backend's name.",
        short_help=entry.summary,
    )


def _run(backend_name: str, settings: dict[str, Any]) -> int:
    pool = _pool(backend_name, settings)
    if settings["plan"]:
        return _plan(pool, as_json=settings["output"] == "json")
    if settings["output"] != "text":
        raise click.UsageError("--output json goes with --plan")
    alarm = Alarm()
    alarm.listen()
    return _keep(pool, alarm)


def _pool(backend_name: str, settings: dict[str, Any]) -> Pool:
    """Raises UsageError and NotAuthenticated."""
    check_together(settings)
    home = Home.find(settings["home"])
    server = find_server(settings["server"], home)
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
    password_file = settings["password_file"]
    return Pool(
        name=settings["pool"] or default_pool(backend_name, server, home),
        backend_name=backend_name,
        server=server,
        credentials=(
            read_password_file(password_file) if password_file else find_credentials(server, home)
        ),
        installation=Installation(home),
        config=PoolConfig(
            min_workers=settings["min_workers"],
            max_workers=settings["max_workers"],
            min_seconds_between_workers=settings["min_seconds_between_workers"],
        ),
        worker=worker,
        settings=settings,
    )


# --plan


def _plan(pool: Pool, *, as_json: bool) -> int:
    """Print what the next tick would do. Changes nothing, anywhere."""
    from manager.ledger import Ledger

    with ExitStack() as stack:
        client = stack.enter_context(pool.client())
        ledger = Ledger.read_only(pool.installation.ledger_path)
        if ledger is not None:
            stack.enter_context(ledger)
        now = time.time()
        observation = pool.observer(client, pool.backend()).observe(ledger, now)
    snapshot = observation.snapshot
    decision = decide(snapshot, pool.config, now)
    if as_json:
        print(json.dumps(_plan_document(pool.name, snapshot, decision)))
    else:
        print(f"{pool.name}: {decision.summary()}")
        for reason in decision.reasons:
            print(f"  {'yes' if reason.held else 'no ':3} {reason.code:15} {reason.sentence}")
        print(
            f"  {snapshot.staged} staged, {snapshot.pending} pending, {snapshot.active} active; "
            "nothing was changed"
        )
    return 0


def _plan_document(pool: str, snapshot: Snapshot, decision: Decision) -> dict[str, Any]:
    return {
        "launch": {pool: decision.launch},
        "end": list(decision.end),
        "reasons": [reason.sentence for reason in decision.reasons],
        "staged": snapshot.staged,
        "pending": snapshot.pending,
        "active": snapshot.active,
    }


# Keeping a pool


def _keep(pool: Pool, alarm: Alarm) -> int:
    """Hold the pool's lock and tick, once or until told to stop."""
    import sqlite3

    from bundles.errors import BundlesError
    from manager.feed import ChangeFeed
    from manager.journal import Journal
    from manager.ledger import Ledger
    from manager.ledger import Pool as PoolRow
    from manager.lock import PoolLock
    from manager.loop import Launcher, PoolManager

    settings = pool.settings
    try:
        pool.installation.create()
        lock = PoolLock(pool.installation.lock_path(pool.name))
    except OSError as error:
        raise UsageError(f"the home cannot be used: {error}") from error
    with ExitStack() as stack:
        stack.callback(lock.release)
        if not lock.try_take():
            log.info(
                "another manager (process %s) keeps the pool %s: waiting for it to end; "
                "--pool NAME keeps one of another name",
                lock.holder(),
                pool.name,
            )
            try:
                with alarm.interruptible():
                    lock.take()
            except Stopped:
                return 0
        client = stack.enter_context(pool.client())
        row = PoolRow(pool.name, pool.backend_name, pool.server, _kept_settings(pool))
        try:
            ledger = stack.enter_context(Ledger(pool.installation.ledger_path))
            ledger.describe(row)
        except sqlite3.Error as error:
            raise BundlesError(
                f"the ledger {pool.installation.ledger_path} cannot be used: {error}"
            ) from error
        backend = pool.backend()
        manager = PoolManager(
            pool=pool.name,
            config=pool.config,
            observer=pool.observer(client, backend),
            backend=backend,
            launcher=Launcher(pool.server, pool.worker, pool.resources, pool.credentials),
            client=client,
            ledger=ledger,
            journal=Journal(pool.installation.journal_path(pool.name), pool.name),
            alarm=alarm,
            make_feed=lambda: ChangeFeed(pool.client(), alarm),
            sleep_seconds=settings["sleep_time"],
            restart_after_seconds=settings["restart_after_seconds"],
        )
        log.info(
            "keeping %d to %d workers in the pool %s for %s",
            pool.config.min_workers,
            pool.config.max_workers,
            pool.name,
            pool.server,
        )
        if settings["once"]:
            try:
                decision = manager.tick()
            except Stopped:
                return 1
            log.info("%s", decision.summary())
            return 0
        restart = manager.run()
        log.info("%s: the workers stay", "restarting" if restart else "leaving")
    if restart:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


def _kept_settings(pool: Pool) -> dict[str, Any]:
    """What `status` needs to find the pool's jobs again, and people to know what it was.

    An option whose input a terminal would hide is a secret, and is kept nowhere.
    """
    left_out = {"home", "verbose", "output", "plan", "once", "temp_session", "password_file"}
    own = registry.load(pool.backend_name).options()
    left_out |= {option.name for option in own if option.name and option.hide_input}
    return {name: value for name, value in pool.settings.items() if name not in left_out}
