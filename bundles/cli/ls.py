"""`bundles ls`: which bundles there are."""

from __future__ import annotations

import time

import click

from bundles.cli.options import Connection, common_options, output_option
from bundles.errors import UsageError
from bundles.model import State

DEFAULT_LIMIT = 50


@click.command()
@click.argument("keywords", nargs=-1)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    default=DEFAULT_LIMIT,
    show_default=True,
    help="Show at most so many; 0: all.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(state) for state in State]),
    metavar="STATE",
    help="Only bundles in this state; may be repeated.",
)
@output_option
@common_options
def ls(
    connection: Connection,
    keywords: tuple[str, ...],
    limit: int,
    states: tuple[str, ...],
    output: str,
) -> None:
    """List bundles, newest first.

    KEYWORDS select among them, all of them together: key=value with any field
    (name=sort%, request_queue=gpu, owner=ann), .mine, or the beginning of a uuid or a name.
    `.count` prints how many there are.
    """
    from bundles.cli.output import bundle_document, write_json

    wanted = list(keywords)
    if any(word == ".shapes" or word.endswith("=.sum") for word in wanted):
        raise UsageError("ls shows bundles: the keywords .shapes and .sum select none")
    if states:
        wanted.append("state=" + ",".join(states))
    with connection.client() as client:
        if ".count" in wanted:
            count = client.count([word for word in wanted if word != ".count"])
            click.echo(count)
            return
        sorted_by_caller = any("=.sort" in word for word in wanted)
        paged_by_caller = any(word.startswith((".limit=", ".offset=")) for word in wanted)
        if paged_by_caller or limit > 0:
            if not paged_by_caller:
                wanted.append(f".limit={limit}")
            if not sorted_by_caller:
                wanted.append("id=.sort-")
            found = client.search(wanted)
        else:
            found = client.search(wanted)
            if not sorted_by_caller:
                found.reverse()
    if output == "json":
        write_json([bundle_document(bundle) for bundle in found])
        return
    from rich.text import Text

    from bundles.cli.output import (
        STATE_STYLES,
        age,
        console,
        duration,
        new_table,
        printable,
        short_uuid,
    )

    table = new_table("uuid", "name", "state", "owner", "age", "time", "command")
    # Only name and command give way to a narrow terminal, but their cells are not folded either.
    table.columns[1].max_width = 24
    table.columns[3].max_width = 12
    for column in (1, 6):
        table.columns[column].no_wrap = False
    now = time.time()
    for bundle in found:
        table.add_row(
            short_uuid(bundle.uuid),
            Text(printable(bundle.name), no_wrap=True, overflow="ellipsis"),
            Text(bundle.state, style=STATE_STYLES.get(bundle.state, "")),
            Text(printable(bundle.owner_name or bundle.owner_id)),
            age(bundle.metadata.get("created"), now),
            duration(bundle.metadata.get("time")),
            Text(printable(bundle.command), no_wrap=True, overflow="ellipsis"),
        )
    console().print(table)
