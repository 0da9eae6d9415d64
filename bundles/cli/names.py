"""From what a person types to a bundle: uuids, prefixes of them, names; and paths behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bundles.archive import check_path
from bundles.errors import NotFound, UsageError
from bundles.model import UUID_PATTERN, Bundle

if TYPE_CHECKING:
    from bundles.client import Client

_PREFIX = re.compile(r"(?:0x)?([0-9a-f]{1,32})", re.IGNORECASE)
_SHOWN_CANDIDATES = 5


def split_target(text: str) -> tuple[str, str]:
    """`UUID[/PATH]` as what names the bundle, and the path in it (`""`: all of it).

    Raises UsageError for a path that leaves the bundle.
    """
    name, _, path = text.partition("/")
    return name, check_path(path).rstrip("/")


def find_bundle(client: Client, text: str) -> Bundle:
    """The one bundle that ``text`` means: by uuid, else by exact name, else by prefix of its uuid.

    Raises UsageError if there are several, NotFound if there is none.
    """
    if UUID_PATTERN.fullmatch(text.lower()):
        return client.bundle(text.lower())
    if not text:
        raise UsageError("an empty text names no bundle: give a uuid, its beginning, or a name")
    if not text.lower().startswith("0x"):
        # Servers read , and % in a keyword their own way, so what they find is looked at again.
        found = client.search([f"name={text}", f".limit={_SHOWN_CANDIDATES + 1}"])
        named = [bundle for bundle in found if bundle.name == text]
        if named:
            return _only(named, text, "the name")
    prefix = _PREFIX.fullmatch(text)
    if prefix is not None:
        start = "0x" + prefix[1].lower()
        found = client.search([f"uuid={start}%", f".limit={_SHOWN_CANDIDATES + 1}"])
        begun = [bundle for bundle in found if bundle.uuid.startswith(start)]
        if begun:
            return _only(begun, text, "a uuid that begins with")
    raise NotFound(f"there is no bundle with the uuid or name {text!r}: see `bundles ls`")


def find_uuid(client: Client, text: str) -> str:
    """The uuid of the one bundle that ``text`` means; a whole uuid is taken as it is, unasked."""
    if UUID_PATTERN.fullmatch(text.lower()):
        return text.lower()
    return find_bundle(client, text).uuid


def find_uuids(client: Client, texts: Iterable[str]) -> list[str]:
    """The uuids of several, each once, in the order in which they were given."""
    return list(dict.fromkeys(find_uuid(client, text) for text in texts))


def find_target(client: Client, text: str) -> tuple[str, str]:
    """The uuid and path of `UUID[/PATH]`."""
    name, path = split_target(text)
    return find_uuid(client, name), path


def _only(candidates: list[Bundle], text: str, what: str) -> Bundle:
    if len(candidates) == 1:
        return candidates[0]
    shown = ", ".join(f"{bundle.uuid} ({bundle.name})" for bundle in candidates[:_SHOWN_CANDIDATES])
    more = " and more" if len(candidates) > _SHOWN_CANDIDATES else ""
    raise UsageError(f"several bundles have {what} {text!r}: {shown}{more}: give a whole uuid")
