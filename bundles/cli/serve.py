"""`bundles serve`: the embedded server, in the foreground, until it is told to end."""

from __future__ import annotations

import logging

import click

from bundles.cli.options import SIZE, Settings
from bundles.errors import UsageError
from bundles.home import DEFAULT_PORT, HOME_VARIABLE, Home, given_token
from bundles.sizes import parse_size

LOWEST_TIMEOUT_SECONDS = 1.0


@click.command()
@click.option(
    "--home",
    metavar="DIR",
    help=f"Where the database, the contents and the admin's token lie.  [env: {HOME_VARIABLE}]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--database",
    metavar="URL",
    help="postgresql://USER@HOST/NAME or sqlite:///PATH.  [default: SQLite in the home directory]",
)
@click.option(
    "--contents",
    metavar="PLACE",
    help="s3://BUCKET/PREFIX or a directory.  [default: `contents` in the home directory]",
)
@click.option(
    "--contents-cache",
    type=SIZE,
    metavar="SIZE",
    help="With contents in S3: how much of them is kept in the home directory, besides what is "
    "being read.  [default: 10g]",
)
@click.option(
    "--worker-timeout-seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="A worker that is not heard of for so long counts as gone.",
)
@click.option(
    "--max-losses",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="A bundle that was lost so often with a worker that ran it, fails.",
)
@click.option("--verbose", is_flag=True, help="Log every change, and tracebacks of errors.")
def serve(
    home: str | None,
    host: str,
    port: int,
    database: str | None,
    contents: str | None,
    contents_cache: str | None,
    worker_timeout_seconds: float,
    max_losses: int,
    verbose: bool,
) -> None:
    """Keep the queue of bundles and answer clients and workers, until Ctrl-C.

    The first start makes an admin and writes their token to the file `token` of the home
    directory, where the other commands find it. The token in WORKER_MANAGER_TOKEN, or in systemd's
    credential `token`, is the admin's too for as long as the server is started with it.
    """
    if not LOWEST_TIMEOUT_SECONDS <= worker_timeout_seconds < float("inf"):
        raise UsageError(
            f"--worker-timeout-seconds is {worker_timeout_seconds:g}: it must be at least "
            f"{LOWEST_TIMEOUT_SECONDS:g}"
        )
    settings = click.get_current_context().find_object(Settings)
    if settings is not None:
        settings.verbose = verbose
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found what
    if verbose:
        logging.getLogger("bundles").setLevel(logging.DEBUG)
    from bundles.server import run

    run.serve(
        run.Settings(
            Home.find(home),
            host,
            port,
            database_url=database,
            contents=contents,
            contents_cache_bytes=None if contents_cache is None else parse_size(contents_cache),
            given_token=given_token(),
            worker_timeout_seconds=worker_timeout_seconds,
            max_losses=max_losses,
        ),
        announce=lambda address: click.echo(f"Serving on {address}"),
    )
