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

from fakes.azure.wire import Request

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


def batch_signature_fits(account: str, key: str, request: Request) -> bool:
    """Whether a request to Batch is signed with the key, and not long ago."""
    headers = dict(request.headers)
    if request.method not in ("GET", "HEAD"):
        headers.setdefault("content-length", "0")
    return _fits(account, key, request, headers, "ocp-", parse_qsl(request.query))


def storage_signature_fits(account: str, key: str, request: Request) -> bool:
    """The same of a request to Blob Storage. The path begins with the account at an emulator."""
    headers = dict(request.headers)
    if headers.get("content-length") == "0":
        del headers["content-length"]
    if "x-ms-date" in headers:
        headers.pop("date", None)
    return _fits(account, key, request, headers, "x-ms-", parse_qsl(request.query, True))


def _fits(
    account: str,
    key: str,
    request: Request,
    headers: Mapping[str, str],
    own: str,
    query: Sequence[tuple[str, str]],
) -> bool:
    """``own``: how the service's own headers begin, all of which are signed."""
    lines = [request.method, *(headers.get(name, "") for name in _SIGNED_HEADERS)]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith(own)]
    lines += [f"/{account}{request.path}"]
    lines += [f"{name.lower()}:{value}" for name, value in sorted(query)]
    expected = f"SharedKey {account}:{_sign(key, chr(10).join(lines))}"
    return _is_recent(headers.get(f"{own}date")) and hmac.compare_digest(
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
