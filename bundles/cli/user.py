"""`bundles user`: who may use the server. For its administrator."""

from __future__ import annotations

import sys

import click

from bundles.cli.options import Connection, common_options
from bundles.errors import UsageError


@click.group()
def user() -> None:
    """Add people who may use the server."""


@user.command()
@click.argument("name")
@common_options
def add(connection: Connection, name: str) -> None:
    """Make a user NAME, whose password is asked for, or read from a line of stdin.

    They use it by CODALAB_USERNAME and CODALAB_PASSWORD.
    """
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} is no name for a user: write letters and digits")
    with connection.client() as client:
        client.add_user(name, _password(name))
    click.echo(name)


def _password(name: str) -> str:
    if sys.stdin.isatty():
        password = click.prompt(
            f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True
        )
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise UsageError("the password is empty: type one, or write it as a line to stdin")
    return str(password)
