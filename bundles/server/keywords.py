"""Search keywords (`state=staged`, `.mine`, `name=.sort-`, `0x12`) read into a value. Pure: the SQL
is made in queries.py.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bundles.errors import UsageError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True, slots=True)
class Condition:
    """``key`` is a column or a field of the metadata; any of ``values`` will do.

    With ``is_pattern`` the one value is a LIKE pattern, `%` for anything.
    """

    key: str
    values: tuple[str, ...]
    is_pattern: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """What a list of keywords asks for. Conditions all have to hold."""

    conditions: tuple[Condition, ...] = ()
    words: tuple[str, ...] = ()
    """Beginnings of uuids or parts of names."""
    owners: tuple[str, ...] | None = None
    """User names; `.mine` is kept apart in ``is_mine``."""
    is_mine: bool = False
    is_nothing: bool = False
    created_before: float | None = None
    created_after: float | None = None
    sort_key: str | None = None
    is_descending: bool = False
    limit: int | None = None
    offset: int = 0
    result: Literal["bundles", "count", "sum", "shapes"] = "bundles"
    sum_key: str = ""


@dataclass
class _Draft:
    conditions: list[Condition] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)


def read_keywords(keywords: Sequence[str]) -> Search:
    """Raises UsageError for a keyword that makes no sense."""
    draft = _Draft()
    for keyword in keywords:
        if keyword.startswith("."):
            _read_directive(draft, keyword)
        elif "=" in keyword:
            _read_pair(draft, keyword)
        elif keyword:
            draft.words.append(keyword)
    return Search(tuple(draft.conditions), tuple(draft.words), **draft.options)  # type: ignore[arg-type]


def _read_directive(draft: _Draft, keyword: str) -> None:
    name, _, value = keyword.partition("=")
    options = draft.options
    if name == ".mine":
        options["is_mine"] = True
    elif name == ".shared":
        options["is_nothing"] = True  # nobody shares bundles here: there is nothing to show
    elif name == ".floating":
        pass  # there are no worksheets here: every bundle floats
    elif name == ".last":
        options |= {"sort_key": "id", "is_descending": True}
        options.setdefault("limit", 1)
    elif name in (".count", ".shapes"):
        options["result"] = name[1:]
    elif name in (".limit", ".offset"):
        options[name[1:]] = _read_number(keyword, value)
    elif name in (".before", ".after"):
        options[f"created_{name[1:]}"] = _read_time(keyword, value)
    else:
        raise UsageError(
            f"the search keyword {keyword!r} is unknown: there are .mine .shared .floating .last "
            ".count .shapes .limit= .offset= .before= .after="
        )


def _read_pair(draft: _Draft, keyword: str) -> None:
    key, _, value = keyword.partition("=")
    if not _KEY.fullmatch(key):
        raise UsageError(f"the search keyword {keyword!r} has no field name before the `=`")
    if value in (".sort", ".sort-"):
        draft.options |= {"sort_key": key, "is_descending": value.endswith("-")}
    elif value == ".sum":
        draft.options |= {"result": "sum", "sum_key": key}
    elif key == "owner":
        draft.options["owners"] = tuple(value.split(","))
    elif "%" in value or ".*" in value:
        draft.conditions.append(Condition(key, (value.replace(".*", "%"),), is_pattern=True))
    else:
        draft.conditions.append(Condition(key, tuple(value.split(","))))


def _read_number(keyword: str, value: str) -> int:
    if not value.isdigit() or len(value) > 15:
        raise UsageError(f"the search keyword {keyword!r} needs a whole number, 0 or more")
    return int(value)


def _read_time(keyword: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(
            f"the search keyword {keyword!r} needs a date such as 2026-01-31, or epoch seconds"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
