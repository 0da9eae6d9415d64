"""`bundles upload`: a file or directory becomes a bundle, whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from bundles.cli.options import Connection, common_options, default_name, describing_options
from bundles.cli.transfer import shown
from bundles.errors import BundlesError, UsageError

if TYPE_CHECKING:
    from bundles.client import Client

CHUNK_BYTES = 256 * 1024


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@describing_options
@click.option(
    "-x",
    "--exclude-patterns",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and directories whose name or path matches, such as '*.pyc'; may be "
    "repeated.",
)
@click.option("-p", "--pack", is_flag=True, help="Keep an archive (.tar, .tar.gz, .tgz) packed.")
@common_options
def upload(
    connection: Connection,
    path: Path,
    name: str | None,
    description: str,
    tags: list[str],
    exclude_patterns: tuple[str, ...],
    pack: bool,
) -> None:
    """Make a bundle of the file or directory PATH and print its uuid.

    It is ready when this command ends. An upload that fails or is interrupted leaves no bundle.
    """
    from bundles.cli.creation import create
    from bundles.model import new_uuid

    is_directory = path.is_dir()
    if is_directory:
        for reason in _left_out(path):
            click.echo(f"bundles: left out: {reason}", err=True)
    elif not path.is_file():
        raise UsageError(f"{path} is neither a file nor a directory: give one of these")
    elif exclude_patterns:
        raise UsageError(f"{path} is a file: --exclude-patterns is for directories")
    else:
        path.open("rb").close()  # whether it can be read, before there is a bundle
    file_name = path.name or path.resolve().name
    uuid = new_uuid()
    with connection.client() as client:
        try:
            create(
                client,
                {
                    "uuid": uuid,
                    "bundle_type": "dataset",
                    "metadata": {
                        "name": name or default_name(file_name),
                        "description": description,
                        "tags": tags,
                    },
                },
            )
            client.upload(
                uuid,
                _packed(path, exclude_patterns) if is_directory else _chunks(path),
                filename=f"{default_name(file_name)}.tar.gz" if is_directory else file_name,
                finalize=True,
                unpack=is_directory or not pack,
            )
        except UsageError as error:
            raise UsageError(f"{error} ({_undo(client, uuid)})") from error
        except BundlesError as error:
            raise type(error)(f"{error} ({_undo(client, uuid)})") from error
        except OSError as error:
            raise BundlesError(f"{path}: {error.strerror} ({_undo(client, uuid)})") from error
        except BaseException:
            click.echo(f"bundles: the upload was cut off ({_undo(client, uuid)})", err=True)
            raise
    click.echo(uuid)


def _undo(client: Client, uuid: str) -> str:
    """Take the half bundle away again; returns what is to be said about that."""
    from bundles.errors import NotFound

    try:
        client.delete([uuid], force=True)
    except NotFound:
        return "no bundle was made"
    except BundlesError:
        return f"if `bundles info {uuid}` finds a half bundle: bundles rm --force {uuid}"
    return "the half bundle was removed"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from shown(_read(file), path.name, os.fstat(file.fileno()).st_size)


def _read(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _packed(path: Path, exclude_patterns: tuple[str, ...]) -> Iterator[bytes]:
    from bundles.archive import pack

    return shown(pack(path, exclude=exclude_patterns), path.name)


def _left_out(root: Path) -> Iterator[str]:
    """What of a directory cannot be uploaded, a sentence each.

    Raises OSError for a file or directory that may not be read: leaving it out would be a loss.
    """
    from bundles.archive import is_inside

    def fail(error: OSError) -> None:
        raise error

    for directory, directories, files in os.walk(root, onerror=fail):
        for name in directories + files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                if os.path.isabs(os.readlink(path)) or not is_inside(root, path):
                    yield f"{path} is a link that leaves the directory"
            elif stat.S_ISREG(mode):
                if not os.access(path, os.R_OK):
                    raise PermissionError(13, "cannot be read; nothing was uploaded", path)
            elif not stat.S_ISDIR(mode):
                yield f"{path} is neither a file nor a directory nor a link"
