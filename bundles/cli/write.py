"""`bundles write`: a file into the directory of a running bundle."""

from __future__ import annotations

import click

from bundles.cli.options import Connection, common_options
from bundles.errors import UsageError


@click.command()
@click.argument("target", metavar="UUID/PATH")
@click.argument("string")
@common_options
def write(connection: Connection, target: str, string: str) -> None:
    """Write STRING to the file PATH of a running bundle, and print its uuid.

    For programs that wait for a file to tell them something.
    """
    from bundles.cli.names import find_target, split_target

    if not split_target(target)[1]:
        raise UsageError(f"{target!r} names no file: write UUID/PATH")
    with connection.client() as client:
        uuid, path = find_target(client, target)
        client.act([{"type": "write", "uuid": uuid, "subpath": path, "string": string}])
    click.echo(uuid)
