"""`bundles kill`: end bundles that have not ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bundles.cli.options import Connection, common_options
from bundles.errors import Conflict

if TYPE_CHECKING:
    from bundles.client import Client


@click.command()
@click.argument("uuids", nargs=-1, required=True, metavar="UUID...")
@common_options
def kill(connection: Connection, uuids: tuple[str, ...]) -> None:
    """Ask for the end of bundles, and print their uuids.

    A running one is killed by its worker a moment later: `bundles wait` tells when. One that has
    ended already is left as it is and makes the exit code 1; the others are killed all the same.
    """
    from bundles.cli.names import find_uuids

    with connection.client() as client:
        wanted = find_uuids(client, uuids)
        try:
            _kill(client, wanted)
        except Conflict:
            if len(wanted) == 1:
                raise
            _kill_each(client, wanted)


def _kill(client: Client, uuids: list[str]) -> None:
    client.act([{"type": "kill", "uuid": uuid} for uuid in uuids])
    for uuid in uuids:
        click.echo(uuid)


def _kill_each(client: Client, uuids: list[str]) -> None:
    """For a request that was refused whole because some had ended meanwhile."""
    refused: list[str] = []
    for uuid in uuids:
        try:
            _kill(client, [uuid])
        except Conflict as error:
            refused.append(str(error))
    if refused:
        more = f" (and so for {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise Conflict(refused[0] + more)
