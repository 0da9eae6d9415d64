"""The JSON schema of pools files: for editors, and for whoever writes such files by program.

It cannot say what several keys say together (min-workers above max-workers, a name given twice),
nor what a callback of an option looks at; reading the file does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backends import registry
from manager.pools_file.model import BACKEND, Grammar, grammar_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(entries: Iterable[registry.Entry]) -> dict[str, Any]:
    """The schema of files whose pools are of these backends."""
    entries = list(entries)
    grammar = grammar_of(entries)
    document = grammar.model.model_json_schema()
    definitions: dict[str, Any] = document.pop("$defs")
    pools = {e.name: definitions[e.name] for e in entries if e.name in definitions}
    common = _common(pools.values())
    names = {name: (name, *registry.find(name).aliases) for name in pools}
    definitions["pool"] = {"properties": common}
    for pool in pools.values():
        properties = pool["properties"]
        properties |= {key: {"$ref": f"#/$defs/pool/properties/{key}"} for key in common}
        pool["required"] = ["name", BACKEND]
    defaults = definitions["defaults"]["properties"]
    defaults |= {
        key: {"$ref": f"#/$defs/pool/properties/{key}"} for key in common if key in defaults
    }
    document["properties"]["pools"]["items"] = {
        "type": "object",
        "required": ["name", BACKEND],
        "properties": {BACKEND: {"enum": [one for several in names.values() for one in several]}},
        # Not oneOf: of a pool that fits none, an editor could not tell which it was meant to be.
        "allOf": [
            {"if": _is_one_of(several), "then": {"$ref": f"#/$defs/{name}"}}
            for name, several in names.items()
        ],
    }
    document["allOf"] = _needed(grammar, names)
    tidy = _tidy({"$schema": DIALECT, **document, "$defs": definitions})
    assert isinstance(tidy, dict)
    return tidy


def _common(pools: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The properties that all pools have, and have alike."""
    first, *others = [pool["properties"] for pool in pools]
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


def _needed(grammar: Grammar, names: Mapping[str, Iterable[str]]) -> list[dict[str, Any]]:
    """What a backend cannot do without stands in each of its pools, or among the defaults."""
    return [
        {
            "anyOf": [
                {"required": ["defaults"], "properties": {"defaults": {"required": [key]}}},
                {
                    "properties": {
                        "pools": {"items": {"if": _is_one_of(several), "then": {"required": [key]}}}
                    }
                },
            ]
        }
        for name, several in names.items()
        for key, option in grammar.pools[name].items()
        if option.required and option.envvar is None
    ]


def _is_one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"required": [BACKEND], "properties": {BACKEND: {"enum": list(names)}}}


def _tidy(value: Any) -> Any:
    """Without the titles that pydantic makes of keys, and defaults that are none."""
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _tidy(one) for key, one in value.items() if not _is_noise(key, one)}


def _is_noise(key: str, value: Any) -> bool:
    return (key == "title" and isinstance(value, str)) or (key == "default" and value is None)
