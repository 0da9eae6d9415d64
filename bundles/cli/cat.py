"""`bundles cat`: a file of a bundle to stdout, or what is in a directory of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from bundles.cli.options import Connection, common_options, output_option
from bundles.sizes import format_size

if TYPE_CHECKING:
    from bundles.replies import TargetInfo


@click.command()
@click.argument("target", metavar="UUID[/PATH]")
@output_option
@common_options
def cat(connection: Connection, target: str, output: str) -> None:
    """Write a file of a bundle to stdout, or list what is in a directory of it.

    With -o json a directory is a list of objects, and a file one object that describes it.
    """
    from bundles.cli.names import find_target
    from bundles.cli.output import write_json

    with connection.client() as client:
        uuid, path = find_target(client, target)
        info = client.contents_info(uuid, path, depth=1)
        if output == "json":
            write_json(
                [_document(entry) for entry in _sorted(info)]
                if info.type == "directory"
                else _document(info)
            )
        elif info.type == "directory":
            _list(info)
        else:
            with client.download(uuid, path) as download:
                for chunk in download.chunks():
                    sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def _sorted(info: TargetInfo) -> list[TargetInfo]:
    return sorted(info.contents, key=lambda entry: entry.name)


def _document(info: TargetInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "type": info.type,
        "size": info.size_bytes,
        "perm": info.perm,
        "link": info.link,
    }


def _list(info: TargetInfo) -> None:
    from rich.text import Text

    from bundles.cli.output import console, new_table, printable

    table = new_table("name", "perm", "size")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = False
    table.columns[2].justify = "right"
    for entry in _sorted(info):
        mark = {"directory": "/", "link": f" → {entry.link}"}.get(entry.type, "")
        table.add_row(
            Text(printable(entry.name + mark)),
            f"{entry.perm & 0o777:03o}" if entry.perm else "",
            format_size(entry.size_bytes) if entry.type == "file" else "",
        )
    console().print(table)
