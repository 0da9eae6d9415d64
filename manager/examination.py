"""What is looked at before the first launch, each thing asked for once, and what a check says.

Not for what is checked: checkup.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast

from backends import registry
from backends.base import (
    Backend,
    BackendError,
    Invalid,
    Job,
)
from bundles.client import Client
from bundles.errors import BundlesError
from bundles.home import (
    Credentials,
    Home,
    find_credentials,
    find_server,
    read_password_file,
)
from manager.command import WorkerOptions
from manager.installation import Installation, default_pool
from manager.ledger import Ledger, PoolRecord
from manager.queue import QueueConfig
from manager.staged import StagedBundles, demand_of

if TYPE_CHECKING:
    from manager.capacity import Need

T = TypeVar("T")


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but maybe not as meant; or it could not be looked at."""
    FAIL = "fail"
    """No worker would do any work."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found, and what a person can do about it ("" when all is well)."""

    status: Status
    sentence: str
    remedy: str = ""


def ok(sentence: str) -> Verdict:
    return Verdict(Status.OK, sentence)


def warn(sentence: str, remedy: str) -> Verdict:
    return Verdict(Status.WARN, sentence, remedy)


def fail(sentence: str, remedy: str) -> Verdict:
    return Verdict(Status.FAIL, sentence, remedy)


@dataclass
class Examination:
    """What the checks look at: each thing is asked for once, whether it answers or fails.

    ``missing``: the options of the backend that it cannot do without and that were not given.
    The attributes raise what asking raised; ``close`` ends what was opened.
    """

    backend_name: str
    settings: Mapping[str, Any]
    worker: WorkerOptions
    environ: Mapping[str, str]
    missing: tuple[str, ...] = ()
    connect: Callable[[str, Credentials], Client] = Client
    load: Callable[[str], registry.BackendModule] = registry.load
    _known: dict[str, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self._stack.close()

    def _once(self, name: str, ask: Callable[[], T]) -> T:
        if name not in self._known:
            try:
                self._known[name] = ask()
            except (BundlesError, BackendError, sqlite3.Error, OSError) as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, Exception):
            raise found
        return cast("T", found)

    @property
    def home(self) -> Home:
        return Home.find(self.settings["home"], self.environ)

    @property
    def installation(self) -> Installation:
        return Installation(self.home)

    @property
    def server(self) -> str:
        return self._once(
            "server", lambda: find_server(self.settings["server"], self.home, self.environ)
        )

    @property
    def pool(self) -> str:
        chosen: str | None = self.settings["pool"]
        return chosen or default_pool(self.backend_name, self.server, self.home)

    @property
    def credentials(self) -> Credentials:
        def ask() -> Credentials:
            if self.settings["password_file"]:
                return read_password_file(self.settings["password_file"])
            return find_credentials(self.server, self.home, self.environ)

        return self._once("credentials", ask)

    @property
    def client(self) -> Client:
        return self._once(
            "client",
            lambda: self._stack.enter_context(self.connect(self.server, self.credentials)),
        )

    @property
    def account(self) -> dict[str, Any]:
        """Who we are at the server; its features and clock are known after that."""
        return self._once("account", lambda: self.client.whoami())

    @property
    def ledger(self) -> Ledger | None:
        def ask() -> Ledger | None:
            ledger = Ledger.read_only(self.installation.ledger_path)
            return self._stack.enter_context(ledger) if ledger is not None else None

        return self._once("ledger", ask)

    @property
    def module(self) -> registry.BackendModule:
        return self._once("module", lambda: self.load(self.backend_name))

    @property
    def backend(self) -> Backend:
        def ask() -> Backend:
            if self.missing:
                raise Invalid(f"not given: {', '.join(self.missing)}")
            prefix = self.settings["worker_work_dir_prefix"]
            context = self.installation.context(self.pool, self.environ, prefix)
            return self.module.create(context, self.settings)

        return self._once("backend", ask)

    @property
    def jobs(self) -> list[Job]:
        return self._once("jobs", lambda: self.backend.list_jobs())

    @property
    def queue(self) -> QueueConfig:
        return QueueConfig.from_settings(self.backend_name, self.settings)

    @property
    def staged(self) -> tuple[dict[Need, int], int]:
        """The staged bundles that fit a worker of the pool, and how many do not."""

        def ask() -> tuple[dict[Need, int], int]:
            whoever = self.account  # the server's features are known by its first reply
            assert whoever is not None
            counted = StagedBundles(self.client, self.environ).read([self.queue])
            demand, (unfit,) = demand_of(counted, [self.queue])
            return demand, unfit

        return self._once("staged", ask)

    @property
    def record(self) -> PoolRecord:
        return self.ledger.record(self.pool) if self.ledger else PoolRecord()
