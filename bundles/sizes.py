"""Sizes and durations as people write them: `512m`, `2g`, `3h`. Not for anything else."""

from __future__ import annotations

import re

from bundles.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdy]?)", re.IGNORECASE)
_DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}


def parse_size(text: str | int | float) -> int:
    """Bytes of `N[k|m|g|t]`, in units of 1024 (CodaLab's `formatting.parse_size`).

    Raises UsageError for anything else, negative numbers included.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size: write a number and k, m, g or t, such as 512m")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def parse_duration(text: str | int | float) -> float:
    """Seconds of `N[s|m|h|d|y]` (CodaLab's `formatting.parse_duration`).

    Raises UsageError for anything else, negative numbers included.
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a duration: write a number and s, m, h, d or y, such as 90m"
        )
    return float(match[1]) * _DURATION_UNITS[match[2].lower()]


def format_size(size_bytes: float) -> str:
    """`1536` → `1.5k`: at most one decimal, in the largest unit that leaves a whole part."""
    value = float(size_bytes)
    for unit in ("", "k", "m", "g"):
        if value < 1024:
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}t"


def format_duration(seconds: float) -> str:
    """`3723` → `1h02m`, `62` → `1m02s`, `3.25` → `3.2s`: the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
