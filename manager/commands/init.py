"""`worker-manager init BACKEND`: asks what a pool must be told, and writes the pools file.

Starts nothing, and asks nobody but the person: what is wrong with a pool is the doctor's to find.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from backends import registry
from manager.commands.by_backend import ByBackend
from manager.options import check_together, connection_options, look_options, set_options

ALSO_ASKED = {
    "slurm": ("partition", "account"),
    "aws-batch": ("job_queue",),
    "azure-batch": ("pool_id",),
}
"""Beside what a backend cannot do without: what few of its pools go without."""

ASKED_OF_ALL = (*registry.REQUIRED, "max_workers")

TERRAFORM = "examples/minimal && terraform init && terraform apply"

AS_A_SERVICE = {
    "slurm": ("deploy/slurm/install --pools {file}", "docs/install/slurm.md"),
    "local-docker": ("docker compose -f deploy/compose.yaml up", "docs/install/docker.md"),
    "aws-batch": (f"cd terraform/aws/{TERRAFORM}", "docs/install/aws.md"),
    "azure-batch": (f"cd terraform/azure/{TERRAFORM}", "docs/install/azure.md"),
    "gcp-batch": (f"cd terraform/gcp/{TERRAFORM}", "docs/install/gcp.md"),
}
"""How such a pool is kept for good, and where to read about it."""


def init_command() -> click.Command:
    return ByBackend(
        "init",
        _command_of,
        help=(
            "Write a pools file for `worker-manager run`, and say what comes next.\n\nAsks what a "
            "pool of the backend must be told; an option that is given is not asked for."
        ),
    )


def _command_of(entry: registry.Entry) -> click.Command:
    from manager.commands.pool import every_option

    left_out = {option.name for option in look_options()} | {"verbose"}
    options = [option for option in every_option(entry) if option.name not in left_out]
    required = [option.name for option in options if option.required and option.name]
    for option in options:
        option.required = False  # what is missing is asked for

    def run(file: str, force: bool, non_interactive: bool, **settings: Any) -> int:
        path = Path(file).absolute()
        if path.exists() and not path.is_file():
            raise click.UsageError(f"{file} is no file: give another --file")
        if path.exists() and not force:
            raise click.UsageError(f"{file} is there: --force writes another in its place")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise click.UsageError(
                f"{path.parent} is no directory to write to: give another --file"
            )
        context = click.get_current_context()
        said = {name: value for name, value in settings.items() if _is_given(context, name)}
        missing = [o.opts[0] for o in options if o.name in required and not said.get(o.name)]
        if non_interactive and missing:
            raise click.UsageError(f"not given: {', '.join(missing)}")
        credentials = None
        if not non_interactive:
            wanted = ("server", *required, *ALSO_ASKED.get(entry.name, ()), *ASKED_OF_ALL)
            unsaid = [name for name in dict.fromkeys(wanted) if name not in said]
            by_name = {option.name: option for option in options}
            with _answered():
                for name in unsaid:
                    answer = _ask(context, by_name[name], must=name in required)
                    if answer is not None:
                        said[name] = answer
                credentials = _ask_credentials(said)
        check_together(settings | said)
        if credentials:
            password = path.with_name("password")
            said["password_file"] = str(password)
            _write(password, "\n".join((*credentials, "")), 0o600, force)
        private = any(option.hide_input and option.name in said for option in options)
        _write(path, pools_text(entry.name, options, said), 0o600 if private else 0o644, force)
        click.echo(_what_comes_next(entry.name, file))
        return 0

    return click.Command(
        entry.name,
        params=[
            click.Option(
                ["--file"],
                type=click.Path(dir_okay=False),
                default="pools.toml",
                show_default=True,
                help="The file to write.",
            ),
            click.Option(["--force"], is_flag=True, help="Write it though there is one."),
            click.Option(["--non-interactive"], is_flag=True, help="Ask nothing."),
            *options,
        ],
        callback=run,
        short_help=entry.summary,
        help=f"Write a pools file with one {entry.name} pool.",
    )


def _is_given(context: click.Context, name: str) -> bool:
    """On the command line, or in a variable of its own: the home's is the program's, not a pool's,
    and whoever runs the pools has it as well."""
    source = context.get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE or (
        source is ParameterSource.ENVIRONMENT and name != "home"
    )


# Asking


@contextmanager
def _answered() -> Iterator[None]:
    """Whoever goes away in the middle has a line of their own, and nothing is written."""
    try:
        yield
    except click.Abort as error:
        click.echo(err=True)
        if isinstance(error.__context__, EOFError):
            raise click.UsageError(
                "the answers end before the questions, and nothing is written: "
                "--non-interactive takes options alone"
            ) from error
        raise


def _ask(context: click.Context, option: click.Option, *, must: bool) -> Any:
    """A value that the option takes; None where it may be left out and is."""
    default = option.default if isinstance(option.default, str | int | float) else None
    if option.name == "server":
        default = _default_server()
    question = (option.help or option.opts[0]).partition("  [")[0].removesuffix(".")
    if default is None and not must:
        question += " (or nothing)"

    def read(text: str) -> Any:
        return option.process_value(context, text) if text else None

    return click.prompt(
        f"{option.opts[0]}: {question}",
        default="" if default is None and not must else default,
        show_default=default is not None,
        hide_input=option.hide_input,
        value_proc=lambda text: read(str(text)),
        err=True,
    )


def _default_server() -> str:
    from bundles.home import Home

    return Home.find().address()


def _ask_credentials(said: Mapping[str, Any]) -> tuple[str, str] | None:
    """User and password, unless the environment or the home has credentials for the server."""
    from bundles.errors import NotAuthenticated
    from bundles.home import TOKEN_VARIABLE, Home, find_credentials, find_server

    if said.get("password_file"):
        return None
    home = Home.find(said.get("home"))
    server = find_server(said.get("server"), home)
    try:
        find_credentials(server, home)
    except NotAuthenticated:
        user = click.prompt(
            f"Your name at {server} (or nothing: {TOKEN_VARIABLE} will be set)",
            default="",
            show_default=False,
            err=True,
        )
        if user:
            return user, click.prompt(f"Password of {user}", hide_input=True, err=True)
    return None


# Writing


def pools_text(backend: str, options: Iterable[click.Option], said: Mapping[str, Any]) -> str:
    """A pools file of one pool. ``said``: by the name of the option, what is not left to it."""
    of_set = {option.name for option in [*connection_options(), *set_options()]}
    lines = [
        f"# Written by `worker-manager init {backend}`. Any option of `worker-manager {backend}`",
        "# may stand here by its name: those of one pool below [[pools]], the others above.",
    ]
    pool = ["", "[[pools]]", f"name = {_value(said.get('pool') or backend)}"]
    pool.append(f"backend = {_value(backend)}")
    for option in options:
        if option.name in said and option.name != "pool":
            section = lines if option.name in of_set else pool
            key = option.opts[0].removeprefix("--")
            section.append(f"{key} = {_value(said[option.name])}")
    return "\n".join((*lines, *pool, ""))


def _value(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    # Strings of JSON are strings of TOML, but for the one control character that JSON leaves be.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write(path: Path, text: str, mode: int, force: bool) -> None:
    """Whole or not at all. Raises OSError, also when it is there and was not to be."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w") as file:
            file.write(text)
        if force:
            temporary.rename(path)
        else:
            os.link(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _what_comes_next(backend: str, file: str) -> str:
    word = shlex.quote(file)
    steps = [
        (f"worker-manager doctor {word}", "does anything stand in the way?"),
        (f"worker-manager run {word} --plan", "what would it do now? changes nothing"),
        (f"worker-manager run {word}", "keep the pool, until Ctrl-C"),
    ]
    if backend in AS_A_SERVICE:
        command, page = AS_A_SERVICE[backend]
        steps.append((command.format(file=word), f"keep it for good: {page}"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:{width}}  # {why}" for command, why in steps]
    return "\n".join((f"{file} is written. Next:", *lines))
