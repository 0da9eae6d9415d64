"""What servers ask of a worker, checked. Values only; who carries them out is `worker.worker`."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundles.archive import check_path
from bundles.errors import UsageError
from bundles.model import UUID_PATTERN, Resources
from worker.stages import KILL_MESSAGE


class Unreadable(Exception):
    """The message makes no sense; the others of the reply may."""


@dataclass(frozen=True, slots=True)
class Message:
    """``id`` is None on a server that does not want it acknowledged; ``claim`` on one without."""

    id: str | None
    claim: int | None
    uuid: str


@dataclass(frozen=True, slots=True)
class RunMessage(Message):
    """Run this bundle. ``fault``: why this cannot be done, whatever is tried."""

    bundle: Mapping[str, Any]
    resources: Resources
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class KillMessage(Message):
    reason: str


@dataclass(frozen=True, slots=True)
class WriteMessage(Message):
    subpath: str
    text: str


@dataclass(frozen=True, slots=True)
class ReadMessage(Message):
    socket_id: int
    path: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NetcatMessage(Message):
    socket_id: int
    port: int
    text: str


@dataclass(frozen=True, slots=True)
class FinalizedMessage(Message):
    """The server has the result."""


@dataclass(frozen=True, slots=True)
class RevokeMessage(Message):
    """The claim is not ours (any more)."""


@dataclass(frozen=True, slots=True)
class DrainMessage:
    """Take nothing more and leave when nothing is left; or do take more."""

    id: str | None
    is_draining: bool
    reason: str


AnyMessage = (
    RunMessage
    | DrainMessage
    | KillMessage
    | WriteMessage
    | ReadMessage
    | NetcatMessage
    | FinalizedMessage
    | RevokeMessage
)


def message_id(document: object) -> str | None:
    """The id to acknowledge, of any message, even one that cannot be read."""
    identity = document.get("id") if isinstance(document, Mapping) else None
    return identity if isinstance(identity, str) else None


def read_message(document: object) -> AnyMessage:
    """The message that a server sent. Raises Unreadable."""
    if not isinstance(document, Mapping):
        raise Unreadable(f"a message is no object: {document!r:.200}")
    try:
        return _read(document)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise Unreadable(f"a {document.get('type')!r} message makes no sense: {error!r}") from error


def _read(document: Mapping[str, Any]) -> AnyMessage:
    kind = document["type"]
    if kind == "drain":
        return DrainMessage(
            message_id(document), bool(document["is_draining"]), str(document.get("reason") or "")
        )
    claim = document.get("claim")
    uuid = document["bundle"]["uuid"] if kind == "run" else document["uuid"]
    if not UUID_PATTERN.fullmatch(uuid):
        raise ValueError(f"{uuid!r} is no uuid")
    common = (message_id(document), None if claim is None else int(claim), uuid)
    match kind:
        case "run":
            bundle = document["bundle"]
            message = RunMessage(
                *common, dict(bundle), Resources.from_run_message(document["resources"])
            )
            return replace(message, fault=_fault(bundle))
        case "kill":
            return KillMessage(*common, document.get("kill_message") or KILL_MESSAGE)
        case "write":
            return WriteMessage(*common, str(document["subpath"]), str(document["string"]))
        case "read":
            return ReadMessage(
                *common,
                int(document["socket_id"]),
                str(document.get("path") or ""),
                dict(document["read_args"]),
            )
        case "netcat":
            return NetcatMessage(
                *common,
                int(document["socket_id"]),
                int(document["port"]),
                str(document.get("message") or ""),
            )
        case "mark_finalized":
            return FinalizedMessage(*common)
        case "revoke":
            return RevokeMessage(*common)
    raise ValueError("messages of this type are unknown here")


def _fault(bundle: Mapping[str, Any]) -> str | None:
    """What is wrong with a bundle that names dependencies or a command that cannot be."""
    seen = set()
    if not isinstance(bundle.get("command"), str) or "\0" in bundle["command"]:
        return "The bundle has no command that can be run"
    for dependency in bundle.get("dependencies") or ():
        path = dependency["child_path"]
        try:
            check_path(path)
        except UsageError as error:
            return f"The dependency key cannot be used: {error}"
        try:
            # It becomes a part of an address: `..` would lead to what the worker may read and the
            # bundle's owner may not. A CodaLab server takes any.
            check_path(dependency.get("parent_path") or "")
        except UsageError as error:
            return f"The dependency {dependency['parent_uuid']} cannot be used: {error}"
        if not UUID_PATTERN.fullmatch(dependency["parent_uuid"]):
            return f"The dependency {dependency['parent_uuid']!r} is no uuid"
        normal = posixpath.normpath(path or ".")
        if normal in seen:
            return f"Two dependencies have the key {path!r}"
        seen.add(normal)
    return None
