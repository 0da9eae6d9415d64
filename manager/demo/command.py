"""`worker-manager demo`: plays the main job, shows it live, and says whether it went as it must."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from manager.options import connection_options

if TYPE_CHECKING:
    from bundles.client import Client
    from manager.demo.pipeline import Pipeline
    from manager.demo.stage import Stage
    from manager.demo.view import Moment

LOCAL_PROCESS, LOCAL_DOCKER = "local-process", "local-docker"
MAX_WORKERS = 3
IDLE_SECONDS = 1
LONGEST_SECONDS = 300.0
LOOK_SECONDS = 0.2
"""How often the picture is renewed; bundles' changes are told by the server."""
TOP = 10
UNTOLD = frozenset({"created", "starting", "preparing", "finalizing"})
"""States that are seen in the picture, and are no line of their own."""

Show = Callable[["Moment"], None]


def demo_command() -> click.Command:
    return click.Command(
        "demo",
        params=[
            click.Option(["--json", "as_json"], is_flag=True, help="Print one object at the end."),
            click.Option(
                ["--backend"],
                type=click.Choice([LOCAL_PROCESS, LOCAL_DOCKER]),
                default=LOCAL_PROCESS,
                show_default=True,
                help="What the workers are: processes, or containers of this machine.",
            ),
            click.Option(["--image"], metavar="REFERENCE", help="Of the workers' containers."),
            *[option for option in connection_options() if option.name == "verbose"],
        ],
        callback=_demo,
        help=(
            "Play the main job on this machine, over a temporary home that is gone afterwards.\n\n"
            "Queues 20 bundles that count the identifiers in Python's own standard library, keeps "
            f"up to {MAX_WORKERS} workers for them, and checks every result."
        ),
    )


@dataclass
class Outcome:
    """What came of it; ``complaints``: a sentence for each expectation that did not hold."""

    bundles: int = 0
    ready: int = 0
    failed: int = 0
    workers_launched: int = 0
    workers_left: int = 0
    seconds: float = 0.0
    matches_direct_count: bool = False
    top: list[tuple[str, int]] = field(default_factory=list)
    most_at_once: int = 0
    complaints: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        return {
            "bundles": self.bundles,
            "ready": self.ready,
            "failed": self.failed,
            "workers_launched": self.workers_launched,
            "workers_left": self.workers_left,
            "seconds": round(self.seconds, 2),
            "matches_direct_count": self.matches_direct_count,
        }


def _demo(as_json: bool, backend: str, image: str | None, verbose: bool) -> int:
    from manager.alarm import Alarm, Stopped
    from manager.demo.stage import Containers, Stage, ignore_signals

    if (backend == LOCAL_DOCKER) != (image is not None):
        raise click.UsageError("--backend local-docker needs an --image, and no other does")
    alarm = Alarm()
    alarm.listen()
    outcome: Outcome | None = None
    # Between the next two statements a signal only takes note of itself.
    stage = Stage(Containers(image) if image else None)
    try:
        with alarm.interruptible():
            outcome = _shown(stage, as_json)
    except Stopped:
        pass
    finally:
        ignore_signals()
        stage.close()
    if outcome is None:
        print("worker-manager: stopped; nothing is left", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(outcome.to_document()))
        for complaint in outcome.complaints:
            print(f"worker-manager: {complaint}", file=sys.stderr)
    else:
        _summarise(outcome)
    return 1 if outcome.complaints else 0


# The play


def _shown(stage: Stage, as_json: bool) -> Outcome:
    """Play, with a live picture on a terminal, plain lines elsewhere, nothing for --json."""
    if as_json:
        return _play(stage, lambda moment: None)
    from rich.console import Console
    from rich.live import Live

    from manager.demo.view import picture

    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return _play(stage, _lines())
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(moment: Moment) -> None:
            live.update(picture(moment, console.width, console.height), refresh=True)

        return _play(stage, show)


def _lines() -> Show:
    """Prints every event once, as it comes."""
    printed = 0

    def show(moment: Moment) -> None:
        nonlocal printed
        new = moment.told - printed
        for event in list(moment.events)[-new:] if new else ():
            print(event, flush=True)
        printed = moment.told

    return show


def _play(stage: Stage, show: Show) -> Outcome:
    """The whole job. Raises BundlesError when a part of it cannot even be tried."""
    from bundles.client import Client
    from bundles.home import find_credentials
    from manager.demo.pipeline import Pipeline, copy_library, direct_count
    from manager.demo.view import Moment

    started = time.monotonic()
    pipeline = Pipeline()
    moment = Moment(pipeline, max_workers=MAX_WORKERS)
    player = _Player(stage, moment, show, started)
    player.tell("starting a server over a temporary home")
    moment.server = stage.start_server()
    source = stage.directory / "library"
    with Client(
        moment.server, find_credentials(moment.server, stage.home, {}), patience_seconds=10
    ) as client:
        cursor = client.changes(None).cursor
        player.tell("copying the standard library, and uploading it as one bundle")
        copy_library(source)
        pipeline.upload(client, source)
        pipeline.queue(client, python="python3" if stage.containers else sys.executable)
        player.tell(f"queued {len(pipeline.states)} bundles; starting worker-manager")
        stage.start_manager(
            *("--min", "0", "--max", str(MAX_WORKERS), "--sleep-time", "1"),
            *("--worker-idle-seconds", str(IDLE_SECONDS), "--worker-pass-down-termination"),
        )
        counting = _Counting(lambda: direct_count(source))
        player.watch(client, cursor)
        player.tell("every bundle has ended; the workers leave when they are idle")
        player.wait_for_workers()
        stage.stop("manager")
        outcome = _judge(player, client, counting.result())
    stage.stop("server")
    outcome.workers_left += len(stage.left())
    if outcome.workers_left:
        outcome.complaints.append(f"{outcome.workers_left} processes are left")
    outcome.seconds = time.monotonic() - started
    return outcome


class _Player:
    """Watches the play and keeps the picture true."""

    def __init__(self, stage: Stage, moment: Moment, show: Show, started: float) -> None:
        from manager.installation import Installation

        self.stage, self.moment, self._show, self._started = stage, moment, show, started
        self._installation = Installation(stage.home)
        self._looked = 0.0
        self._read = 0
        self.most_at_once = 0
        self._known: dict[str, str] = {}

    @property
    def pipeline(self) -> Pipeline:
        return self.moment.pipeline

    def tell(self, event: str) -> None:
        self.moment.seconds = time.monotonic() - self._started
        self.moment.tell(f"{self.moment.seconds:6.2f} s  {event}")
        self._show(self.moment)

    def watch(self, client: Client, cursor: int) -> None:
        """Follow the change feed until every bundle has ended."""
        from bundles.errors import BundlesError

        while not self.pipeline.ended:
            changes = client.changes(cursor, wait_seconds=LOOK_SECONDS)
            cursor = changes.cursor
            for change in changes.changes:
                name = self.pipeline.see(change.uuid, change.to_state)
                if name and change.to_state not in UNTOLD:
                    self.tell(f"{name:12} {change.to_state:10} {change.reason}".rstrip())
            self.look()
            if self.moment.seconds > LONGEST_SECONDS:
                raise BundlesError(f"the demo did not end within {LONGEST_SECONDS:g} s")

    def wait_for_workers(self) -> None:
        """Until no worker is left, or they had their time."""
        patience = time.monotonic() + IDLE_SECONDS + 30.0
        pause = threading.Event()
        self.look(force=True)
        while self.moment.living and time.monotonic() < patience:
            # A worker's end is told to its manager only; this looks as often as the picture moves.
            pause.wait(LOOK_SECONDS)
            self.look()

    def look(self, *, force: bool = False) -> None:
        """Renew workers and decision, at most once in LOOK_SECONDS."""
        from manager.commands.status import pools_document

        now = time.monotonic()
        if force or now - self._looked >= LOOK_SECONDS * 0.9:
            self._looked = now
            self.stage.check()
            self._see_decisions()
            for pool in pools_document(self._installation):
                self._see_workers(pool["jobs"] or [])
        self.moment.seconds = now - self._started
        self._show(self.moment)

    def _see_workers(self, jobs: list[dict[str, Any]]) -> None:
        self.moment.jobs = jobs
        self.most_at_once = max(self.most_at_once, len(self.moment.living))
        for job in jobs:
            if self._known.get(job["worker"]) == job["state"]:
                continue
            self._known[job["worker"]] = job["state"]
            code = f", exit code {job['exit_code']}" if job["state"] == "ended" else ""
            self.tell(f"worker {job['worker']} {job['state']}{code}")

    def _see_decisions(self) -> None:
        from manager.demo.stage import POOL
        from manager.journal import entries_after

        path = self._installation.journal_path(POOL)
        entries, self._read = entries_after(path, self._read)
        for entry in entries:
            self.moment.last = entry
            decision = entry.get("decision")
            if decision and decision["launch"]:
                why = [reason["sentence"] for reason in decision["reasons"] if reason["held"]]
                self.tell(f"decided: launch {decision['launch']}, for {why[-1]}")


class _Counting(threading.Thread):
    """The direct count, made beside the bundles'."""

    def __init__(self, count: Callable[[], Counter[str]]) -> None:
        super().__init__(name="direct-count", daemon=True)
        self._count = count
        self._counted: Counter[str] | None = None
        self.start()

    def run(self) -> None:
        # The files go away when the demo is stopped, and this is not waited for then.
        with suppress(OSError):
            self._counted = self._count()

    def result(self) -> Counter[str]:
        self.join(LONGEST_SECONDS)
        return self._counted or Counter()


def _judge(player: _Player, client: Client, direct: Counter[str]) -> Outcome:
    """Compare what came with what had to come."""
    from bundles.errors import BundlesError
    from bundles.model import State
    from manager.demo.pipeline import AFTER, FAILS

    pipeline, moment = player.pipeline, player.moment
    outcome = Outcome(
        bundles=len(pipeline.states),
        ready=pipeline.number_in(State.READY),
        failed=pipeline.number_in(State.FAILED),
        workers_launched=len(moment.jobs),
        workers_left=len(moment.living),
        most_at_once=player.most_at_once,
        complaints=pipeline.unexpected(),
    )
    try:
        merged = pipeline.merged(client)
        outcome.matches_direct_count = bool(direct) and merged == direct
        outcome.top = merged.most_common(TOP)
        message = str(client.bundle(pipeline.uuids[AFTER]).metadata.get("failure_message") or "")
        if pipeline.uuids[FAILS] not in message and FAILS not in message:
            outcome.complaints.append(f"{AFTER} does not say which parent failed: {message!r}")
    except BundlesError as error:
        outcome.complaints.append(f"the result cannot be read: {error}")
    if not outcome.matches_direct_count:
        outcome.complaints.append("the bundles' count is not the direct count")
    if outcome.workers_launched == 0:
        outcome.complaints.append("no worker was launched")
    if outcome.most_at_once > MAX_WORKERS:
        outcome.complaints.append(f"{outcome.most_at_once} workers at once are too many")
    failed = [job for job in moment.jobs if job["state"] == "ended" and job["exit_code"] != 0]
    outcome.complaints += [
        f"worker {job['worker']} left with exit code {job['exit_code']}" for job in failed
    ]
    return outcome


def _summarise(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    rows = [
        ("bundles", f"{outcome.bundles}: {outcome.ready} ready, {outcome.failed} failed"),
        ("workers", f"{outcome.workers_launched} launched, {outcome.most_at_once} at most at once"),
        ("left running", str(outcome.workers_left)),
        ("equals direct count", "yes" if outcome.matches_direct_count else "no"),
        ("took", f"{outcome.seconds:.1f} s"),
    ]
    for name, value in rows:
        table.add_row(Text(name, style="bold"), value)
    console.print(table)
    if outcome.top:
        console.print(Text("\nmost frequent identifiers", style="bold"))
        most = outcome.top[0][1]
        bars = Table.grid(padding=(0, 2))
        for name, number in outcome.top:
            bar = "━" * max(1, round(30 * number / most))
            bars.add_row(f"  {name}", Text(f"{number:,}", justify="right"), Text(bar, style="cyan"))
        console.print(bars)
    for complaint in outcome.complaints:
        console.print(Text(f"✗ {complaint}", style="red"))
    if not outcome.complaints:
        console.print(Text("\n✓ everything went as it must", style="green"))
