"""The command `bundles`: its subcommands, each loaded when it is called, and how errors leave it.

What a subcommand does stands in the module of its name. Nothing here speaks to a server.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from bundles import __version__
from bundles.cli.options import Settings
from bundles.cli.output import printable
from bundles.errors import BundlesError, UsageError

COMMANDS = (
    "serve",
    "user",
    "upload",
    "run",
    "ls",
    "info",
    "cat",
    "logs",
    "download",
    "wait",
    "kill",
    "write",
    "rm",
)
"""In the order of the help; the command `x` is the object `x` of the module `bundles.cli.x`."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class _Commands(click.Group):
    """A group that imports a subcommand only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"bundles.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bundles", message="%(prog)s %(version)s")
def bundles() -> None:
    """Queue bundles (data, and commands to run over it) and read what became of them.

    The server is the one that `bundles serve` started for the same home directory, unless
    --server or WORKER_MANAGER_SERVER names another. Where a UUID is taken, so is a unique
    prefix of it and the name of a bundle.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    settings = Settings()
    try:
        signal.signal(signal.SIGTERM, _terminate)
        code = bundles.main(
            args=None if arguments is None else list(arguments),
            prog_name="bundles",
            standalone_mode=False,
            obj=settings,
        )
        if sys.stdout is not None:  # it may have been closed at our start
            sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_FAILURE
    except Exception as error:
        code = _complain(error, verbose=settings.verbose)
    _let_go_of_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that whoever holds a half-done thing can undo it.
    raise SystemExit(EXIT_TERMINATED)


def _complain(error: Exception, *, verbose: bool) -> int:
    """Say it in one line on stderr; returns the exit code."""
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    code = EXIT_FAILURE
    if isinstance(error, click.ClickException):
        code = error.exit_code
        sentence = error.format_message()
        context = getattr(error, "ctx", None)
        if context is not None:
            sentence = f"{sentence.rstrip('.')} (see `{context.command_path} --help`)"
    elif isinstance(error, BundlesError):
        code = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE
        sentence = str(error)
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        sentence = f"{place}{error.strerror}"
    else:
        sentence = f"unforeseen {type(error).__name__}: {error} (--verbose shows where)"
    click.echo(f"bundles: {printable(sentence)}", err=True)
    return code


def _let_go_of_stdout() -> None:
    # Python flushes stdout once more when it exits, and complains if its reader has left.
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
