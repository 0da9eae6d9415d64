"""`worker-manager config`: what is in force, and where each value comes from. Asks nobody.

What is printed of a pools file is a pools file again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from backends import registry
from manager.arguments import in_order
from manager.options import (
    connection_options,
    look_options,
    output_option,
    pool_options,
    set_options,
)

if TYPE_CHECKING:
    from manager.pools_file.reading import Origin, PoolsFile

NOT_SHOWN = "not shown"


@dataclass(frozen=True, slots=True)
class Effective:
    """One value in force. ``value`` is None when there is none, or it ``is_secret``."""

    key: str
    value: Any
    source: str
    is_secret: bool = False

    def line(self) -> str:
        """TOML."""
        if self.is_secret:
            return f"# {self.key}: {NOT_SHOWN}; {self.source}"
        if self.value is None:
            return f"# {self.key}: none; {self.source}"
        return f"{self.key} = {json.dumps(self.value, ensure_ascii=False)}  # {self.source}"

    def document(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"value": self.value, "source": self.source}
        return shown | ({"is_secret": True} if self.is_secret else {})


def config_command() -> click.Command:
    return click.Command(
        "config",
        params=[
            output_option(),
            click.Option(["--schema"], is_flag=True, help="The JSON schema of pools files."),
            click.Argument(["words"], nargs=-1, type=click.UNPROCESSED),
        ],
        callback=_config,
        context_settings={"ignore_unknown_options": True},
        options_metavar="[-o json]",
        help=(
            "What a pools file, or a backend with its options, comes to, and where each value "
            "comes from.\n\nworker-manager config pools.toml\n\n"
            "worker-manager config BACKEND [OPTIONS]\n\n"
            "Secrets are not shown. Asks nobody anything."
        ),
    )


def _config(output: str, schema: bool, words: tuple[str, ...]) -> int:
    if schema:
        from manager.pools_file.schema import schema_of

        if words:
            raise click.UsageError(f"--schema is of every pools file: leave out {words[0]}")
        print(json.dumps(schema_of(registry.entries().values()), indent=1, ensure_ascii=False))
        return 0
    with_value = {name for o in pool_options() if not o.is_flag for name in o.opts}
    ordered = in_order(words, registry.names(), with_value)
    as_json = output == "json"
    if ordered and ordered[0] in registry.names():
        return _of_command(ordered[0], ordered[1:], as_json=as_json)
    return _of_file(ordered, as_json=as_json)


# A pools file


def _of_file(words: list[str], *, as_json: bool) -> int:
    from manager.commands.run import complain_of, said_of
    from manager.pools_file.reading import BadPoolsFile, load

    file = click.Argument(["file"])
    options = [*connection_options(), *set_options()]
    context = click.Command("config", params=[file, *options]).make_context("config", words)
    try:
        pools_file = load(Path(context.params["file"]), said_of(context, options))
    except BadPoolsFile as error:
        return complain_of(error)
    everyone = list(_of_set(pools_file))
    pools = {pool.name: list(_of_pool(pools_file, pool.name)) for pool in pools_file.pools}
    budget = list(_of_budget(pools_file))
    if as_json:
        document = {
            "file": str(pools_file.path),
            "set": _documents(everyone),
            "budget": _documents(budget),
            "pools": [{"name": name, "options": _documents(own)} for name, own in pools.items()],
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    sections = [("", everyone), ("[budget]", budget)]
    sections += [(f"[[pools]]\nname = {json.dumps(name)}", own) for name, own in pools.items()]
    print("\n\n".join(_section(title, values) for title, values in sections))
    return 0


def _of_set(file: PoolsFile) -> Iterator[Effective]:
    first = file.pools[0]
    yield from _effective(
        [*connection_options(), *set_options()],
        first.settings,
        {name: origin.text(str(file.path)) for name, origin in first.origins.items()},
    )


def _of_pool(file: PoolsFile, name: str) -> Iterator[Effective]:
    from manager.commands.pool import every_option

    pool = next(pool for pool in file.pools if pool.name == name)
    origins: dict[str, Origin] = {**pool.origins}
    yield Effective("backend", pool.backend_name, f"{file.path}:{pool.backend_line}")
    of_all = {option.name for option in set_options()} | {"home", "pool"}
    yield from _effective(
        [o for o in every_option(registry.find(pool.backend_name)) if o.name not in of_all],
        pool.settings,
        {option: origin.text(str(file.path)) for option, origin in origins.items()},
    )


def _of_budget(file: PoolsFile) -> Iterator[Effective]:
    for field, information in type(file.budget).model_fields.items():
        key = information.alias or field
        line = file.budget_lines.get(key)
        source = f"{file.path}:{line}" if line else "default"
        yield Effective(key, getattr(file.budget, field), source)


# A backend's command


def _of_command(backend: str, words: list[str], *, as_json: bool) -> int:
    from bundles.home import Home, find_server
    from manager.commands.pool import pool_command
    from manager.installation import default_pool
    from manager.options import check_together
    from manager.pool import worker_of
    from manager.pools_file.reading import Origin, variable_of

    command = pool_command(backend)
    context = command.make_context(backend, words)
    check_together(context.params)
    worker_of(context.params)
    sources = {}
    for option in command.params:
        source = context.get_parameter_source(option.name or "")
        origin = Origin(
            is_command_line=source is ParameterSource.COMMANDLINE,
            variable=variable_of(option) if source is ParameterSource.ENVIRONMENT else None,
        )
        sources[option.name or ""] = origin.text()
    options = [option for option in command.params if isinstance(option, click.Option)]
    settings = context.params
    if settings["pool"] is None:
        home = Home.find(settings["home"])
        server = find_server(settings["server"], home)
        settings = {**settings, "pool": default_pool(backend, server, home)}
    values = [
        Effective("backend", registry.find(backend).name, "command line"),
        *_effective(options, settings, sources),
    ]
    print(json.dumps(_documents(values), ensure_ascii=False) if as_json else _section("", values))
    return 0


def _effective(
    options: Iterable[click.Option], settings: Mapping[str, Any], sources: Mapping[str, str]
) -> Iterator[Effective]:
    from bundles.home import Home, find_server
    from manager.pools_file.model import key_of

    left_out = {option.name for option in look_options()} | {"verbose"}
    for option in options:
        name = option.name or ""
        if name in left_out:
            continue
        value, source = settings[name], sources[name]
        if option.hide_input and value is not None:
            yield Effective(key_of(option), None, source, is_secret=True)
            continue
        if value is None and name in ("home", "server"):
            home = Home.find(settings["home"])
            value = str(home.path) if name == "home" else find_server(None, home)
            source = "default" if name == "home" else "the server of this home"
        yield Effective(key_of(option), list(value) if isinstance(value, tuple) else value, source)


def _documents(values: Iterable[Effective]) -> dict[str, Any]:
    return {value.key: value.document() for value in values}


def _section(title: str, values: Iterable[Effective]) -> str:
    return "\n".join([*([title] if title else []), *(value.line() for value in values)])
