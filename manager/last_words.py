"""The end of a worker's output, as it may be kept: without what is secret, and in plain text."""

from __future__ import annotations

import re
from collections.abc import Collection

LONGEST_BYTES = 4096
HIDDEN = "…"

_NAMED_SECRET = re.compile(
    r"(?i)((?:token|password|passwd|secret|credential|api[-_]?key|authorization)\w*"
    r"[\"']?\s*[=:]\s*[\"']?(?:(?:bearer|basic)\s+)?)[^\s\"',;]+"
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_USER_IN_ADDRESS = re.compile(r"(://)[^/\s@]+@")
_NOT_TEXT = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def last_words(output: str, secrets: Collection[str] = ()) -> str:
    """The last LONGEST_BYTES of ``output``, cut at a line's beginning where there is one.

    ``secrets``: what must not be in it, beside what looks like one.
    """
    # Whole lines before anything is cut: half a secret is not recognised.
    text = _NOT_TEXT.sub("", output[-16 * LONGEST_BYTES :])
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    text = _NAMED_SECRET.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _USER_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    encoded = text.strip().encode(errors="replace")
    if len(encoded) <= LONGEST_BYTES:
        return encoded.decode()
    tail = encoded[-LONGEST_BYTES:].decode(errors="ignore")
    _, newline, lines = tail.partition("\n")
    return lines if newline and lines else tail
