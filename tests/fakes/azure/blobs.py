"""Blob Storage over HTTP, as an emulator names things: http://HOST/ACCOUNT/CONTAINER/BLOB.

Only what a small file that is put, read by signature or identity, listed and removed needs.
"""

from __future__ import annotations

import base64
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qsl
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from fakes.azure.account import NODE_IDENTITY_TOKEN
from fakes.azure.signatures import sas_fits, storage_signature_fits
from fakes.azure.wire import Answer, Request, Wire

STORAGE_ACCOUNT = "teststorage"
STORAGE_KEY = "dGhlIGtleSBvZiBhIGZha2Ugc3RvcmFnZSBhY2NvdW50"
CONTAINER = "secrets"


@dataclass
class BlobService:
    """One container of one account."""

    tokens: set[str] = field(default_factory=lambda: {"anonymous"})
    blobs: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._delegation_keys: list[str] = []
        self.wire = Wire(self._answer, self.tls)

    @property
    def url(self) -> str:
        """The container's."""
        return f"{self.wire.url}/{STORAGE_ACCOUNT}/{CONTAINER}"

    def close(self) -> None:
        self.wire.close()

    def age(self, by: timedelta) -> None:
        """Make every blob so much older."""
        self.blobs = {name: (data, put - by) for name, (data, put) in self.blobs.items()}

    def _answer(self, request: Request) -> Answer:
        account, _, rest = request.path.strip("/").partition("/")
        container, _, name = rest.partition("/")
        rights = self._rights(request, account, container, name)
        if not rights:
            return _refusal(403, "AuthorizationFailure")
        asked = request.parameters
        if asked.get("comp") == "userdelegationkey":
            return self._delegation_key(request)
        if (account, container) != (STORAGE_ACCOUNT, CONTAINER):
            return _refusal(404, "ContainerNotFound")
        if not name:
            return self._list(asked) if asked.get("comp") == "list" else Answer(200, _HEADERS)
        if request.method == "GET" and "r" in rights:
            if name not in self.blobs:
                return _refusal(404, "BlobNotFound")
            return Answer(200, _HEADERS, self.blobs[name][0])
        if request.method == "PUT" and "w" in rights:
            self.blobs[name] = (request.body, datetime.now(UTC))
            return Answer(201, {**_HEADERS, "ETag": '"1"', "Last-Modified": _date()})
        if request.method == "DELETE" and "d" in rights:
            self.blobs.pop(name, None)
            return Answer(202, _HEADERS)
        return _refusal(403, "AuthorizationPermissionMismatch")

    def _rights(self, request: Request, account: str, container: str, name: str) -> str:
        given = request.headers.get("authorization", "")
        if given.startswith("Bearer "):
            token = given.removeprefix("Bearer ")
            if token == NODE_IDENTITY_TOKEN:
                return "r"
            return "rwd" if token in self.tokens else ""
        if given:
            fits = storage_signature_fits(STORAGE_ACCOUNT, STORAGE_KEY, request)
            return "rwd" if fits else ""
        sas = dict(parse_qsl(request.query))
        resource = f"/blob/{account}/{container}/{name}"
        is_delegated = "skoid" in sas
        keys = self._delegation_keys if is_delegated else [STORAGE_KEY]
        fits = any(sas_fits(key, resource, sas, delegated=is_delegated) for key in keys)
        return sas.get("sp", "") if fits and sas.get("sr") == "b" else ""

    def _delegation_key(self, request: Request) -> Answer:
        asked = ElementTree.fromstring(request.body)
        key = base64.b64encode(uuid.uuid4().bytes).decode()
        self._delegation_keys.append(key)
        values = {
            "SignedOid": str(uuid.uuid4()),
            "SignedTid": str(uuid.uuid4()),
            "SignedStart": asked.findtext("Start") or "",
            "SignedExpiry": asked.findtext("Expiry") or "",
            "SignedService": "b",
            "SignedVersion": request.headers["x-ms-version"],
            "Value": key,
        }
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
        return _xml(f"<UserDelegationKey>{inner}</UserDelegationKey>")

    def _list(self, asked: Mapping[str, str]) -> Answer:
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>"
            f"{format_datetime(put, usegmt=True)}</Last-Modified><Etag>1</Etag>"
            f"<Content-Length>{len(data)}</Content-Length><BlobType>BlockBlob</BlobType>"
            "</Properties></Blob>"
            for name, (data, put) in sorted(self.blobs.items())
            if name.startswith(asked.get("prefix", ""))
        )
        return _xml(
            f'<EnumerationResults ServiceEndpoint="{self.wire.url}" ContainerName="{CONTAINER}">'
            f"<Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        )


def _date() -> str:
    return format_datetime(datetime.now(UTC), usegmt=True)


_HEADERS = {"x-ms-version": "2025-01-05", "x-ms-request-id": "fake"}


def _xml(text: str, status: int = 200, **headers: str) -> Answer:
    body = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
    return Answer(status, {**_HEADERS, "Content-Type": "application/xml", **headers}, body)


def _refusal(status: int, code: str) -> Answer:
    return _xml(
        f"<Error><Code>{code}</Code><Message>{code}</Message></Error>",
        status,
        **{"x-ms-error-code": code},
    )
