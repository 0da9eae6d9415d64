"""What may stand in a pools file, made from the options of the command line: pydantic's models.

An option is stated once, where click has it; its type, range, choices, form and callback count
here, too. Nothing is read here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import click
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from backends import registry
from manager.options import (
    Word,
    connection_options,
    look_options,
    own_options,
    pool_options,
    set_options,
    worker_options,
)

BACKEND = "backend"
NAME = "name"


class Section(BaseModel):
    """A table of the file. Keys have hyphens; TOML's types are meant as they are written."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Budget(Section):
    """What all the pools together may cost, in the currency of the prices."""

    per_hour: float | None = Field(None, alias="per-hour", ge=0, description="In an hour.")
    per_day: float | None = Field(None, alias="per-day", ge=0, description="In a day.")
    per_month: float | None = Field(None, alias="per-month", ge=0, description="In a month.")
    soft_fraction: float = Field(
        0.8,
        alias="soft-fraction",
        gt=0,
        le=1,
        description="Above this part of a budget only the cheapest pool launches.",
    )


@dataclass(frozen=True, slots=True)
class Grammar:
    """The file that this installation reads: which option may stand where, by key.

    ``pools``: of each backend, by its name, aliases included.
    """

    sets: Mapping[str, click.Option]
    pools: Mapping[str, Mapping[str, click.Option]]
    model: type[BaseModel]

    @property
    def anywhere(self) -> set[str]:
        """Every key of a pool, whatever its backend."""
        return {key for options in self.pools.values() for key in options}


def key_of(option: click.Parameter) -> str:
    """How an option is called in the file: its first long name without the dashes."""
    return next(name for name in option.opts if name.startswith("--"))[2:]


def command_line_only() -> set[str]:
    """Names of options that say what one start of a command is for: they are in no file."""
    return {key_of(option) for option in look_options()} | {"verbose"}


@functools.cache
def grammar() -> Grammar:
    """Of every backend that can be loaded here."""
    return grammar_of(registry.entries().values())


def grammar_of(entries: Iterable[registry.Entry]) -> Grammar:
    """A backend that is broken is not in it: it stops no pool of another one."""
    sets = {key_of(o): o for o in [*connection_options(), *set_options()] if o.name != "verbose"}
    common = {key_of(o): o for o in [*own_options(), *worker_options()] if o.name != "pool"}
    pools: dict[str, dict[str, click.Option]] = {}
    models: list[Any] = []
    fields: dict[str, dict[str, Any]] = {}
    taken = {option.name for option in pool_options()}
    for entry in entries:
        try:
            own = registry.load(entry.name).options()
        except registry.BrokenBackend:
            continue
        options = {**{key_of(o): o for o in own if o.name not in taken}, **common}
        pools |= dict.fromkeys((entry.name, *entry.aliases), options)
        models.append(_pool_model(entry, options))
        for key, option in options.items():
            annotation = _annotation(option)
            fields.setdefault(key, {})[repr(annotation)] = (annotation, _field(option, key))
    return Grammar(sets, pools, _file_model(sets, _defaults_model(fields), models))


def _pool_model(entry: registry.Entry, options: Mapping[str, click.Option]) -> type[BaseModel]:
    names = (entry.name, *entry.aliases)
    name = next(option for option in own_options() if option.name == "pool")
    fields: dict[str, Any] = {
        NAME: (_annotation(name), Field(description=name.help)),
        BACKEND: (Literal[names], Field(description=entry.summary)),
    }
    for key, option in options.items():
        fields[_safe(key)] = (_annotation(option), _field(option, key, required=option.required))
    return create_model(entry.name, __base__=Section, __doc__=entry.summary, **fields)


def _defaults_model(fields: Mapping[str, Mapping[str, Any]]) -> type[BaseModel]:
    """Keys that backends have in common, but not what they mean by them, may be either's."""
    merged: dict[str, Any] = {}
    for key, by_annotation in fields.items():
        annotations = tuple(annotation for annotation, _ in by_annotation.values())
        field = next(iter(by_annotation.values()))[1]
        merged[_safe(key)] = (Union[annotations], field)  # noqa: UP007
    return create_model("defaults", __base__=Section, __doc__="For every pool.", **merged)


def _file_model(
    sets: Mapping[str, click.Option], defaults: type[BaseModel], pools: list[Any]
) -> type[BaseModel]:
    fields: dict[str, Any] = {
        _safe(key): (_annotation(option), _field(option, key)) for key, option in sets.items()
    }
    pool: Any = Annotated[Union[tuple(pools)], Field(discriminator=BACKEND)]  # noqa: UP007
    return create_model(
        "pools",
        __base__=Section,
        __doc__="The pools that one manager keeps, the best first.",
        budget=(Budget, Field(None)),
        defaults=(defaults, Field(None)),
        pools=(list[pool], Field(min_length=1, description="Each a backend with limits.")),
        **fields,
    )


def _safe(key: str) -> str:
    """A field's name that is none of BaseModel's attributes; the file sees the alias alone."""
    return "option_" + key.replace("-", "_")


def _field(option: click.Option, key: str, *, required: bool = False) -> Any:
    default = option.default if isinstance(option.default, str | int | float | bool) else None
    needed = required and option.envvar is None
    said = (option.help or "").partition("  [")[0]  # help ends in what the default comes to
    return Field(... if needed else default, alias=key, description=said)


def _annotation(option: click.Option) -> Any:
    """The type of an option's value in TOML."""
    kind = option.type
    bounds: dict[str, Any] = {}
    plain: Any = str
    if option.is_flag:
        plain = bool
    elif isinstance(kind, click.Choice):
        plain = Literal[tuple(str(choice) for choice in kind.choices)]
    elif isinstance(kind, click.IntRange | click.FloatRange):
        plain = int if isinstance(kind, click.IntRange) else float
        if kind.min is not None:
            bounds["gt" if kind.min_open else "ge"] = kind.min
        if kind.max is not None:
            bounds["lt" if kind.max_open else "le"] = kind.max
    elif kind is click.INT or kind is click.FLOAT:
        plain = int if kind is click.INT else float
    elif isinstance(kind, Word):
        bounds["json_schema_extra"] = {"pattern": f"^(?:{kind.pattern.pattern})$"}
    annotation: Any = Annotated[plain, Field(**bounds), AfterValidator(_Clicked(option))]
    return list[annotation] if option.multiple else annotation


@dataclass(frozen=True, slots=True)
class _Clicked:
    """What click itself says of a value: its type's word, and the option's callback's."""

    option: click.Option

    def __call__(self, value: Any) -> Any:
        context = click.Context(click.Command("pools"))
        try:
            converted = self.option.type(str(value), self.option, context)
            if self.option.callback is not None and not self.option.multiple:
                self.option.callback(context, self.option, converted)
        except click.BadParameter as error:
            raise PydanticCustomError("click", "{said}", {"said": error.message}) from error
        return value

    def __repr__(self) -> str:
        """Equal for options that mean the same."""
        return f"{self.option.type!r} {self.option.callback}"
