"""The command `worker-manager`: names its commands, loads the one that is called, reports errors.

Nothing heavy is imported here: `--help` answers in the time that Python takes to start.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence

import click

from backends import registry
from bundles import __version__
from manager.arguments import in_order
from manager.log_format import complain

OTHERS = {
    "run": "Keep the pools of a file, the best first.",
    "plan": "What the next look at the pools of a file would do.",
    "config": "What is in force, and where each value comes from.",
    "init": "Write a pools file, by a few questions.",
    "status": "What the pools of this home have, and what was decided last.",
    "top": "The pools of this home, live.",
    "doctor": "What stands in the way of a pool's first launch.",
    "explain": "Why workers were launched or not, and what a bundle waits for.",
    "replay": "What other settings would have decided over a journal.",
    "simulate": "What would happen to bundles, workers and money, on a virtual clock.",
    "costs": "What the pools of this home have cost, for whom, and what they may.",
    "logs": "What a worker printed.",
    "terminate": "Ask workers to end.",
    "demo": "The main job on this machine, start to end: server, manager, workers.",
}


class Commands(click.Group):
    """The commands by name; each is loaded when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*registry.entries(), *OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in registry.names():
            from manager.commands.pool import pool_command

            return pool_command(cmd_name)
        if cmd_name in ("run", "plan"):
            from manager.commands.run import plan_command, run_command

            return run_command() if cmd_name == "run" else plan_command()
        if cmd_name == "config":
            from manager.commands.config import config_command

            return config_command()
        if cmd_name == "init":
            from manager.commands.init import init_command

            return init_command()
        if cmd_name == "status":
            from manager.commands.status import status_command

            return status_command()
        if cmd_name == "top":
            from manager.commands.top import top_command

            return top_command()
        if cmd_name == "doctor":
            from manager.commands.doctor import doctor_command

            return doctor_command()
        if cmd_name == "explain":
            from manager.commands.explain import explain_command

            return explain_command()
        if cmd_name == "replay":
            from manager.commands.replay import replay_command

            return replay_command()
        if cmd_name == "simulate":
            from manager.commands.simulate import simulate_command

            return simulate_command()
        if cmd_name == "costs":
            from manager.commands.costs import costs_command

            return costs_command()
        if cmd_name in ("logs", "terminate"):
            from manager.commands.workers import logs_command, terminate_command

            return logs_command() if cmd_name == "logs" else terminate_command()
        if cmd_name == "demo":
            from manager.demo.command import demo_command

            return demo_command()
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Backends"):
            formatter.write_dl([(e.name, e.summary) for e in registry.entries().values()])
        with formatter.section("Commands"):
            formatter.write_dl(list(OTHERS.items()))


def _group() -> Commands:
    return Commands(
        "worker-manager",
        help=(
            "Keeps the right number of workers alive, so that a queue of bundles drains.\n\n"
            "worker-manager BACKEND [OPTIONS] keeps a pool of workers; worker-manager BACKEND "
            "--help shows the options, which may stand on either side of the backend's name."
        ),
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            )
        ],
        subcommand_metavar="BACKEND|COMMAND [OPTIONS]",
        no_args_is_help=True,
    )


def _show_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"worker-manager {__version__}")
        context.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0, 1 for a failure, 2 for options that make no sense."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal still gets every line
    verbose = "--verbose" in words
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        level=logging.INFO,
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("manager").setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        return _run(words)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _complain(" ".join(error.format_message().split()), error, 2, verbose)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        import sqlite3

        from backends.base import BackendError, Invalid
        from bundles.errors import BundlesError, UsageError

        if isinstance(error, UsageError | Invalid):
            return _complain(str(error), error, 2, verbose)
        if isinstance(error, OSError) and error.filename is not None:
            return _complain(f"{error.filename}: {error.strerror}", error, 1, verbose)
        if isinstance(error, BundlesError | BackendError | OSError):
            return _complain(str(error), error, 1, verbose)
        if isinstance(error, sqlite3.Error):
            said = f"the ledger of this home cannot be used: {error}"
            return _complain(f"{said}: see worker-manager doctor BACKEND", error, 1, verbose)
        return _complain(f"{type(error).__name__}: {error}", error, 1, verbose)


def _run(words: list[str]) -> int:
    commands = [*registry.entries(), *OTHERS]
    ordered = in_order(words, [*registry.names(), *OTHERS], _options_with_value())
    if ordered and ordered[0] not in ("--help", "--version") and ordered[0].startswith("-"):
        raise click.UsageError(f"name a backend or a command: {', '.join(commands)}")
    result = _group().main(
        ordered,
        prog_name="worker-manager",
        standalone_mode=False,
    )
    return result if isinstance(result, int) else 0


def _options_with_value() -> set[str]:
    from manager.options import pool_options

    return {
        name
        for option in pool_options()
        if not option.is_flag and not option.count
        for name in option.opts
    }


def _complain(sentence: str, error: BaseException, code: int, verbose: bool) -> int:
    if verbose:
        logging.getLogger("manager").debug("where it came from", exc_info=error)
    complain(sentence)
    return code
