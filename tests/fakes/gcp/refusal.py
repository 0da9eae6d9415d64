"""What a service of Google's says when it does not do what it was asked, over both transports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CODES = {
    # canonical code: (its number, HTTP status); cloud.google.com/apis/design/errors
    "CANCELLED": (1, 499),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "UNAUTHENTICATED": (16, 401),
}


@dataclass
class Refusal(Exception):
    """``reason``: of the ErrorInfo that goes with it, if any; ``retry_seconds``: its RetryInfo."""

    code: str
    message: str
    reason: str = ""
    retry_seconds: float | None = None

    @property
    def http_status(self) -> int:
        return _CODES[self.code][1]

    def status(self) -> Any:
        """As grpc sends it: google.rpc.Status."""
        from google.protobuf.any_pb2 import Any as Packed
        from google.protobuf.duration_pb2 import Duration
        from google.rpc import error_details_pb2, status_pb2

        details = []
        if self.reason:
            info = error_details_pb2.ErrorInfo(reason=self.reason, domain="googleapis.com")
            details.append(Packed())
            details[-1].Pack(info)
        if self.retry_seconds is not None:
            whole = int(self.retry_seconds)
            delay = Duration(seconds=whole, nanos=int((self.retry_seconds - whole) * 1e9))
            details.append(Packed())
            details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status_pb2.Status(code=_CODES[self.code][0], message=self.message, details=details)

    def document(self) -> dict[str, Any]:
        """As REST sends it."""
        details: list[dict[str, Any]] = []
        if self.reason:
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": self.reason,
                    "domain": "googleapis.com",
                }
            )
        if self.retry_seconds is not None:
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": f"{self.retry_seconds:.3f}s",
                }
            )
        error = {
            "code": self.http_status,
            "message": self.message,
            "status": self.code,
            "details": details,
        }
        return {"error": error}
