"""`worker-manager top`: the pools of this home, live."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from manager.options import connection_options, output_option

if TYPE_CHECKING:
    from manager.overview import Overview

QUIT_KEYS = frozenset("qQ\x1b\x04")


def top_command() -> click.Command:
    return click.Command(
        "top",
        params=[
            *connection_options(),
            click.Option(
                ["--refresh-seconds"],
                type=click.FloatRange(min=0.1),
                default=1.0,
                show_default=True,
                help="How often to look.",
            ),
            output_option("json: one object a line, each time it looks."),
        ],
        callback=_top,
        help=(
            "The pools of this home, live: workers, queue, failures, money, decisions.\n\n"
            "Shows what managers of this home have written down, and asks no service. Where it "
            "cannot draw, it prints one picture and ends."
        ),
    )


def _top(home: str | None, refresh_seconds: float, output: str, verbose: bool) -> int:
    from bundles.home import Home
    from manager.installation import Installation
    from manager.overview import Overview

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # the terminal is left as it was
    try:
        with Overview(Installation(Home.find(home))) as overview:
            if output == "json":
                _lines(overview, refresh_seconds)
            else:
                _pictures(overview, refresh_seconds)
    except KeyboardInterrupt:
        pass
    return 0


def _documents(overview: Overview, now: float) -> list[dict[str, Any]]:
    documents = [overview.document(pool, now) for pool in overview.pools()]
    # The pools of one process together, those that nobody keeps last.
    return sorted(documents, key=lambda pool: pool["manager"] or sys.maxsize)


def _lines(overview: Overview, refresh_seconds: float) -> None:
    while sys.stdout is not None:  # it may have been closed at our start
        now = time.time()
        print(json.dumps({"time": now, "pools": _documents(overview, now)}), flush=True)
        select.select([], [], [], refresh_seconds)


def _pictures(overview: Overview, refresh_seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from manager.commands.top_view import picture

    console = Console(highlight=False)

    def look() -> Any:
        now = time.time()
        return picture(_documents(overview, now), now, console.width, console.height)

    if not console.is_terminal or console.is_dumb_terminal:
        console.print(look())
        return
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(look(), refresh=True)
            if pressed(refresh_seconds) in QUIT_KEYS:
                return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives what waits so many seconds for a key; "" when none came. The terminal gives keys at
    once and shows none while this lasts."""
    if not sys.stdin.isatty():
        yield _wait
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    select.select([], [], [], seconds)
    return ""
