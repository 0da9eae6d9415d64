"""`bundles rm`: delete bundles and their contents."""

from __future__ import annotations

import click

from bundles.cli.options import Connection, common_options


@click.command()
@click.argument("uuids", nargs=-1, required=True, metavar="UUID...")
@click.option("--force", is_flag=True, help="Also those that other bundles depend on.")
@common_options
def rm(connection: Connection, uuids: tuple[str, ...], force: bool) -> None:
    """Delete bundles with their contents, and print their uuids.

    All or none: one that may not be deleted keeps the others.
    """
    from bundles.cli.names import find_uuids

    with connection.client() as client:
        wanted = find_uuids(client, uuids)
        client.delete(wanted, force=force)
    for uuid in wanted:
        click.echo(uuid)
