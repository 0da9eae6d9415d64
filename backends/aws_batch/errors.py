"""What botocore raises, as the taxonomy of backends.base: by the service's error code.

Codes: AWS Batch's API reference (Common errors), and those of the services asked besides. Asks
nothing of anyone, and imports the SDK only once it has raised.
"""

from __future__ import annotations

from collections.abc import Mapping

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

_CODES: dict[str, type[BackendError]] = {
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "ThrottledException": Throttled,
    "RequestThrottled": Throttled,
    "RequestThrottledException": Throttled,
    "RequestLimitExceeded": Throttled,
    "TooManyRequestsException": Throttled,
    "TooManyUpdates": Throttled,
    "SlowDown": Throttled,
    "PriorRequestNotComplete": Throttled,
    "BandwidthLimitExceeded": Throttled,
    "AccessDenied": Unauthorized,
    "AccessDeniedException": Unauthorized,
    "AuthFailure": Unauthorized,
    "ExpiredToken": Unauthorized,
    "ExpiredTokenException": Unauthorized,
    "IncompleteSignature": Unauthorized,
    "IncompleteSignatureException": Unauthorized,
    "InvalidAccessKeyId": Unauthorized,
    "InvalidClientTokenId": Unauthorized,
    "InvalidSignatureException": Unauthorized,
    "MissingAuthenticationToken": Unauthorized,
    "MissingAuthenticationTokenException": Unauthorized,
    "NotAuthorized": Unauthorized,
    "OptInRequired": Unauthorized,
    "RequestExpired": Unauthorized,
    "SignatureDoesNotMatch": Unauthorized,
    "UnauthorizedOperation": Unauthorized,
    "UnrecognizedClientException": Unauthorized,
    "LimitExceeded": QuotaExceeded,
    "LimitExceededException": QuotaExceeded,
    "ParameterLimitExceeded": QuotaExceeded,
    "ParameterMaxVersionLimitExceeded": QuotaExceeded,
    "ServiceQuotaExceededException": QuotaExceeded,
    "VcpuLimitExceeded": QuotaExceeded,
    "InsufficientInstanceCapacity": OutOfCapacity,
    "InternalFailure": Unreachable,
    "InternalServerError": Unreachable,
    "RequestTimeout": Unreachable,
    "RequestTimeoutException": Unreachable,
    "ServerException": Unreachable,
    "ServiceUnavailable": Unreachable,
    "ServiceUnavailableException": Unreachable,
}
_STATUSES: dict[int, type[BackendError]] = {
    401: Unauthorized,
    403: Unauthorized,
    407: Unauthorized,
    408: Unreachable,
    429: Throttled,
}
_FORBIDDEN = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "NotAuthorized",
        "OptInRequired",
        "UnauthorizedOperation",
    }
)
"""AWS knows who asks, and says no: other credentials of theirs would be told the same."""
_NO_ANSWER = (
    "ConnectionError",
    "EndpointConnectionError",
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "ResponseStreamingError",
)
_NEVER_SENT = ("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError")
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "NoAuthTokenError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "TokenRetrievalError",
    "SSOError",
    "LoginError",
    "RefreshUnavailableError",
)


def by_code(code: str, sentence: str, status: int = 400) -> BackendError:
    """The error for a code of the service; ``status`` decides where the code is not known."""
    kind = _CODES.get(code) or _STATUSES.get(status)
    if kind is None:
        kind = Unreachable if status >= 500 or status < 400 else Invalid
    return kind(sentence)


def backend_error(error: Exception, doing: str) -> BackendError:
    """The one error that stands for what the SDK raised while ``doing`` something."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    if isinstance(error, BackendError):
        return error
    if isinstance(error, ClientError):
        code, said, status = code_of(error), error.response.get("Error", {}), _status(error)
        message = _one_line(str(said.get("Message") or said.get("message") or ""))
        sentence = f"{doing}: AWS says {code or status}" + (f", {message}" if message else "")
        mapped = by_code(code, sentence, status)
        if isinstance(mapped, Throttled):
            mapped.retry_after_seconds = retry_after_seconds(_headers(error).get("retry-after"))
        return mapped
    said_by_sdk = _one_line(str(error)) or type(error).__name__
    if _is_one_of(error, _NO_CREDENTIALS):
        return Unauthorized(f"{doing}: no credentials of AWS are to be had: {said_by_sdk}")
    if isinstance(error, OSError) or _is_one_of(error, _NO_ANSWER):
        return Unreachable(f"{doing}: no answer from AWS: {said_by_sdk}")
    return Invalid(f"{doing}: {said_by_sdk}")


def code_of(error: BaseException | None) -> str:
    """The service's code of an error of the SDK, "" when it has none."""
    response = getattr(error, "response", None) or {}
    # Some services of the "query" kind put a namespace in front.
    return str(response.get("Error", {}).get("Code") or "").rpartition("#")[2]


def is_unknown_identity(error: BackendError) -> bool:
    """Whether credentials were not there or not taken, which fresh ones may be."""
    return isinstance(error, Unauthorized) and code_of(error.__cause__) not in _FORBIDDEN


def was_never_sent(error: BackendError) -> bool:
    """Whether no connection came about at all: nothing can have been done."""
    cause = error.__cause__
    return cause is not None and _is_one_of(cause, _NEVER_SENT)


def _is_one_of(error: BaseException, names: tuple[str, ...]) -> bool:
    """By name up the classes: which of them exist depends on the SDK's version."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _status(error: Exception) -> int:
    metadata = getattr(error, "response", {}).get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 400)
    return status if isinstance(status, int) else 400


def _headers(error: Exception) -> Mapping[str, str]:
    metadata = getattr(error, "response", {}).get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders") or {}
    return headers


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
