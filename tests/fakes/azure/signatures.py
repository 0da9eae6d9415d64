"""The signatures that Azure asks for, made anew from what arrived: shared keys, and blob SAS.

learn.microsoft.com/rest/api/batchservice/authenticate-requests-to-the-azure-batch-service,
learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key and create-service-sas.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl

SKEW = timedelta(minutes=15)

_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def batch_signature_fits(
    account: str,
    key: str,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
) -> bool:
    """Whether a request to Batch is signed with the key, and not long ago."""
    values = [headers.get(name, "") for name in _SIGNED_HEADERS]
    if method == "GET" or method == "HEAD":
        values[2] = "" if values[2] == "0" else values[2]
    elif not values[2]:
        values[2] = "0"
    lines = [method, *values]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("ocp-")]
    text = "\n".join(lines) + f"\n/{account}{path}"
    text += "".join(f"\n{name.lower()}:{value}" for name, value in sorted(parse_qsl(query)))
    expected = f"SharedKey {account}:{_sign(key, text)}"
    return _is_recent(headers.get("ocp-date")) and hmac.compare_digest(
        expected, headers.get("authorization", "")
    )


def storage_signature_fits(
    account: str,
    key: str,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
) -> bool:
    """The same of a request to Blob Storage. ``path`` begins with the account at an emulator."""
    names = (
        "content-encoding",
        "content-language",
        "content-length",
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    )
    values = [headers.get(name, "") for name in names]
    values[2] = "" if values[2] == "0" else values[2]
    if "x-ms-date" in headers:
        values[5] = ""
    lines = [method, *values]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    text = "\n".join(lines) + f"\n/{account}{path}"
    text += "".join(f"\n{name.lower()}:{value}" for name, value in sorted(parse_qsl(query, True)))
    expected = f"SharedKey {account}:{_sign(key, text)}"
    return _is_recent(headers.get("x-ms-date")) and hmac.compare_digest(
        expected, headers.get("authorization", "")
    )


_PLAIN = ("sp", "st", "se")
_TAIL = ("sip", "spr", "sv", "sr", "snapshot", "ses")
_ANSWER = ("rscc", "rscd", "rsce", "rscl", "rsct")
_DELEGATION = (
    "skoid",
    "sktid",
    "skt",
    "ske",
    "sks",
    "skv",
    "saoid",
    "suoid",
    "scid",
    "skdutid",
    "sduoid",
)


def sas_fits(key: str, resource: str, given: Mapping[str, str], *, delegated: bool) -> bool:
    """Whether a SAS for ``resource`` (/blob/ACCOUNT/CONTAINER/BLOB) is signed, and in its time."""

    def of(names: Sequence[str]) -> list[str]:
        return [given.get(name, "") for name in names]

    lines = [*of(_PLAIN), resource]
    lines += of(_DELEGATION) if delegated else of(("si",))
    lines += of(_TAIL)
    lines += ["", ""] if delegated else []
    lines += of(_ANSWER)
    now = datetime.now(UTC)
    in_time = all(
        not given.get(name) or is_fine(datetime.fromisoformat(given[name]))
        for name, is_fine in (("st", lambda t: t <= now), ("se", lambda t: t >= now))
    )
    return in_time and hmac.compare_digest(_sign(key, "\n".join(lines)), given.get("sig", ""))


def _sign(key: str, text: str) -> str:
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _is_recent(date: str | None) -> bool:
    return date is not None and abs(datetime.now(UTC) - parsedate_to_datetime(date)) < SKEW
