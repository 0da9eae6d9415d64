"""`bundles download`: contents of a bundle to the disk, whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from bundles.cli.options import Connection, common_options
from bundles.cli.transfer import shown
from bundles.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

    from bundles.replies import Download


@click.command()
@click.argument("target", metavar="UUID[/PATH]")
@click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(path_type=Path),
    metavar="DEST",
    help="Where to; by default the name of the file or bundle, in the current directory.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@common_options
def download(connection: Connection, target: str, destination: Path | None, force: bool) -> None:
    """Download a bundle, or a file or directory in it, and print where it is now.

    What is there already is kept, unless --force is given. A download that fails or is
    interrupted leaves nothing.
    """
    from bundles.cli.names import find_bundle, split_target

    name, path = split_target(target)
    if destination is not None:
        _check_free(destination, force)
    with connection.client() as client:
        bundle = find_bundle(client, name)
        if destination is None:
            destination = Path(path.rpartition("/")[2] or _file_name(bundle.name) or bundle.uuid)
        _check_free(destination, force)
        with client.download(bundle.uuid, path) as contents:
            _save(contents, destination, force)
    click.echo(str(destination))


def _file_name(name: str) -> str:
    """A bundle's name, if that is a file's name too; else `""`."""
    return "" if "/" in name or "\0" in name or name in (".", "..") else name


def _check_free(destination: Path, force: bool) -> None:
    if not destination.parent.is_dir():
        raise UsageError(f"there is no directory {destination.parent}: make it, or give another")
    if os.path.lexists(destination) and not force:
        raise UsageError(f"{destination} is there already: give another with -o, or --force")


def _save(contents: Download, destination: Path, force: bool) -> None:
    from bundles.archive import ChunkStream, unpack

    # A directory comes packed, so its size says nothing about the bytes to come.
    size_bytes = None if contents.is_directory else contents.size_bytes
    chunks = shown(contents.chunks(), destination.name, size_bytes)
    # Beside the destination, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(
        prefix=f".{destination.name[:100]}.", dir=destination.parent
    ) as place:
        fresh = Path(place) / "fresh"
        if contents.is_directory:
            fresh.mkdir()
            stream = io.BufferedReader(ChunkStream(chunks))
            unpack(cast("BinaryIO", stream), fresh)
        else:
            with fresh.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
        _check_free(destination, force)
        if os.path.lexists(destination):
            os.rename(destination, Path(place) / "old")
        os.rename(fresh, destination)
