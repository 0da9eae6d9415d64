"""`worker-manager costs`: what pools have cost, for whom, and what they may. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from manager.options import connection_options, output_option

if TYPE_CHECKING:
    from bundles.client import Client
    from bundles.home import Home
    from manager.costs import Costs, PoolCosts, Run
    from manager.ledger import Ledger, Pool
    from manager.money import PoolSet

WORKERS_ASKED = 50
"""Bundles of so many workers are asked for at once: their names have to fit into an address."""


def costs_command() -> click.Command:
    return click.Command(
        "costs",
        params=[
            *connection_options(),
            click.Option(["--pool"], metavar="NAME", help="Only this pool."),
            click.Option(
                ["--since"],
                metavar="TIME",
                help="From when: 2026-01-31, -2h, -7d. Else since this day began (UTC).",
            ),
            click.Option(
                ["--password-file"], metavar="FILE", help="User and password for the server."
            ),
            output_option(),
        ],
        callback=_costs,
        context_settings={"ignore_unknown_options": True},  # -7d is a time
        help=(
            "What the pools of this home have cost, by pool and by the owners of the bundles that "
            "ran there; what of it was idle; budgets, and what will have been spent at the end of "
            "this hour, day and month."
        ),
    )


def _costs(
    home: str | None,
    pool: str | None,
    since: str | None,
    password_file: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Raises UsageError, and sqlite3.Error for a ledger that cannot be read."""
    from bundles.errors import UsageError
    from bundles.home import Home
    from manager.costs import Costs
    from manager.installation import Installation
    from manager.ledger import Ledger
    from manager.money import Period, window

    now = time.time()
    begin = window(Period.DAY, now).start if since is None else _moment(since, now)
    place = Home.find(home)
    notes: list[str] = []
    with ExitStack() as stack:
        ledger = Ledger.read_only(Installation(place).ledger_path)
        if ledger is not None:
            stack.enter_context(ledger)
        pools = [p for p in (ledger.pools() if ledger else []) if pool in (None, p.name)]
        if not pools:
            which = f"a pool {pool!r}" if pool is not None else "a pool"
            raise UsageError(f"no manager of the home {place.path} ever kept {which}")
        assert ledger is not None
        clients = _Clients(place, password_file, stack, notes)
        costs = Costs(
            begin,
            now,
            [_pool(ledger, one, clients, begin, now) for one in pools],
            _sets(ledger, {one.name for one in pools}),
        )
    if output == "json":
        print(json.dumps(costs.to_document() | {"notes": notes}))
    else:
        _print(costs, notes)
    return 0


def _sets(ledger: Ledger, shown: Collection[str]) -> dict[PoolSet, list[str]]:
    """The sets of which all are shown. What was taken out of one and has drained counts in it, as
    it does for its manager."""
    from manager.accountant import drained
    from manager.money import sets_of

    sets = sets_of({one.name: one.settings for one in ledger.pools()})
    found = {one: [*one.pools, *drained(ledger, one.pools)] for one in sets}
    return {one: names for one, names in found.items() if set(names) <= set(shown)}


def _moment(text: str, now: float) -> float:
    from bundles.errors import UsageError
    from manager.commands.explain import moment_of

    when = moment_of(text, now)
    if when is None:
        raise UsageError(f"--since {text!r} is no time: write 2026-01-31, 2026-01-31T12:00 or -2h")
    return when


class _Clients:
    """The servers of the pools, each asked once whether it tells who ran what."""

    def __init__(
        self, home: Home, password_file: str | None, stack: ExitStack, notes: list[str]
    ) -> None:
        self._home = home
        self._password_file = password_file
        self._stack = stack
        self._notes = notes
        self._known: dict[str, Client | None] = {}

    def at(self, server: str) -> Client | None:
        """None when it cannot tell, which is noted."""
        if server not in self._known:
            self._known[server] = self._open(server)
        return self._known[server]

    def _open(self, server: str) -> Client | None:
        from bundles.client import Client
        from bundles.errors import BundlesError
        from bundles.home import find_credentials, read_password_file

        try:
            credentials = (
                read_password_file(self._password_file)
                if self._password_file
                else find_credentials(server, self._home)
            )
            client = self._stack.enter_context(Client(server, credentials, patience_seconds=0))
            is_root = bool(client.whoami().get("is_root_user"))
        except BundlesError as error:
            self._notes.append(f"who used the workers is not known: {error}")
            return None
        if "changes" not in client.features:
            self._notes.append(f"who used the workers is not known: {server} does not tell")
            return None
        if not is_root:
            self._notes.append(f"{server} tells of your own bundles only; others count as idle")
        return client


def _pool(ledger: Ledger, pool: Pool, clients: _Clients, since: float, now: float) -> PoolCosts:
    from manager.accountant import Accountant, charged
    from manager.costs import PoolCosts, used_seconds
    from manager.money import MINIMUM_SECONDS, Terms
    from manager.queue import QueueConfig

    terms = Terms.from_settings(pool.settings)
    launches = ledger.ended_since(pool.name, since - MINIMUM_SECONDS) + ledger.running(pool.name)
    workers, seconds = [], 0.0
    for launch in launches:
        span = charged(launch, now)
        if span is not None and (overlap := span[1] - max(span[0], since)) > 0:
            workers.append(str(launch.key))
            seconds += overlap
    client = clients.at(pool.server) if workers else None
    used: dict[str, float] | None = {} if not workers else None
    if client is not None:
        room = QueueConfig.from_settings(pool.backend, pool.settings).shape.room
        used = used_seconds(_runs(client, workers, now), room, seconds, since, now)
    return PoolCosts(
        pool=pool.name,
        price_per_hour=terms.price_per_hour,
        workers=len(workers),
        worker_seconds=seconds,
        used=used,
        account=Accountant(ledger).account(pool.name, terms, now),
    )


def _runs(client: Client, workers: Sequence[str], now: float) -> Iterable[Run]:
    """What ran on these workers; a bundle that ran on several counts for the last one."""
    from manager.capacity import Room
    from manager.costs import Run

    for start in range(0, len(workers), WORKERS_ASKED):
        names = ",".join(workers[start : start + WORKERS_ASKED])
        for bundle in client.search([f"worker_id={names}"]):
            started = bundle.metadata.get("started")
            seconds = bundle.metadata.get("time")
            if not isinstance(started, int | float) or bundle.bundle_type != "run":
                continue
            asked = bundle.resources
            until = started + float(seconds) if isinstance(seconds, int | float) else started
            yield Run(
                owner=bundle.owner_name or bundle.owner_id,
                asked=Room(asked.gpus, asked.cpus, asked.memory_bytes),
                since=float(started),
                until=until if bundle.final else now,
            )


def _print(costs: Costs, notes: Sequence[str]) -> None:
    from bundles.cli.output import console, duration, moment, new_table

    paper = console()
    click.echo(f"since {moment(costs.since)}")
    table = new_table("POOL", "PRICE/H", "WORKERS", "TIME", "IDLE", "SPENT")
    for pool in costs.pools:
        idle = pool.idle_seconds
        table.add_row(
            pool.pool,
            f"{pool.price_per_hour:g}",
            str(pool.workers),
            duration(pool.worker_seconds),
            "not known"
            if idle is None
            else f"{idle / pool.worker_seconds:.0%}"
            if pool.worker_seconds
            else "",
            f"{pool.spent:.2f}",
        )
    paper.print(table)
    owners = costs.by_owner()
    if owners:
        table = new_table("OWNER", "SPENT")
        for owner, spent in sorted(owners.items(), key=lambda item: -item[1]):
            table.add_row(owner, f"{spent:.2f}")
        paper.print(table)
    document = costs.to_document()
    table = new_table("", "THIS", "SPENT", "FORECAST", "BUDGET")
    for pool_document in document["pools"]:
        _add_windows(table, pool_document["pool"], pool_document["windows"])
    for one in document["sets"]:
        if len(one["pools"]) < len(document["pools"]):
            _add_windows(table, " + ".join(one["pools"]), one["windows"])
    if len(document["pools"]) > 1 or document["sets"]:
        _add_windows(table, "all", document["windows"])
    paper.print(table)
    for note in notes:
        click.echo(note)


def _add_windows(table: Any, name: str, places: Sequence[dict[str, Any]]) -> None:
    for place in places:
        budget = place["budget"]
        table.add_row(
            name,
            place["period"],
            f"{place['spent']:.2f}",
            f"{place['forecast']:.2f}",
            "" if budget is None else f"{budget:.2f}",
        )
        name = ""
