"""What a run may use, and the sentence for it when it used more. Pure; measuring is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from bundles.model import Resources
from bundles.sizes import format_duration, format_size


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run uses. ``cpus`` is the mean number of cpus at work since the last measurement;
    seconds and bytes otherwise, zero where nothing was measured yet."""

    memory_bytes: int = 0
    cpus: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    disk_bytes: int | None = None


def time_exceeded(resources: Resources, elapsed_seconds: float) -> str | None:
    """The sentence for a run that takes too long."""
    limit = resources.time_seconds
    if limit <= 0 or elapsed_seconds < limit:
        return None
    return (
        f"Time limit exceeded. (Container uptime {format_duration(elapsed_seconds)} > time limit "
        f"{format_duration(limit)})"
    )


def memory_exceeded(resources: Resources, memory_bytes: int) -> str | None:
    """The sentence for a run that uses too much memory."""
    limit = resources.memory_bytes
    if limit <= 0 or memory_bytes <= limit:
        return None
    return f"Memory limit {format_size(limit)} exceeded. (It used {format_size(memory_bytes)})"


def out_of_memory(resources: Resources) -> str:
    """The sentence for a run that the kernel ended for the memory that it wanted."""
    return f"Memory limit {format_size(resources.memory_bytes)} exceeded."


def disk_exceeded(resources: Resources, disk_bytes: int) -> str | None:
    """The sentence for a run whose directory grew too large. The `b` is CodaLab's."""
    limit = resources.disk_bytes
    if limit <= 0 or disk_bytes <= limit:
        return None
    return f"Disk limit {format_size(limit)}b exceeded. (It used {format_size(disk_bytes)})"
