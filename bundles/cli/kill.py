"""`bundles kill`: end bundles that have not ended."""

from __future__ import annotations

import click

from bundles.cli.options import Connection, common_options


@click.command()
@click.argument("uuids", nargs=-1, required=True, metavar="UUID...")
@common_options
def kill(connection: Connection, uuids: tuple[str, ...]) -> None:
    """Ask for the end of bundles, and print their uuids.

    A running one is killed by its worker a moment later: `bundles wait` tells when.
    """
    from bundles.cli.names import find_uuids

    with connection.client() as client:
        wanted = find_uuids(client, uuids)
        client.act([{"type": "kill", "uuid": uuid} for uuid in wanted])
    for uuid in wanted:
        click.echo(uuid)
