"""`worker-manager explain`: what journal, ledger, backend and server know. Changes nothing."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from manager.options import connection_options, output_option

if TYPE_CHECKING:
    from bundles.client import Client
    from manager.explain import Explanation, PoolView
    from manager.history import Entry
    from manager.installation import Installation
    from manager.ledger import Launch, Ledger, Pool

_AGO = re.compile(r"-\d+(?:\.\d+)?[smhd]")


def explain_command() -> click.Command:
    return click.Command(
        "explain",
        params=[
            *connection_options(),
            click.Option(["--server"], metavar="URL", help="The server of a BUNDLE."),
            click.Option(
                ["--password-file"], metavar="FILE", help="User and password for it, mode 0600."
            ),
            click.Option(["--pool"], metavar="NAME", help="Only this pool."),
            output_option(),
            click.Argument(["what"], metavar="now|TIME|WORKER|BUNDLE"),
        ],
        callback=_explain,
        context_settings={"ignore_unknown_options": True},  # -10m is a time
        help=(
            "Why workers were launched or not, and what a bundle waits for.\n\n"
            "now: the last decision of each pool. TIME: the one that held then; 2026-01-31T12:00, "
            "or -10m, -2h for so long ago. WORKER: what became of it, and which decision launched "
            "it; its name as `status` shows it. BUNDLE: a uuid, its beginning, or a name."
        ),
    )


def _explain(what: str, output: str, **options: Any) -> int:
    """Raises UsageError, NotFound and what cannot be read."""
    found = _find(what, **options)
    if output == "json":
        print(json.dumps([explanation.to_document() for explanation in found]))
        return 0
    for explanation in found:
        click.echo(f"{explanation.about} {explanation.name}")
        for sentence in explanation.sentences:
            click.echo(f"  {sentence}")
    return 0


def _find(
    what: str,
    *,
    home: str | None,
    server: str | None,
    password_file: str | None,
    pool: str | None,
    verbose: bool,
) -> list[Explanation]:
    from backends.base import LaunchKey
    from bundles.errors import NotFound, UsageError
    from bundles.home import Home
    from manager.installation import Installation
    from manager.ledger import Ledger

    now = time.time()
    when = moment_of(what, now)
    place = Home.find(home)
    installation = Installation(place)
    with ExitStack() as stack:
        ledger = Ledger.read_only(installation.ledger_path)
        if ledger is not None:
            stack.enter_context(ledger)
        pools = [p for p in (ledger.pools() if ledger else []) if pool in (None, p.name)]
        if pool is not None and not pools:
            raise UsageError(f"no manager of this home ever kept a pool {pool!r}")
        if when is not None:
            if not pools:
                raise NotFound(
                    f"nothing is known: no manager of the home {place.path} ever kept a pool"
                )
            return [_moment(installation, p, when, what == "now") for p in pools]
        key = LaunchKey.parse(what)
        launch = ledger.launch(key) if key is not None and ledger is not None else None
        if launch is not None:
            assert ledger is not None
            return [_worker(installation, ledger, launch, now)]
        if key is not None:
            raise NotFound(
                f"nothing is known of {what}: no manager of the home {place.path} launched it, or "
                "it ended so long ago that it was forgotten"
            )
        return _bundle(installation, ledger, pools, what, server, password_file, now)


def moment_of(text: str, now: float) -> float | None:
    """The time that ``text`` means, in epoch seconds; None when it means none.

    `now`, `-10m`, or ISO 8601, of this machine's time zone where it names none. Raises UsageError
    for a time that is to come.
    """
    from bundles.errors import UsageError
    from bundles.sizes import parse_duration

    if text == "now":
        return now
    if _AGO.fullmatch(text):
        return now - parse_duration(text[1:])
    if text.startswith("-"):
        raise UsageError(
            f"{text!r} is neither an option nor a time: write -90s, -10m, -2h or -1d for so long "
            "ago"
        )
    if not re.match(r"\d{4}-?\d\d-?\d\d(?:$|[T ])", text):
        return None
    try:
        when = datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        return None
    if when > now:
        raise UsageError(f"{text} is to come: `--plan` on a backend says what would be decided now")
    return when


def _entries(installation: Installation, pool: str) -> list[Entry]:
    from manager.history import read_journal

    return list(read_journal(installation.journal_path(pool)))


def _moment(installation: Installation, pool: Pool, when: float, is_now: bool) -> Explanation:
    from manager.explain import explain_moment
    from manager.lock import holder

    return explain_moment(
        pool.name,
        sorted(_entries(installation, pool.name), key=lambda entry: entry.time),
        when,
        manager=holder(installation.lock_path(pool.name)),
        is_now=is_now,
    )


def _worker(installation: Installation, ledger: Ledger, launch: Launch, now: float) -> Explanation:
    from backends.base import BackendError
    from manager.explain import explain_worker
    from manager.ledger import Outcome

    job, unlisted = None, ""
    if launch.outcome is Outcome.LAUNCHED:
        pool = next(pool for pool in ledger.pools() if pool.name == launch.key.pool)
        try:
            jobs = installation.backend(pool, os.environ).list_jobs()
        except BackendError as error:
            unlisted = str(error)
        else:
            job = next((job for job in jobs if job.key == launch.key), None)
            unlisted = "its service does not list it" if job is None else ""
    entries = _entries(installation, launch.key.pool)
    return explain_worker(launch, job, entries, now, unlisted=unlisted)


def _bundle(
    installation: Installation,
    ledger: Ledger | None,
    pools: list[Pool],
    text: str,
    server: str | None,
    password_file: str | None,
    now: float,
) -> list[Explanation]:
    """The bundle, and the worker that has it or had it last, if it is one of this home's."""
    from backends.base import LaunchKey
    from bundles.cli.names import find_bundle
    from bundles.client import Client
    from bundles.home import find_credentials, find_server, read_password_file
    from bundles.model import State
    from manager.explain import explain_bundle

    address = find_server(server, installation.home)
    credentials = (
        read_password_file(password_file)
        if password_file
        else find_credentials(address, installation.home)
    )
    with Client(address, credentials) as client:
        bundle = find_bundle(client, text)
        changes = client.history(bundle.uuid) if "changes" in client.features else []
        parents = _parents(client, {d.parent_uuid for d in bundle.dependencies})
        views = [
            _view(installation, client, pool, bundle.uuid)
            for pool in pools
            if pool.server == address and bundle.state == State.STAGED
        ]
    found = [explain_bundle(bundle, changes, parents, views)]
    key = LaunchKey.parse(changes[-1].worker or "") if changes else None
    launch = ledger.launch(key) if key is not None and ledger is not None else None
    if launch is not None and ledger is not None:
        found.append(_worker(installation, ledger, launch, now))
    return found


def _parents(client: Client, uuids: set[str]) -> dict[str, str]:
    from bundles.errors import NotFound

    states = {}
    for uuid in sorted(uuids):
        try:
            states[uuid] = str(client.bundle(uuid).state)
        except NotFound:
            states[uuid] = ""
    return states


def _view(installation: Installation, client: Client, pool: Pool, uuid: str) -> PoolView:
    from bundles.home import USER_VARIABLE
    from manager.explain import PoolView
    from manager.lock import holder
    from manager.queue import QueueConfig

    queue = QueueConfig.from_settings(pool.backend, pool.settings)
    is_root = client.whoami().get("is_root_user") or os.environ.get(USER_VARIABLE) == "codalab"
    entries = _entries(installation, pool.name)
    return PoolView(
        name=pool.name,
        queue=queue,
        selected=client.count([*queue.keywords(root=bool(is_root)), f"uuid={uuid}"]) > 0,
        manager=holder(installation.lock_path(pool.name)),
        last=entries[-1] if entries else None,
    )
