"""What can go wrong between a client and a server, as exceptions.

The server raises them and answers with ``status``; the client raises the same ones when it reads
that status. The message is one sentence for a person: what, with which value, what to do next.
"""

from __future__ import annotations


class BundlesError(Exception):
    """Something failed at the server of bundles."""

    status = 500


class UsageError(BundlesError):
    """The request says something that makes no sense: nothing was changed."""

    status = 400


class NotAuthenticated(BundlesError):
    """The credentials are missing, wrong or expired."""

    status = 401


class NotPermitted(BundlesError):
    """The caller is known and may not do this."""

    status = 403


class NotFound(BundlesError):
    """There is no such thing, or the caller may not know that there is."""

    status = 404


class Conflict(BundlesError):
    """It is no longer so: a claim, a session or a state has moved on."""

    status = 409


class TooLarge(BundlesError):
    """The request is larger than the server takes."""

    status = 413


class RangeNotSatisfiable(UsageError):
    """A file has no bytes from there on: it ends before."""

    status = 416


class ServerFault(BundlesError):
    """The server failed (5xx), or has no time now: the same request may succeed later."""

    status = 503


class DiskFull(ServerFault):
    """The server has no room for what it was sent; it may have later."""

    status = 507


class Unreachable(BundlesError):
    """No answer: refused, timed out, or cut off. What was asked may have been done."""

    status = 0


_BY_STATUS: dict[int, type[BundlesError]] = {
    kind.status: kind
    for kind in (
        UsageError,
        NotAuthenticated,
        NotPermitted,
        NotFound,
        Conflict,
        TooLarge,
        RangeNotSatisfiable,
        DiskFull,
    )
}


_FOR_NOW = (408, 425, 429)
"""Request Timeout, Too Early, Too Many Requests: what gateways before a server say."""


def error_for_status(status: int, message: str) -> BundlesError:
    """The exception that stands for an HTTP status (300 or more); unknown 4xx are usage errors."""
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = ServerFault if status >= 500 or status in _FOR_NOW else UsageError
    return kind(message)
