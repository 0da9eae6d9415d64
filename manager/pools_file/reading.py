"""From the text of a pools file to the settings of each pool, or every problem with its line.

What is read here is what the command line of each backend would have made of the same options.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from click.core import ParameterSource
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backends import registry
from bundles.errors import UsageError
from manager.commands.pool import pool_command
from manager.money import Terms
from manager.options import check_together
from manager.pool import worker_of
from manager.pools_file.model import BACKEND, NAME, Budget, command_line_only, grammar, key_of
from manager.pools_file.positions import Path as KeyPath
from manager.pools_file.positions import Positions

LARGEST_BYTES = 1024**2
NOTHING_SAID: Mapping[str, Any] = MappingProxyType({})
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)")


class BadPoolsFile(UsageError):
    """A pools file that cannot be used: ``problems`` has a line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from. ``variable``: of the environment; ``line``: of the file, in the
    table `[defaults]` when ``is_default``. None of these: the option's own default."""

    line: int | None = None
    is_default: bool = False
    variable: str | None = None
    is_command_line: bool = False

    def text(self, file: str = "") -> str:
        if self.is_command_line:
            return "command line"
        if self.variable is not None:
            return f"environment variable {self.variable}"
        if self.line is None:
            return "default"
        return f"{file}:{self.line}" + (" [defaults]" if self.is_default else "")


@dataclass(frozen=True, slots=True)
class PoolTable:
    """One `[[pools]]`. ``settings``: as the command of the backend gives them to its function;
    ``origins``: of each of them."""

    name: str
    backend_name: str
    settings: Mapping[str, Any]
    origins: Mapping[str, Origin]
    backend_line: int


@dataclass(frozen=True, slots=True)
class PoolsFile:
    """A file that can be used. ``pools`` in the order of preference; ``budget``: of all of them,
    with the lines of what is given."""

    path: Path
    text: str
    pools: tuple[PoolTable, ...]
    budget: Budget
    budget_lines: Mapping[str, int]

    def blamed(self, pool: PoolTable, sentence: str) -> BadPoolsFile:
        """The error for what turned out to be wrong with a pool later, at the option it names."""
        document = _Document(self.path, self.text, tomllib.loads(self.text))
        document.blame(document.index(pool.name), sentence)
        return BadPoolsFile(document.problems())


def load(path: Path, said: Mapping[str, Any] = NOTHING_SAID) -> PoolsFile:
    """The file as it is now. ``said``: by key, what the command line says instead of the file, of
    what concerns all pools.

    Raises BadPoolsFile.
    """
    text, is_private = read_text(path)
    return parse(text, path, said, is_private=is_private)


def read_text(path: Path) -> tuple[str, bool]:
    """The text, and whether nobody else may read it. Raises BadPoolsFile."""
    try:
        status = path.stat()  # looked at first: a pipe would wait for its writer
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a file"
            raise BadPoolsFile([f"{path} is {what}: give a file such as pools.toml"])
        if status.st_size > LARGEST_BYTES:
            raise BadPoolsFile([f"{path} is too large for a pools file: give another"])
        content = path.read_bytes()
    except OSError as error:
        raise BadPoolsFile([f"{path} cannot be read: {error.strerror}"]) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadPoolsFile([f"{path}:{line}: this is not UTF-8: save it as such"]) from error
    return text, not status.st_mode & 0o077


def parse(
    text: str, path: Path, said: Mapping[str, Any] = NOTHING_SAID, *, is_private: bool = True
) -> PoolsFile:
    """What a text says. Raises BadPoolsFile with all that is wrong."""
    try:
        return _parse(text, path, said, is_private)
    except RecursionError as error:
        raise BadPoolsFile([f"{path} has lists or tables too deep in each other"]) from error


def _parse(text: str, path: Path, said: Mapping[str, Any], is_private: bool) -> PoolsFile:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = int(found[2] or text.count("\n") + 1) if found else 1
        sentence = found[1] if found else str(error)
        raise BadPoolsFile([f"{path}:{line}: this is not TOML: {sentence}"]) from error
    document = _Document(path, text, content)
    document.check_form()
    document.check_names()
    document.check_secrets(is_private)
    well_formed = not document.found
    pools = [document.pool(index, said) for index in range(len(document.tables)) if well_formed]
    if document.found:
        raise BadPoolsFile(document.problems())
    budget = content.get("budget", {})
    return PoolsFile(
        path=path,
        text=text,
        pools=tuple(pool for pool in pools if pool is not None),
        budget=Budget.model_validate(budget),
        budget_lines={key: document.positions.line(("budget", key)) for key in budget},
    )


class _Document:
    """The content of a file, and what was found wrong with it, each place once."""

    def __init__(self, path: Path, text: str, content: dict[str, Any]) -> None:
        self.content = content
        self.positions = Positions(text)
        self.found: dict[tuple[int, KeyPath], str] = {}
        self._path = path
        self._grammar = grammar()
        pools = content.get("pools")
        self.tables = pools if isinstance(pools, list) else []
        defaults = content.get("defaults")
        self.defaults = defaults if isinstance(defaults, dict) else {}

    def note(self, place: KeyPath, sentence: str) -> None:
        self.found.setdefault((self.positions.line(place), place), sentence)

    def problems(self) -> list[str]:
        return [
            f"{self._path}:{line}: {_name(place)}{sentence}"
            for (line, place), sentence in sorted(self.found.items(), key=lambda item: item[0][0])
        ]

    def index(self, name: str) -> int:
        return next(i for i, table in enumerate(self.tables) if table.get(NAME) == name)

    # The whole

    def check_form(self) -> None:
        """Keys, types, ranges, forms: what the models say."""
        try:
            self._grammar.model.model_validate(self._merged())
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self.note(*self._told(detail))

    def _merged(self) -> dict[str, Any]:
        """The content, with the defaults of each pool in it."""
        pools = [self._given(table) if isinstance(table, dict) else table for table in self.tables]
        return {**self.content, "pools": pools} if self.tables else self.content

    def _given(self, table: Mapping[str, Any]) -> dict[str, Any]:
        backend = table.get(BACKEND)
        known = self._grammar.pools.get(backend, {}) if isinstance(backend, str) else {}
        return {**{k: v for k, v in self.defaults.items() if k in known}, **table}

    def _told(self, detail: ErrorDetails) -> tuple[KeyPath, str]:
        """The place in the file, and the sentence, of an error of pydantic's."""
        place: KeyPath = detail["loc"]
        if place[0] == "pools" and len(place) > 2:
            place = (*place[:2], *place[3:])  # without the backend
            key = str(place[2])
            if key in self.defaults and key not in self.tables[int(place[1])]:
                place = ("defaults", *place[2:])
        elif place[0] == "defaults" and len(place) > 1:
            place = place[:2]  # without which backend's
        if detail["type"] == "extra_forbidden":
            return place, self._unknown(place)
        if detail["type"] == "union_tag_invalid":
            place = (*place, BACKEND)
        elif self._is_secret(str(place[-1])):
            return place, "is not text: put it in quotes"
        if detail["type"] == "missing":
            return place, self._missing(place)
        return place, _sentence(detail)

    def _missing(self, place: KeyPath) -> str:
        key = place[-1]
        if place == ("pools",):
            return "there is none: write [[pools]], and under it name, backend and its options"
        if key == NAME:
            return 'is missing: give the pool a name of its own, such as name = "campus"'
        return f"is missing: write {key} = … here or under [defaults]"

    def _unknown(self, place: KeyPath) -> str:
        """What may have been meant by a key that may not stand there."""
        key, sets, anywhere = str(place[-1]), self._grammar.sets, self._grammar.anywhere
        level: Mapping[str, Any] | set[str]
        if place[0] == "pools":
            backend = self.tables[int(place[1])][BACKEND]
            level = {**self._grammar.pools[backend], NAME: None, BACKEND: None}
            if key in sets:
                return "concerns all pools: write it above the first [[pools]] and [defaults]"
            if key in anywhere:
                owners = [name for name, own in self._grammar.pools.items() if key in own]
                return f"is no option of {backend}, but of {', '.join(owners)}"
        elif place[0] == "defaults":
            level = anywhere
            if key in sets:
                return "concerns all pools: write it above the first [[pools]] and [defaults]"
            if key in (NAME, BACKEND):
                return "is each pool's own: write it under its [[pools]]"
        elif place[0] == "budget":
            level = {f.alias or n: None for n, f in Budget.model_fields.items()}
        else:
            level = {**sets, "budget": None, "defaults": None, "pools": None}
            if key in anywhere or key in (NAME, BACKEND):
                return "concerns one pool: write it under [[pools]] or, for all, [defaults]"
        if key in command_line_only():
            return "is said on the command line alone: leave it out"
        return f"is no such key{_suggestion(key, level, self._aliases(level))}"

    @staticmethod
    def _aliases(level: Mapping[str, Any] | set[str]) -> dict[str, str]:
        if not isinstance(level, Mapping):
            return {}
        return {
            name.lstrip("-"): key
            for key, option in level.items()
            if isinstance(option, click.Option)
            for name in option.opts
        }

    def check_names(self) -> None:
        seen: dict[str, int] = {}
        for index, table in enumerate(self.tables):
            name = table.get(NAME) if isinstance(table, dict) else None
            if not isinstance(name, str):
                continue
            if name in seen:
                line = self.positions.line(("pools", seen[name], NAME))
                self.note(
                    ("pools", index, NAME),
                    f"{name!r} is another pool's name, too (line {line}): give each its own",
                )
            seen.setdefault(name, index)

    def check_secrets(self, is_private: bool) -> None:
        """A secret may stand in a file that nobody else may read."""
        if is_private:
            return
        tables = [(("pools", index), table) for index, table in enumerate(self.tables)]
        for place, table in [*tables, (("defaults",), self.defaults)]:
            for key in table if isinstance(table, dict) else ():
                if self._is_secret(key):
                    self.note(
                        (*place, key),
                        f"is a secret, and others may read this file: chmod 600 {self._path}",
                    )

    def _is_secret(self, key: str) -> bool:
        """Whether a terminal would hide it, whatever the backend."""
        return any(
            key in options and options[key].hide_input for options in self._grammar.pools.values()
        )

    # Each pool

    def pool(self, index: int, said: Mapping[str, Any]) -> PoolTable | None:
        """The pool as its command reads it, None when something is wrong with it."""
        table = self.tables[index]
        backend = table[BACKEND]
        options = {**self._grammar.sets, **self._grammar.pools[backend]}
        given = {
            k: v for k, v in {**self.content, **self._given(table), **said}.items() if k in options
        }
        command = pool_command(backend)
        try:
            context = command.make_context(
                backend, [f"--pool={table[NAME]}", *_argv(given, options)]
            )
            check_together(context.params)
            worker_of(context.params)
            Terms.from_settings(context.params)
        except click.ClickException as error:
            self.blame(index, error.format_message())
            return None
        except UsageError as error:
            self.blame(index, str(error))
            return None
        origins = {
            option.name: self._origin(index, option, context, said)
            for option in command.params
            if option.name
        }
        line = self.positions.line(("pools", index, BACKEND))
        return PoolTable(table[NAME], registry.find(backend).name, context.params, origins, line)

    def _origin(
        self, index: int, option: click.Parameter, context: click.Context, said: Mapping[str, Any]
    ) -> Origin:
        key = NAME if option.name == "pool" else key_of(option)
        source = context.get_parameter_source(option.name or "")
        if key in said:
            return Origin(is_command_line=True)
        if key in self.tables[index]:
            return Origin(self.positions.line(("pools", index, key)))
        if key in self._given(self.tables[index]):
            return Origin(self.positions.line(("defaults", key)), is_default=True)
        if key in self.content and key in self._grammar.sets:
            return Origin(self.positions.line((key,)))
        if source is ParameterSource.ENVIRONMENT:
            return Origin(variable=variable_of(option))
        return Origin()

    def blame(self, index: int, sentence: str) -> None:
        """Note what is wrong with a pool at the first option that the sentence names."""
        table = self.tables[index]
        for key in _OPTION.findall(sentence):
            if key in table:
                return self.note(("pools", index, key), sentence)
            if key in self.defaults:
                return self.note(("defaults", key), sentence)
            if key in self.content and key in self._grammar.sets:
                return self.note((key,), sentence)
        return self.note(("pools", index), sentence)


def variable_of(option: click.Parameter) -> str:
    """The variable of the environment that gave an option its value."""
    names = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    return next((name for name in names if os.environ.get(name)), "")


def _argv(given: Mapping[str, Any], options: Mapping[str, click.Option]) -> list[str]:
    """The words of a command line that say what the tables say."""
    words: list[str] = []
    for key, value in given.items():
        option = options[key]
        if option.is_flag:
            names = option.opts if value else option.secondary_opts
            words += names[:1]
        else:
            words += [f"--{key}={one}" for one in (value if option.multiple else [value])]
    return words


def _name(place: KeyPath) -> str:
    """`pools[1].max-workers: `, as in the messages."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
    return f"{text}: " if text else ""


_SENTENCES: dict[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "int_type": lambda value, _: f"{value!r} is not a whole number: write one, without quotes",
    "float_type": lambda value, _: f"{value!r} is not a number: write one, without quotes",
    "finite_number": lambda value, _: f"{value!r} is no number to reckon with: write another",
    "string_type": lambda value, _: f"{value!r} is not text: put it in quotes",
    "bool_type": lambda value, _: f"{value!r} is neither true nor false: write one of them",
    "list_type": lambda value, _: f"{value!r} is not a list: write it in [ ]",
    "model_type": lambda value, _: f"{value!r} is not a table",
    "greater_than_equal": lambda value, c: f"{value!r} is less than {c['ge']}: raise it",
    "greater_than": lambda value, c: f"{value!r} is not more than {c['gt']}: raise it",
    "less_than_equal": lambda value, c: f"{value!r} is more than {c['le']}: lower it",
    "less_than": lambda value, c: f"{value!r} is not less than {c['lt']}: lower it",
    "too_short": lambda value, c: "there is none: write at least one",
}


def _sentence(detail: ErrorDetails) -> str:
    """What is wrong with a value, and what to write."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{value!r} is not a table: write its keys under a header in [ ]"
    if kind == "list_type" and isinstance(value, dict):
        return "is one table: write [[pools]], with double brackets, for each pool"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{value!r} is none of {', '.join(choices)}{_suggestion(str(value), choices)}"
    if kind == "union_tag_not_found":
        return f"{BACKEND} is missing: write {BACKEND} = one of {', '.join(grammar().pools)}"
    if kind == "union_tag_invalid":
        names = list(grammar().pools)
        given = value[BACKEND]
        if given in registry.names():
            return _why_broken(given)
        return f"{given!r} is none of {', '.join(names)}{_suggestion(str(given), names)}"
    if kind in _SENTENCES:
        return _SENTENCES[kind](value, context)
    return str(detail["msg"])


def _why_broken(backend: str) -> str:
    try:
        registry.load(backend)
    except registry.BrokenBackend as error:
        return str(error)
    return f"{backend} could not be loaded: start this command anew"


def _suggestion(
    given: str, known: Collection[str], also: Mapping[str, str] = MappingProxyType({})
) -> str:
    plain = given.strip("-").replace("_", "-").lower()
    if plain in also:
        return f": write {also[plain]}"
    near = difflib.get_close_matches(plain, [*sorted(known), *also], 1)
    return f": did you mean {also.get(near[0], near[0])}?" if near else ""
