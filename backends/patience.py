"""Asks a service again, a bounded number of times, when the answer was "not now" or none at all.

Only for calls that may be repeated. The SDK's own retries are off where this is used, so that
there is one rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import tenacity

from backends.base import BackendError, Throttled, Unreachable

T = TypeVar("T")

ATTEMPTS = 4
LONGEST_SECONDS = 60.0
"""No further attempt is begun after this."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 5.0
"""A service that asks for a longer pause is not asked again here: the manager's next tick does."""


def patiently(
    doing: str, call: Callable[[], T], translate: Callable[[Exception, str], BackendError | None]
) -> T:
    """What ``call`` returns. Raises the BackendError into which ``translate`` turned what it
    raised; what that does not know (None) passes through.

    Once an attempt had no answer, the last error is Unreachable whatever came after it: what was
    asked may have been done by then.
    """
    lost = False

    def attempt() -> T:
        nonlocal lost
        try:
            return call()
        except Exception as error:
            mapped = translate(error, doing)
            if mapped is None:
                raise
            lost = lost or isinstance(mapped, Unreachable)
            if lost and not isinstance(mapped, Unreachable):
                mapped = Unreachable(f"{mapped} (and an earlier answer was lost)")
            raise mapped from error

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(LONGEST_SECONDS),
        wait=_wait_seconds,
        retry=tenacity.retry_if_exception(_may_pass),
        reraise=True,
    )(attempt)


def retry_after_seconds(value: str | None) -> float | None:
    """What a Retry-After header says: seconds, or a date (RFC 9110, 10.2.3). None: nothing."""
    said = (value or "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, Throttled):
        return (error.retry_after_seconds or 0.0) <= LONGEST_WAIT_SECONDS
    return isinstance(error, Unreachable)


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """The service's word, else twice as long each time, with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Throttled) and error.retry_after_seconds is not None:
        return error.retry_after_seconds + random.uniform(0.0, 0.25)
    longest: float = min(FIRST_WAIT_SECONDS * 2 ** (state.attempt_number - 1), LONGEST_WAIT_SECONDS)
    return random.uniform(0.5, 1.0) * longest
