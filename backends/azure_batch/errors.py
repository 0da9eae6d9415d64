"""What the SDKs raise, as the taxonomy of backends.base: by the service's error code.

Codes: learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes, and Storage's
common codes. Asks nothing of anyone, and imports the SDKs only once one of them has raised.
"""

from __future__ import annotations

from backends.azure_batch.words import first_line, word
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
    "ServerBusy": Throttled,
    "TooManyRequests": Throttled,
    "OperationTimedOut": Unreachable,
    "InternalError": Unreachable,
    "ServerError": Unreachable,
    "NodeNotReady": Unreachable,
    "ActiveJobAndScheduleQuotaReached": QuotaExceeded,
    "PoolQuotaReached": QuotaExceeded,
    "AccountCoreQuotaReached": QuotaExceeded,
    "AccountLowPriorityCoreQuotaReached": QuotaExceeded,
    "AccountSpotCoreQuotaReached": QuotaExceeded,
    "AccountVMSeriesCoreQuotaReached": QuotaExceeded,
    "SubscriptionCoreQuotaReached": QuotaExceeded,
    "AllocationFailed": OutOfCapacity,
    "AllocationTimedout": OutOfCapacity,
    "AllocationTimedOut": OutOfCapacity,
    "UnavailableCapacity": OutOfCapacity,
    "AuthenticationFailed": Unauthorized,
    "AuthorizationFailure": Unauthorized,
    "AuthorizationPermissionMismatch": Unauthorized,
    "InsufficientAccountPermissions": Unauthorized,
    "PermissionDenied": Unauthorized,
    "UnauthorizedOperation": Unauthorized,
    "AccountIsDisabled": Unauthorized,
}
_STATUSES: dict[int, type[BackendError]] = {
    401: Unauthorized,
    403: Unauthorized,
    407: Unauthorized,
    408: Unreachable,
    429: Throttled,
    503: Throttled,
}


def code_of(error: Exception) -> str:
    """The service's code of an SDK's error, "" when it has none."""
    code = getattr(getattr(error, "error", None), "code", None) or getattr(error, "error_code", "")
    return word(code)


def by_code(code: str, sentence: str, status: int = 400) -> BackendError:
    """The error for a code of the service; ``status`` decides where the code is not known."""
    kind = _CODES.get(code) or _STATUSES.get(status)
    if kind is None:
        kind = Unreachable if status >= 500 or status < 400 else Invalid
    return kind(sentence)


def backend_error(error: Exception, doing: str) -> BackendError | None:
    """The one error that stands for what an SDK raised while ``doing`` something; None when it
    is not of the SDKs or the network."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    if not isinstance(error, AzureError | OSError):
        return None
    code, status = code_of(error), getattr(error, "status_code", None)
    if isinstance(error, HttpResponseError) and status is not None:
        said = first_line(getattr(getattr(error, "error", None), "message", "") or error.message)
        sentence = f"{doing}: Azure says {code or status}" + (f", {said}" if said else "")
        mapped = by_code(code, sentence, status)
        if isinstance(mapped, Throttled):
            headers = getattr(error.response, "headers", None) or {}
            mapped.retry_after_seconds = retry_after_seconds(headers.get("Retry-After"))
        return mapped
    if isinstance(error, ClientAuthenticationError):
        return Unauthorized(
            f"{doing}: no credentials that can be used: {first_line(error)} "
            "(set the account's key, or log in: az login)"
        )
    return Unreachable(f"{doing}: no answer from Azure: {first_line(error)}")
