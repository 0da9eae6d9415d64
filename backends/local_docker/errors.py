"""What the engine, or the way to it, answered, as one error of the taxonomy. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from docker.errors import APIError

from backends.base import (
    BackendError,
    Invalid,
    OutOfCapacity,
    Throttled,
    Unauthorized,
    Unreachable,
)

_BY_STATUS: dict[int, type[BackendError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Unauthorized,
    404: Invalid,
    405: Invalid,
    406: Invalid,
    409: Invalid,
    429: Throttled,
    503: Unreachable,
}

_BY_WORDS: list[tuple[str, type[BackendError]]] = [
    ("no space left on device", OutOfCapacity),
    ("cannot allocate memory", OutOfCapacity),
    ("resource temporarily unavailable", OutOfCapacity),
    ("too many open files", OutOfCapacity),
    ("could not select device driver", Invalid),
    ("unresolvable cdi", Invalid),
    ("executable file not found", Invalid),
    ("oci runtime", Invalid),
    ("no such image", Invalid),
    ("permission denied", Unauthorized),
]
"""The engine has one status, 500, for whatever goes wrong in it or in the kernel below."""


def backend_error(error: Exception, doing: str) -> BackendError:
    """One sentence and one class for what stopped ``doing``."""
    if isinstance(error, BackendError):
        return error
    if isinstance(error, APIError) and error.response is not None:
        return _answered(error, doing)
    for cause in _causes(error):
        if isinstance(cause, PermissionError):
            return Unauthorized(
                f"{doing}: this user may not speak to the engine: join the group of its socket"
            )
    return Unreachable(f"{doing}: the engine does not answer ({_first_line(str(error))})")


def is_worth_another_try(error: BaseException) -> bool:
    """Whether the engine asked for it, or was not there at all; not when it is silent."""
    from requests.exceptions import Timeout

    if isinstance(error, APIError):
        return error.response is not None and error.response.status_code == 429
    return not any(isinstance(cause, Timeout | PermissionError) for cause in _causes(error))


def retry_after_seconds(error: BaseException | None) -> float | None:
    """What the answer says in Retry-After, if it says it in seconds."""
    if isinstance(error, APIError) and error.response is not None:
        said = error.response.headers.get("Retry-After", "")
        if said.isdigit():
            return float(said)
    return None


def _answered(error: APIError, doing: str) -> BackendError:
    said = error.explanation or str(error)
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    sentence = f"{doing}: {_first_line(said)}"
    status = error.response.status_code if error.response is not None else 500
    kind = _BY_STATUS.get(status)
    if kind is Throttled:
        return Throttled(sentence, retry_after_seconds(error))
    if kind is not None:
        return kind(sentence)
    for words, kind in _BY_WORDS:
        if words in said.lower():
            return kind(sentence)
    return Unreachable(sentence)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it was raised from or wraps."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "it did not say why")[:500]
