"""What a server answers, as values: changes, what lies at a path, contents on their way."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from bundles.errors import Unreachable


@dataclass(frozen=True, slots=True)
class Change:
    """One transition of one bundle, from the change feed. ``time`` in epoch seconds."""

    uuid: str
    from_state: str
    to_state: str
    time: float
    claim: int = 0
    worker: str | None = None
    reason: str = ""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Change:
        return cls(
            uuid=document["uuid"],
            from_state=document["from"] or "",
            to_state=document["to"],
            time=document["time"],
            claim=document.get("claim") or 0,
            worker=document.get("worker"),
            reason=document.get("reason") or "",
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What `GET /rest/changes` answered; ``reset`` means: read the bundles anew."""

    cursor: int
    reset: bool = False
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What lies at a path in a bundle; ``contents`` of a directory as deep as was asked."""

    name: str
    type: str
    size_bytes: int = 0
    perm: int = 0
    link: str | None = None
    contents: tuple[TargetInfo, ...] = ()

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> TargetInfo:
        return cls(
            name=document.get("name") or "",
            type=document["type"],
            size_bytes=document.get("size") or 0,
            perm=document.get("perm") or 0,
            link=document.get("link"),
            contents=tuple(cls.from_document(d) for d in document.get("contents") or ()),
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a download came, and of what: ``tag`` is the server's for these very bytes."""

    tag: str
    received_bytes: int


class Download:
    """Contents on their way: read them once, by ``chunks``."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    @property
    def is_directory(self) -> bool:
        """True: the bytes are a tar.gz."""
        kind = self._response.headers.get("Target-Type")
        if kind is not None:
            return bool(kind == "directory")
        return bool(self._response.headers.get("Content-Type") == "application/gzip")

    @property
    def size_bytes(self) -> int | None:
        """The size of the file, or of a directory's files together, where the server says."""
        text = self._response.headers.get("X-Codalab-Target-Size")
        return int(text) if text and text.isdigit() else None

    @property
    def tag(self) -> str | None:
        """What to go on by if it is cut off, where the server can do that."""
        tag: str = self._response.headers.get("ETag", "")
        is_plain = self._response.headers.get("Content-Encoding", "identity") == "identity"
        return tag if is_plain and tag.startswith('"') else None

    @property
    def start_bytes(self) -> int:
        """How many of the bytes were left out, because they were received before."""
        text = self._response.headers.get("Bundles-Skipped", "0")
        if self._response.status_code == 206:
            text = self._response.headers.get("Content-Range", "").removeprefix("bytes ")
            text = text.partition("-")[0]
        return int(text) if text.isdigit() else 0

    @property
    def sha256(self) -> bytes | None:
        """The digest of the whole file, where the server gives one."""
        if self._response.headers.get("Content-Encoding", "identity") != "identity":
            return None  # it would be of the compressed bytes
        for digest in self._response.headers.get("Repr-Digest", "").split(","):
            name, _, value = digest.strip().partition("=")
            if name == "sha-256":
                with suppress(ValueError):
                    return base64.b64decode(value.strip(":"), validate=True)
        return None

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come, with the transfer's own compression undone."""
        try:
            yield from self._response.iter_bytes()
        except httpx.RequestError as error:  # no answer any more, or one that cannot be decoded
            raise Unreachable(f"the download was cut off: {error}") from error
