"""What Google's libraries raise, as the taxonomy of backends.base: by code and reason.

Both transports raise GoogleAPICallError with an HTTP code; only some say a reason (ErrorInfo).
Sources: cloud.google.com/apis/design/errors, cloud.google.com/batch/docs/troubleshooting.
"""

from __future__ import annotations

import re

from backends.base import (
    BackendError,
    Invalid,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from backends.patience import retry_after_seconds

_REASONS: dict[str, type[BackendError]] = {
    "RATE_LIMIT_EXCEEDED": Throttled,
    "RESOURCE_QUOTA_EXCEEDED": QuotaExceeded,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "SERVICE_DISABLED": Unauthorized,
    "IAM_PERMISSION_DENIED": Unauthorized,
    "ZONE_RESOURCE_POOL_EXHAUSTED": OutOfCapacity,
}
_CODES: dict[int, type[BackendError]] = {
    401: Unauthorized,
    403: Unauthorized,
    408: Unreachable,
    409: Unreachable,
    429: Throttled,
    499: Unreachable,
}
"""409 is ABORTED, two at a time: an id that is taken is no error, and does not get here."""
_WORDS: tuple[tuple[str, type[BackendError]], ...] = (
    (r"RESOURCE_POOL_EXHAUSTED|does not have enough resources", OutOfCapacity),
    (r"per minute|rate limit", Throttled),
    (r"GCE_QUOTA_EXCEEDED|quota", QuotaExceeded),
)
"""429 says "too often" and "too much" alike; without a reason its words decide."""
_NO_TOKEN = "Getting metadata from plugin failed"
"""Over gRPC what google.auth raised is UNAVAILABLE, and told by these words and its own alone."""
_AWAY = re.compile(r"Max retries exceeded|timed out|Connection|Failed to (resolve|retrieve http)")
_LOG_IN = "(gcloud auth application-default login, or a service account)"


def backend_error(error: Exception, doing: str) -> BackendError | None:
    """The one error that stands for what was raised while ``doing`` something; None when it is
    not of Google's libraries or the network."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError

    if isinstance(error, BackendError):
        return error
    if isinstance(error, RetryError) and error.cause is not None:
        error = error.cause
    if isinstance(error, GoogleAPICallError):
        return _call_error(error, doing)
    if isinstance(error, TransportError) or getattr(error, "retryable", False):
        return Unreachable(f"{doing}: no answer from Google: {_line(error)}")
    if isinstance(error, GoogleAuthError):
        return Unauthorized(
            f"{doing}: no credentials of Google Cloud are to be had: {_line(error)} {_LOG_IN}"
        )
    if isinstance(error, OSError):  # requests' own errors are some
        return Unreachable(f"{doing}: no answer from Google: {_line(error)}")
    return None


def is_unknown_identity(error: BackendError) -> bool:
    """Whether credentials were not there or not taken, which fresh ones may be; 403 is a no to
    somebody who is known."""
    return isinstance(error, Unauthorized) and getattr(error.__cause__, "code", None) != 403


def _call_error(error: object, doing: str) -> BackendError:
    code = int(getattr(error, "code", None) or 0)
    reason = str(getattr(error, "reason", None) or "")
    message = str(getattr(error, "message", "") or "")
    if _NO_TOKEN in message and not _AWAY.search(message):
        return Unauthorized(f"{doing}: Google gives us no token: {_line(message)} {_LOG_IN}")
    kind = _REASONS.get(reason)
    if kind is None and code == 429:
        kind = next((k for words, k in _WORDS if re.search(words, message, re.IGNORECASE)), None)
    if kind is None:
        kind = _CODES.get(code)
    if kind is None:
        kind = Invalid if 400 <= code < 500 else Unreachable
    sentence = f"{doing}: Google says {code or 'nothing'}"
    sentence += f" {reason}" if reason else ""
    # Over REST the message begins with the request, of which ``doing`` says enough.
    said = _line(re.sub(r"^[A-Z]+ https?://\S+: ", "", message))
    sentence += f", {said}" if said else ""
    if kind is Throttled:
        return Throttled(sentence, _retry_after_seconds(error))
    return kind(sentence)


def _retry_after_seconds(error: object) -> float | None:
    """What the service said on when to come again: RetryInfo, or a header."""
    for detail in getattr(error, "details", None) or ():
        if isinstance(detail, dict):  # as REST gives it
            delay = re.fullmatch(r"([0-9.]+)s", str(detail.get("retryDelay", "")))
            if delay is not None:
                return float(delay[1])
        elif hasattr(detail, "retry_delay"):
            return float(detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9)
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return retry_after_seconds(headers.get("Retry-After"))


def _line(text: object) -> str:
    lines = str(text).strip().splitlines()
    return lines[0].strip()[:300] if lines else ""
