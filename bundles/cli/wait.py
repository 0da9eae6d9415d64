"""`bundles wait`: until bundles have ended. Says which did not get ready."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from bundles.cli.options import DURATION, Connection, common_options, output_option
from bundles.errors import BundlesError
from bundles.model import FINAL_STATES, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from bundles.cli.watch import Watch
    from bundles.model import Bundle

EXIT_NOT_ALL_READY = 1
_SHOWN_PENDING = 3


@click.command()
@click.argument("uuids", nargs=-1, required=True, metavar="UUID...")
@click.option(
    "--timeout",
    type=DURATION,
    help="Give up, with exit code 1, after this long: a number and s, m, h or d.",
)
@click.option(
    "--interval",
    "interval_seconds",
    type=click.FloatRange(min=0.05),
    metavar="SECONDS",
    default=0.5,
    show_default=True,
    help="Seconds between two looks, at a server that cannot tell by itself.",
)
@output_option
@common_options
def wait(
    connection: Connection,
    uuids: tuple[str, ...],
    timeout: str | None,
    interval_seconds: float,
    output: str,
) -> int:
    """Wait until bundles have ended, and print each one's uuid, state and failure.

    The exit code is 0 when all are ready and 1 when any failed or was killed. A server that is
    restarted meanwhile is waited for.
    """
    from bundles.cli.names import find_uuids
    from bundles.cli.output import bundle_document, console, printable, why_not_ready, write_json
    from bundles.cli.watch import Watch
    from bundles.sizes import parse_duration

    limit_seconds = parse_duration(timeout) if timeout is not None else None
    with connection.client() as client:
        wanted = find_uuids(client, uuids)
        terminal = console(stderr=True)
        watch = Watch(
            client,
            wanted,
            interval_seconds=interval_seconds,
            only=() if terminal.is_terminal else sorted(FINAL_STATES),
        )
        with _progress(terminal, watch.states) as show:
            in_time = _until_ended(watch, limit_seconds, show)
        found = watch.bundles()
    if not in_time and not all(bundle.final for bundle in found):
        raise _timed_out(found, timeout or "")
    if output == "json":
        write_json([bundle_document(bundle) for bundle in found])
    else:
        for bundle in found:
            reason = "" if bundle.state == State.READY else printable(why_not_ready(bundle))
            click.echo(f"{bundle.uuid} {bundle.state} {reason}".rstrip())
    return 0 if all(bundle.state == State.READY for bundle in found) else EXIT_NOT_ALL_READY


def _until_ended(watch: Watch, limit_seconds: float | None, show: Callable[[], None]) -> bool:
    """Whether all ended within the limit."""
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    while not watch.ended:
        show()
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        watch.step(left)
    show()
    return True


def _timed_out(bundles: Sequence[Bundle], timeout: str) -> BundlesError:
    pending = [f"{bundle.uuid} is {bundle.state}" for bundle in bundles if not bundle.final]
    more = f" and {len(pending) - _SHOWN_PENDING} more" if len(pending) > _SHOWN_PENDING else ""
    return BundlesError(f"not ended after {timeout}: {', '.join(pending[:_SHOWN_PENDING])}{more}")


def _by_state(states: Sequence[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states).most_common())


@contextmanager
def _progress(terminal: Console, states: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal; gives what brings it up to date."""
    if not terminal.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(states))

        def show() -> None:
            ended = sum(state in FINAL_STATES for state in states.values())
            progress.update(task, completed=ended, description=_by_state(list(states.values())))

        yield show
