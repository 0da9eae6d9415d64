"""Whether a worker can work here, found out before it takes anything. One sentence for each fault.

What only the server can tell (credentials, its address) comes out at the first check-in; what runs
bundles is looked for in worker.runtimes.choice.
"""

from __future__ import annotations

import os
from pathlib import Path

from bundles.sizes import format_size

LEAST_FREE_BYTES = 4 * 1024**2
"""With less not even what is known of a few runs can be written down."""
CLOCK_WARNING_SECONDS = 30.0
CLOCK_FAULT_SECONDS = 3600.0
"""The life of a CodaLab token. Tokens are given a duration, so that none breaks before; but times
that are reported would be of no use, and certificates seem expired."""


def directory_fault(directory: Path) -> str | None:
    """Why a work directory, which exists, cannot be used; None if it can."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        return error.strerror
    free = status.f_bavail * status.f_frsize
    if free < LEAST_FREE_BYTES:
        return f"{format_size(free)} are free and {format_size(LEAST_FREE_BYTES)} are needed"
    if status.f_files and not status.f_favail:
        return "no more files can be made there"
    return None


def clock_difference(skew_seconds: float) -> str | None:
    """The sentence for a clock that the server's is ahead of by so much; None if it will do."""
    if abs(skew_seconds) <= CLOCK_WARNING_SECONDS:
        return None
    direction = "behind" if skew_seconds > 0 else "ahead of"
    return (
        f"this machine's clock is {abs(skew_seconds):.0f} s {direction} the server's: "
        "synchronise it (chrony, systemd-timesyncd)"
    )
