"""The `$filter` of Azure Batch: only the properties and operators that it documents.

learn.microsoft.com/rest/api/batchservice/odata-filters-in-batch. Not OData at large. Names of
properties are told apart by case, their values are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Predicate = Callable[[Mapping[str, Any]], bool]

_ORDERED = frozenset({"eq", "ne", "ge", "gt", "le", "lt"})
_EQUAL = frozenset({"eq", "ne"})
TASK_PROPERTIES = {
    "id": _ORDERED | {"startswith"},
    "state": _EQUAL,
    "stateTransitionTime": _ORDERED,
    "creationTime": _ORDERED,
    "lastModified": _ORDERED,
    "executionInfo/exitCode": _ORDERED,
    "executionInfo/startTime": _ORDERED,
    "executionInfo/endTime": _ORDERED,
}
POOL_COUNT_PROPERTIES = {"poolId": frozenset({"eq"})}

_TOKEN = re.compile(
    r"\s*(?:(?P<time>datetime)?'(?P<text>(?:[^']|'')*)'|(?P<number>-?\d+)"
    r"|(?P<word>[A-Za-z][A-Za-z/]*)|(?P<sign>[(),]))",
    re.IGNORECASE,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
    "ge": lambda a, b: a is not None and bool(a >= b),
    "gt": lambda a, b: a is not None and bool(a > b),
    "le": lambda a, b: a is not None and bool(a <= b),
    "lt": lambda a, b: a is not None and bool(a < b),
}


class BadFilter(ValueError):
    """A filter that the service does not take."""


def parse(text: str, properties: Mapping[str, frozenset[str]]) -> Predicate:
    """Raises BadFilter."""
    parser = _Parser(text, properties)
    predicate = parser.either()
    if parser.next is not None:
        raise BadFilter(f"{parser.next[1]!r} is not expected")
    return predicate


class _Parser:
    def __init__(self, text: str, properties: Mapping[str, frozenset[str]]) -> None:
        self._properties = properties
        self._tokens: list[tuple[str, Any]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise BadFilter(f"{text[position:]!r} cannot be read")
            position = match.end()
            if match["text"] is not None:
                value: Any = match["text"].replace("''", "'")
                if match["time"]:
                    value = datetime.fromisoformat(value)
                self._tokens.append(("value", value))
            elif match["number"] is not None:
                self._tokens.append(("value", int(match["number"])))
            else:
                self._tokens.append(("word", match["word"] or match["sign"]))

    @property
    def next(self) -> tuple[str, Any] | None:
        return self._tokens[0] if self._tokens else None

    def either(self) -> Predicate:
        parts = [self._both()]
        while self.next == ("word", "or"):
            self._take()
            parts.append(self._both())
        return lambda item: any(part(item) for part in parts)

    def _both(self) -> Predicate:
        parts = [self._one()]
        while self.next == ("word", "and"):
            self._take()
            parts.append(self._one())
        return lambda item: all(part(item) for part in parts)

    def _one(self) -> Predicate:
        kind, word = self._take()
        if (kind, word) == ("word", "("):
            inner = self.either()
            self._expect(")")
            return inner
        if (kind, word) == ("word", "startswith"):
            self._expect("(")
            name = self._property("startswith")
            self._expect(",")
            beginning = self._value()
            self._expect(")")
            return lambda item: str(_of(item, name)).lower().startswith(beginning.lower())
        if kind != "word":
            raise BadFilter(f"{word!r} is no property")
        operator = self._take()[1]
        if word not in self._properties or operator not in self._properties[word]:
            raise BadFilter(f"{word} {operator} is not supported")
        value = self._value()
        compare = _COMPARE[operator]
        folded = value.lower() if isinstance(value, str) else value
        return lambda item: compare(_comparable(_of(item, word), value), folded)

    def _property(self, operator: str) -> str:
        name = self._take()[1]
        if operator not in self._properties.get(name, ()):
            raise BadFilter(f"{operator} is not supported of {name}")
        return str(name)

    def _value(self) -> Any:
        kind, value = self._take()
        if kind != "value":
            raise BadFilter(f"{value!r} is no value")
        return value

    def _expect(self, sign: str) -> None:
        if self._take() != ("word", sign):
            raise BadFilter(f"{sign!r} is expected")

    def _take(self) -> tuple[str, Any]:
        if not self._tokens:
            raise BadFilter("it ends too early")
        return self._tokens.pop(0)


def _of(item: Mapping[str, Any], path: str) -> Any:
    value: Any = item
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _comparable(value: Any, other: Any) -> Any:
    if isinstance(other, datetime) and value is not None:
        return datetime.fromisoformat(value)
    return value.lower() if isinstance(value, str) else value
