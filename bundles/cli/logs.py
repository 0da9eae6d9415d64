"""`bundles logs`: what a run wrote to stdout or stderr, while it runs too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import click

from bundles.cli.options import Connection, common_options
from bundles.errors import NotFound, RangeNotSatisfiable, ServerFault, Unreachable, UsageError
from bundles.model import FINAL_STATES, State

if TYPE_CHECKING:
    from bundles.cli.watch import Watch
    from bundles.client import Client
    from bundles.model import Bundle

SECTION_BYTES = 1024 * 1024
"""How much is asked for at a time."""
_NOT_BEGUN = frozenset({State.CREATED, State.STAGED, State.STARTING, State.UPLOADING})


@click.command()
@click.argument("uuid")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on until the bundle ends; the exit code stays 0."
)
@click.option("--stderr", "from_stderr", is_flag=True, help="What it wrote to stderr instead.")
@click.option(
    "--interval",
    "interval_seconds",
    type=click.FloatRange(min=0.05),
    metavar="SECONDS",
    default=0.5,
    show_default=True,
    help="With -f: seconds between two looks for new output. The end itself is told at once by "
    "servers that can.",
)
@common_options
def logs(
    connection: Connection,
    uuid: str,
    follow: bool,
    from_stderr: bool,
    interval_seconds: float,
) -> None:
    """Show what a run wrote to stdout."""
    from bundles.cli.names import find_bundle
    from bundles.cli.output import why_not_ready
    from bundles.cli.watch import Watch

    path = "stderr" if from_stderr else "stdout"
    with connection.client() as client:
        bundle = find_bundle(client, uuid)
        if bundle.bundle_type != "run":
            raise UsageError(f"{bundle.uuid} is not a run: see `bundles cat {bundle.uuid}`")
        output = sys.stdout.buffer
        if follow and not bundle.final:
            watch = Watch(
                client,
                [bundle.uuid],
                interval_seconds=interval_seconds,
                only=(State.STAGED, State.RUNNING, *sorted(FINAL_STATES)),
            )
            written = _follow(client, bundle.uuid, path, watch, output, interval_seconds, _note)
            (bundle,) = watch.bundles()
        else:
            written = _show(client, bundle, path, output)
    if not written:
        reason = f": {why_not_ready(bundle)}" if bundle.final and why_not_ready(bundle) else ""
        _note(f"{bundle.uuid} is {bundle.state} and has written nothing to {path}{reason}")


def _note(sentence: str) -> None:
    from bundles.cli.output import printable

    click.echo(f"bundles: {printable(sentence)}", err=True)


def _show(client: Client, bundle: Bundle, path: str, output: BinaryIO) -> bool:
    """What there is now; returns whether it was anything."""
    if bundle.state in _NOT_BEGUN:
        return False
    written = False
    try:
        with client.download(bundle.uuid, path) as download:
            for chunk in download.chunks():
                output.write(chunk)
                written = written or bool(chunk)
    except NotFound:
        # Killed or failed before it began, or not begun yet: it has no such file.
        pass
    output.flush()
    return written


def _follow(
    client: Client,
    uuid: str,
    path: str,
    watch: Watch,
    output: BinaryIO,
    interval_seconds: float,
    note: Callable[[str], None],
) -> bool:
    """Write what the run writes until it ends; returns whether it was anything."""
    offset = 0
    written = False
    while True:
        # Looked at before reading, so that the last read comes after the last write.
        state = watch.states[uuid]
        ended = state in FINAL_STATES
        if state in _NOT_BEGUN and offset:
            note(f"{uuid} is {state} again: what follows is written by a new start")
            offset = 0
        if state not in _NOT_BEGUN:
            try:
                offset = _copy(client, uuid, path, offset, output)
            except (Unreachable, ServerFault) as error:
                ended = False
                watch.away(error)
            except NotFound:
                pass
            written = written or offset > 0
        if ended:
            return written
        watch.step(interval_seconds)


def _copy(client: Client, uuid: str, path: str, offset: int, output: BinaryIO) -> int:
    """Write all of a file from a byte on; returns the byte after the last written one."""
    while True:
        start = offset
        section = (offset, offset + SECTION_BYTES - 1)
        try:
            with client.download(uuid, path, byte_range=section) as download:
                for chunk in download.chunks():
                    output.write(chunk)
                    offset += len(chunk)
        except RangeNotSatisfiable:
            return offset
        finally:
            output.flush()
        if offset - start < SECTION_BYTES:
            return offset
