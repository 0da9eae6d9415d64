"""What the subcommands have in common: options, and the connection that these lead to."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from bundles.errors import UsageError
from bundles.home import HOME_VARIABLE, SERVER_VARIABLE, Home, find_credentials, find_server
from bundles.sizes import parse_duration, parse_size

if TYPE_CHECKING:
    from bundles.client import Client

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

MAX_NAME_LENGTH = 64


@dataclass
class Settings:
    """What the subcommand found out that its caller needs."""

    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to find the server, and who to be there. Asks nobody before ``client()``."""

    home: Home
    server_option: str | None = None

    def client(self) -> Client:
        """A client of that server. Raises UsageError, NotAuthenticated."""
        import httpx

        from bundles.client import Client

        server = find_server(self.server_option, self.home)
        try:
            return Client(server, find_credentials(server, self.home))
        except httpx.InvalidURL as error:
            raise UsageError(f"the server {server!r} is not an address: {error}") from error


def common_options(function: Callable[Concatenate[Connection, P], R]) -> Callable[..., R]:
    """Adds `--home`, `--server` and `--verbose`; the function gets a Connection first."""

    @click.option(
        "--home",
        metavar="DIR",
        help=f"Home directory of the server and its token.  [env: {HOME_VARIABLE}]",
    )
    @click.option(
        "--server",
        metavar="URL",
        help="Address of the server; by default the one of the home directory."
        f"  [env: {SERVER_VARIABLE}]",
    )
    @click.option("--verbose", is_flag=True, help="Show requests, and tracebacks of errors.")
    @functools.wraps(function)
    def command(*args: Any, home: str | None, server: str | None, verbose: bool, **kw: Any) -> R:
        if verbose:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
            settings = click.get_current_context().find_object(Settings)
            if settings is not None:
                settings.verbose = True
        return function(Connection(Home.find(home), server), *args, **kw)

    return command


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)


def _checked(name: str, parse: Callable[[str], object]) -> Callable[[str], str]:
    """An option's type: the text as it is, which is what servers store and show again, if
    ``parse`` can read it."""

    def check(text: str) -> str:
        try:
            parse(text)
        except UsageError as error:
            raise click.BadParameter(str(error)) from error
        return text

    check.__name__ = name  # what the help calls the value
    return check


SIZE = _checked("size", parse_size)
DURATION = _checked("duration", parse_duration)


def parse_name(text: str) -> str:
    """A name for a bundle, as is. Raises UsageError for one that could not be typed again."""
    if (
        not text.strip()
        or text != text.strip()
        or len(text) > MAX_NAME_LENGTH
        or not text.isprintable()
        or any(character in text for character in "/:,%")
    ):
        raise UsageError(
            f"{text!r} is no name for a bundle: write up to {MAX_NAME_LENGTH} characters, none of "
            "them / : , %"
        )
    return text


NAME = _checked("name", parse_name)


def default_name(text: str) -> str:
    """A name made of ``text``, with `-` for what names do not hold: `run-sort-a.txt`."""
    name = re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-")[:32].strip("-")
    return name or "bundle"


def _split_tags(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> list[str]:
    return [tag.strip() for value in values for tag in value.split(",") if tag.strip()]


def describing_options(function: F) -> F:
    """Adds `--name`, `--description` and `--tags`, as every new bundle takes them."""
    for option in (
        click.option(
            "-t",
            "--tags",
            multiple=True,
            callback=_split_tags,
            metavar="TAG[,TAG…]",
            help="Tags to find it by; may be repeated.",
        ),
        click.option("-d", "--description", default="", help="What it is."),
        click.option("-n", "--name", type=NAME, help="Its name, by default made up."),
    ):
        function = option(function)
    return function
