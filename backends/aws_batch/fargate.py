"""The pairs of cpus and memory that Fargate has, and the one that comes next to what is wanted.

Source: botocore's model of AWS Batch, shape ResourceRequirement. Whole cpus only, as workers have.
"""

from __future__ import annotations

PAIRS: dict[int, tuple[int, ...]] = {
    1: tuple(range(2048, 8192 + 1, 1024)),
    2: tuple(range(4096, 16384 + 1, 1024)),
    4: tuple(range(8192, 30720 + 1, 1024)),
    8: tuple(range(16384, 61440 + 1, 4096)),
    16: tuple(range(32768, 122880 + 1, 8192)),
    32: (61440, 122880, 249856),
}
"""MiB of memory by number of cpus."""


def is_pair(cpus: int, memory_mb: int) -> bool:
    return memory_mb in PAIRS.get(cpus, ())


def next_pair(cpus: int, memory_mb: int) -> tuple[int, int] | None:
    """The smallest pair with at least as much of both; None when there is none so large."""
    for number, sizes in PAIRS.items():
        for size in sizes:
            if number >= cpus and size >= memory_mb:
                return number, size
    return None
