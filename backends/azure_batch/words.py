"""How Azure's answers read: the text of an enumeration, the sentence of a message."""

from __future__ import annotations

from typing import Any


def word(value: Any) -> str:
    """The text of what may be an enumeration of the SDK, or a word that it does not know."""
    return str(getattr(value, "value", value) or "")


def first_line(text: object) -> str:
    """The words of a message that are for people: what follows are ids of requests."""
    lines = str(text).strip().splitlines()
    return lines[0].strip()[:300] if lines else ""
