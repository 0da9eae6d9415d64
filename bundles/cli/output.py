"""How bundles are shown: documents for programs, tables for people. Never where they come from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from bundles.model import Bundle
from bundles.sizes import format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHORT_UUID_LENGTH = 10


def short_uuid(uuid: str) -> str:
    """`0x` and the first 8 digits: what a table shows, and what may be typed back."""
    return uuid[:SHORT_UUID_LENGTH]


def printable(text: str) -> str:
    """``text`` in one line, with no character that a terminal would obey."""
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}"
        for character in " ".join(text.split())
    )


def write_json(document: Any) -> None:
    """On stdout, in plain characters only, whatever the terminal's encoding is."""
    click.echo(json.dumps(document, indent=2))


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """A bundle as `-o json` shows it: `created` in seconds since the epoch, `time` in seconds."""
    metadata = dict(bundle.metadata)
    return {
        "uuid": bundle.uuid,
        "name": bundle.name,
        "bundle_type": bundle.bundle_type,
        "state": str(bundle.state),
        "state_details": bundle.state_details,
        "owner": bundle.owner_name or bundle.owner_id,
        "command": bundle.command,
        "created": metadata.get("created"),
        "time": metadata.get("time"),
        "exitcode": metadata.get("exitcode"),
        "failure_message": metadata.get("failure_message"),
        "dependencies": [
            {
                "child_path": dependency.child_path,
                "parent_uuid": dependency.parent_uuid,
                "parent_path": dependency.parent_path,
                "parent_name": dependency.parent_name,
            }
            for dependency in bundle.dependencies
        ],
        "metadata": metadata,
    }


def why_not_ready(bundle: Bundle) -> str:
    """The sentence about a bundle that did not get ready; maybe `""`."""
    return str(bundle.metadata.get("failure_message") or bundle.state_details or "")


def age(created: Any, now: float) -> str:
    """How long ago, in one unit, for a table: `5s`, `3m`, `2h`, `9d`; `""` for no time."""
    if not isinstance(created, int | float) or isinstance(created, bool):
        return ""
    seconds = max(0, int(now - created))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def duration(seconds: Any) -> str:
    """A time in seconds for a table; `""` for none."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return ""
    return format_duration(seconds)


def moment(seconds: Any) -> str:
    """Seconds since the epoch as local date and time; `""` for none."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


STATE_STYLES: Mapping[str, str] = {
    "ready": "green",
    "failed": "red",
    "killed": "red",
    "worker_offline": "red",
    "running": "cyan",
    "preparing": "cyan",
    "finalizing": "cyan",
    "starting": "cyan",
    "staged": "yellow",
}


def console(*, stderr: bool = False) -> Console:
    """Colours only on a terminal and without NO_COLOR; 80 columns where nobody says otherwise."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)


def new_table(*columns: str) -> Table:
    """An empty table without lines: one row a thing, cut to the width rather than folded."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table
