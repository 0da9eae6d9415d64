"""`bundles serve`: the embedded server, in the foreground, until it is told to end."""

from __future__ import annotations

import logging

import click

from bundles.cli.options import Settings
from bundles.errors import UsageError
from bundles.home import DEFAULT_PORT, HOME_VARIABLE, Home

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
    "--worker-timeout-seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="A worker that is not heard of for so long counts as gone.",
)
@click.option("--verbose", is_flag=True, help="Log every change, and tracebacks of errors.")
def serve(
    home: str | None,
    host: str,
    port: int,
    database: str | None,
    worker_timeout_seconds: float,
    verbose: bool,
) -> None:
    """Keep the queue of bundles and answer clients and workers, until Ctrl-C.

    The first start makes an admin and writes their token to the file `token` of the home
    directory, where the other commands find it.
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
    if verbose:
        logging.getLogger("bundles").setLevel(logging.DEBUG)
    from bundles.server import run

    run.serve(
        run.Settings(Home.find(home), host, port, database, worker_timeout_seconds),
        announce=lambda address: click.echo(f"Serving on {address}"),
    )
