"""`worker-manager <backend>`: keeps one pool of workers, or says what it would do."""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
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
from manager.log_format import complain, write_json
from manager.options import check_together, pool_options
from manager.policy import Decision, PoolConfig, decide
from manager.queue import QueueConfig
from manager.snapshot import Snapshot

if TYPE_CHECKING:
    from bundles.client import Client
    from manager.ledger import Ledger
    from manager.loop import Launcher
    from manager.observe import Observer

PREVIEWS_SHOWN = 3
LEAVING_SECONDS = 25.0
"""Ending the workers takes no longer: most who stop a service kill it after 30 s."""

log = logging.getLogger("manager")


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
        from manager.loop import Launcher

        return Launcher(self.server, self.worker, self.resources, self.credentials)

    def client(self) -> Client:
        from bundles.client import Client

        return Client(self.server, self.credentials)

    @property
    def queue(self) -> QueueConfig:
        return QueueConfig.from_settings(self.settings)

    @property
    def config(self) -> PoolConfig:
        return PoolConfig(
            shape=self.queue.shape,
            min_workers=self.settings["min_workers"],
            max_workers=self.settings["max_workers"],
            min_seconds_between_workers=self.settings["min_seconds_between_workers"],
        )

    def observer(self, client: Client, backend: Backend) -> Observer:
        from manager.observe import Observer

        return Observer(client, backend, self.name, self.queue, os.environ)


def pool_command(backend_name: str) -> click.Command:
    """The command of one backend, with the common options and its own."""
    entry = registry.find(backend_name)

    def run(**settings: Any) -> int:
        return _run(entry.name, settings)

    return click.Command(
        backend_name,
        params=[*every_option(entry)],
        callback=run,
        help=f"{entry.summary}\n\nOptions may stand on either side of the backend's name.",
        short_help=entry.summary,
    )


def every_option(entry: registry.Entry) -> list[click.Option]:
    """The options of a backend, and those of every pool. Raises BrokenBackend."""
    own = registry.load(entry.name).options()
    common = pool_options()
    taken = {option.name for option in common} & {option.name for option in own}
    if taken:
        names = ", ".join(sorted(name for name in taken if name))
        raise registry.BrokenBackend(
            f"the backend {entry.name} has options that every pool has already: {names}"
        )

    return [*own, *common]


def _run(backend_name: str, settings: dict[str, Any]) -> int:
    if settings["log_format"] == "json":
        write_json()
    pool = _pool(backend_name, settings)
    if settings["plan"]:
        return _plan(pool, as_json=settings["output"] == "json")
    if settings["dry_run"]:
        return _dry_run(pool)
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


# --plan


def _plan(pool: Pool, *, as_json: bool) -> int:
    """Print what the next tick would do. Changes nothing, anywhere."""
    from manager.ledger import Ledger

    backend = pool.backend()
    if not _is_usable(backend):
        return 2
    with ExitStack() as stack:
        client = stack.enter_context(pool.client())
        ledger = Ledger.read_only(pool.installation.ledger_path)
        if ledger is not None:
            stack.enter_context(ledger)
        now = time.time()
        observation = pool.observer(client, backend).observe(ledger, now)
        last = ledger.recent(pool.name, 1) if ledger is not None else []
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
        first = last[0].key.sequence + 1 if last else 1
        previews = _previews(pool, backend, decision.launch, first)
        for preview in previews[:PREVIEWS_SHOWN]:
            print(textwrap.indent(f"would submit:\n{textwrap.indent(preview, '  ')}", "  "))
        if len(previews) > PREVIEWS_SHOWN:
            print(f"  and {len(previews) - PREVIEWS_SHOWN} more like these")
    return 0


def _dry_run(pool: Pool) -> int:
    """Print what one launch would submit. Asks nobody anything."""
    for preview in _previews(pool, pool.backend(), 1, 1):
        print(preview)
    return 0


def _previews(pool: Pool, backend: Backend, number: int, first: int) -> list[str]:
    """What launching so many workers would submit, each text once; or why it would be refused."""
    from backends.base import LaunchKey, Preview
    from bundles.home import TOKEN_VARIABLE

    if not number:
        return []
    keys = LaunchKey.make_row(pool.name, first, number)
    # Only the name is shown of a secret: there is no need to ask the server for one.
    requests = pool.launcher().requests(keys, backend, {TOKEN_VARIABLE: "…"})
    texts: dict[str, None] = {}
    for result in backend.launch(requests, dry_run=True):
        texts[result.text if isinstance(result, Preview) else f"nothing: {result}"] = None
    return list(texts)


def _plan_document(pool: str, snapshot: Snapshot, decision: Decision) -> dict[str, Any]:
    return {
        "launch": {pool: decision.launch},
        "end": list(decision.end),
        "reasons": [reason.sentence for reason in decision.reasons],
        "staged": snapshot.staged,
        "pending": snapshot.pending,
        "active": snapshot.active,
    }


def _is_usable(backend: Backend) -> bool:
    """Whether a launch can work at all. Says a line for each thing that is wrong: what no waiting
    would mend as an error, the rest as a warning."""
    from backends.base import Invalid, Unauthorized

    usable = True
    for finding in backend.check():
        if finding.error is None:
            continue
        line = f"{finding.subject}: {finding.sentence}"
        line += f": {finding.remedy}" if finding.remedy else ""
        if isinstance(finding.error, Invalid | Unauthorized):
            usable = False
            complain(line)
        else:
            log.warning("%s", line)
    return usable


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
    from manager.loop import PoolManager
    from manager.operation import Operation
    from manager.systemd import READY, STOPPING

    settings = pool.settings
    operation = Operation(pool.name, pool.backend_name, pool.config, os.environ)
    try:
        pool.installation.create()
        lock = PoolLock(pool.installation.lock_path(pool.name))
    except OSError as error:
        raise UsageError(f"the home cannot be used: {error}") from error
    with ExitStack() as stack:
        stack.callback(lock.release)
        stack.enter_context(operation)
        if not lock.try_take():
            log.info(
                "another manager (process %s) keeps the pool %s: waiting for it to end; "
                "--pool NAME keeps one of another name",
                lock.holder(),
                pool.name,
            )
            operation.systemd.tell(READY, "STATUS=waiting: another manager keeps this pool")
            try:
                with alarm.interruptible():
                    lock.take()
            except Stopped:
                return 0
        if settings["metrics_port"] is not None:
            operation.serve(settings["metrics_host"], settings["metrics_port"])
        client = stack.enter_context(pool.client())
        row = PoolRow(pool.name, pool.backend_name, pool.server, _kept_settings(pool))
        try:
            ledger = stack.enter_context(Ledger(pool.installation.ledger_path))
            ledger.describe(row)
        except sqlite3.Error as error:
            raise BundlesError(
                f"the ledger {pool.installation.ledger_path} cannot be used: {error}"
            ) from error
        backend = operation.around(pool.backend())
        try:
            with alarm.interruptible():
                if not _is_usable(backend):
                    return 2
        except Stopped:
            return 0
        manager = PoolManager(
            pool=pool.name,
            config=pool.config,
            observer=pool.observer(client, backend),
            backend=backend,
            launcher=pool.launcher(),
            client=client,
            ledger=ledger,
            journal=Journal(pool.installation.journal_path(pool.name), pool.name),
            alarm=alarm,
            make_feed=lambda: ChangeFeed(pool.client(), alarm),
            sleep_seconds=settings["sleep_time"],
            restart_after_seconds=settings["restart_after_seconds"],
            failures_allowed=settings.get("exit_after_num_failed"),
            witnesses=operation.witnesses,
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
        operation.systemd.tell(READY, f"STATUS=keeping the pool {pool.name}")
        restart = manager.run()
        if settings["terminate_on_exit"] and not restart:
            operation.systemd.tell(STOPPING, "STATUS=ending the workers")
            _end_workers(pool.name, backend, ledger, alarm)
        else:
            if not restart:  # systemd would have this process end, and not start anew
                operation.systemd.tell(STOPPING)
            log.info("%s: the workers stay", "restarting" if restart else "leaving")
    if restart:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


def _end_workers(pool: str, backend: Backend, ledger: Ledger, alarm: Alarm) -> None:
    """Raises WorkersLeft. Another signal ends the process at once."""
    from manager.terminate_all import Termination
    from manager.watchdog import at_most

    alarm.let_go()
    with at_most(LEAVING_SECONDS):
        Termination(backend, ledger, pool).carry_out()


def _kept_settings(pool: Pool) -> dict[str, Any]:
    """What `status` needs to find the pool's jobs again, and people to know what it was.

    An option whose input a terminal would hide is a secret, and is kept nowhere.
    """
    left_out = {"home", "verbose", "output", "plan", "dry_run", "once", "temp_session"}
    left_out |= {"password_file", "metrics_host", "metrics_port", "log_format"}
    own = registry.load(pool.backend_name).options()
    left_out |= {option.name for option in own if option.name and option.hide_input}
    return {name: value for name, value in pool.settings.items() if name not in left_out}
