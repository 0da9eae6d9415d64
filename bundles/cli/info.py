"""`bundles info`: everything the server says about bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bundles.cli.options import Connection, common_options, output_option
from bundles.errors import UsageError

if TYPE_CHECKING:
    from bundles.model import Bundle

_SIZES = ("data_size", "disk_utilization")


@click.command()
@click.argument("uuids", nargs=-1, required=True, metavar="UUID...")
@click.option(
    "-f",
    "--field",
    "fields",
    metavar="FIELD[,FIELD…]",
    help="Only the values of these fields, a line a bundle, with tabs between them.",
)
@output_option
@common_options
def info(connection: Connection, uuids: tuple[str, ...], fields: str | None, output: str) -> None:
    """Show all that is known about bundles.

    With -o json: an object for one UUID, a list of objects for several.
    """
    from bundles.cli.names import find_uuids
    from bundles.cli.output import bundle_document, write_json

    with connection.client() as client:
        found = client.bundles(find_uuids(client, uuids))
    documents = [bundle_document(bundle) for bundle in found]
    if fields is not None:
        names = [name.strip() for name in fields.split(",") if name.strip()]
        documents = [{name: _field(document, name) for name in names} for document in documents]
    if output == "json":
        write_json(documents[0] if len(uuids) == 1 else documents)
    elif fields is not None:
        from bundles.cli.output import printable

        for document in documents:
            click.echo("\t".join(printable(_plain(value)) for value in document.values()))
    else:
        for number, bundle in enumerate(found):
            if number:
                click.echo()
            _show(bundle)


def _field(document: dict[str, Any], name: str) -> Any:
    if name in document:
        return document[name]
    metadata = document["metadata"]
    if name in metadata:
        return metadata[name]
    known = sorted({*document, *metadata} - {"metadata"})
    raise UsageError(f"a bundle has no field {name!r}: it has {', '.join(known)}")


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(
            f"{item['child_path']}:{item['parent_uuid']}"
            + (f"/{item['parent_path']}" if item.get("parent_path") else "")
            if isinstance(item, dict) and "parent_uuid" in item
            else _plain(item)
            for item in value
        )
    if isinstance(value, dict):
        import json

        return json.dumps(value)
    return str(value)


def _show(bundle: Bundle) -> None:
    from rich.table import Table
    from rich.text import Text

    from bundles.cli.output import (
        STATE_STYLES,
        bundle_document,
        console,
        duration,
        moment,
        printable,
    )
    from bundles.sizes import format_size

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def add(label: str, value: str, style: str = "") -> None:
        if value:
            table.add_row(Text(label, style="bold"), Text(printable(value), style=style))

    document = bundle_document(bundle)
    metadata = document.pop("metadata")
    add("uuid", bundle.uuid)
    add("name", bundle.name)
    add("type", bundle.bundle_type)
    add("state", bundle.state, STATE_STYLES.get(bundle.state, ""))
    add("details", bundle.state_details)
    add("failure", _plain(metadata.get("failure_message")), "red")
    lost_with = metadata.get("lost_with") or ()
    if lost_with:
        times = "once" if len(lost_with) == 1 else f"{len(lost_with)} times"
        add("lost", f"{times} while it ran, with {', '.join(lost_with)}")
    add("owner", document["owner"])
    add("created", moment(metadata.get("created")))
    add("time", duration(metadata.get("time")))
    add("command", bundle.command)
    for number, dependency in enumerate(bundle.dependencies):
        path = f"/{dependency.parent_path}" if dependency.parent_path else ""
        name = f" ({dependency.parent_name})" if dependency.parent_name else ""
        add(
            "" if number else "depends on",
            f"{dependency.child_path} ← {dependency.parent_uuid}{path}{name}",
        )
    shown = {"name", "failure_message", "created", "time", "lost_with"}
    for key, value in metadata.items():
        if key in shown or value in (None, "", [], {}):
            continue
        if key in _SIZES and isinstance(value, int | float):
            add(key, f"{format_size(value)} ({value})")
        elif key in ("started", "last_updated"):
            add(key, moment(value) or _plain(value))
        else:
            add(key, _plain(value))
    console().print(table)
