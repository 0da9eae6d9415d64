"""The cpus and gpus that a worker offers, and which run has which. No two runs share one."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bundles.errors import UsageError

log = logging.getLogger(__name__)

NVIDIA_SMI_SECONDS = 15.0
MOST_CPUS = 65536
"""More than any kernel knows: a range beyond that is a slip, and not to be written out."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What is offered. ``cpus`` are places; they are real cpus to be pinned to if ``is_pinned``."""

    cpus: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What one run has."""

    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


def assign(devices: Devices, taken: Iterable[Share], cpus: int, gpus: int) -> Share | None:
    """Free cpus and gpus for a run; None when there are too few now."""
    used_cpus: set[int] = set()
    used_gpus: set[str] = set()
    for share in taken:
        used_cpus.update(share.cpus)
        used_gpus.update(share.gpus)
    free_cpus = [cpu for cpu in devices.cpus if cpu not in used_cpus]
    free_gpus = [gpu for gpu in devices.gpus if gpu not in used_gpus]
    if len(free_cpus) < cpus or len(free_gpus) < gpus:
        return None
    return Share(tuple(free_cpus[:cpus]), tuple(free_gpus[:gpus]))


def offered_cpus(
    cpuset: str, count: int | None, worker_id: str, *, quota: float | None = None
) -> tuple[tuple[int, ...], bool]:
    """The cpus to offer, and whether runs are pinned to them.

    ``cpuset`` is `ALL` or numbers and ranges such as `0-3,8`. ``count`` limits them, or offers
    more places than there are cpus; without it ``quota`` does, how many may be busy at a time.
    Runs are pinned when the set is known to be this worker's:
    it was given, or it is all that there is. Else other workers beside it would pin to the same.

    Raises UsageError.
    """
    present = os.sched_getaffinity(0)
    if cpuset.upper() == "ALL":
        chosen = sorted(present)
    else:
        chosen = sorted(_parse_cpuset(cpuset))
        missing = [cpu for cpu in chosen if cpu not in present]
        if missing:
            raise UsageError(
                f"--cpuset {cpuset}: there is no cpu {missing[0]} here, only {_ranges(present)}"
            )
    if count is None:
        count = len(chosen) if quota is None else min(len(chosen), max(1, int(quota)))
    if count > len(chosen):
        if cpuset.upper() != "ALL":
            raise UsageError(
                f"--cpus {count}: --cpuset {cpuset} names only {len(chosen)}; leave one of them out"
            )
        return tuple(range(count)), False
    if cpuset.upper() == "ALL" and count < len(chosen):
        return tuple(chosen[:count]), False
    # Several workers that each have the whole machine shall not all begin at the same cpu.
    start = zlib.crc32(worker_id.encode()) % len(chosen)
    return tuple((chosen[start:] + chosen[:start])[:count]), True


def _parse_cpuset(text: str) -> set[int]:
    cpus: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            last_cpu = min(int(last if dash else first), int(first) + MOST_CPUS)
            cpus.update(range(int(first), last_cpu + 1))
    except ValueError:
        cpus.clear()
    if not cpus:
        raise UsageError(f"--cpuset {text!r} is no set of cpus: write ALL, or such as 0-3,8")
    return cpus


def _ranges(cpus: Iterable[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus))


def offered_gpus(gpuset: str, allowed: Sequence[str] | None = None) -> tuple[str, ...]:
    """The gpus to offer, as `CUDA_VISIBLE_DEVICES` takes them.

    ``gpuset`` is `ALL`, `NONE` (or empty), or indices or UUIDs. Asks nvidia-smi, if there is one.
    ``allowed``: no others, by index or (the beginning of) UUID.
    Raises UsageError for a gpu that is not there.
    """
    if gpuset.upper() in ("", "NONE"):
        return ()
    present = _nvidia_gpus()
    if allowed is not None:
        present = [gpu for gpu in present if _is_among(gpu, allowed)]
    if gpuset.upper() == "ALL":
        return tuple(index for index, _ in present)
    names = {name: index for index, uuid in present for name in (index, uuid)}
    chosen: list[str] = []
    for name in gpuset.split(","):
        if name.strip() not in names:
            raise UsageError(f"--gpuset {gpuset}: there is no gpu {name.strip()!r} to offer here")
        chosen.append(names[name.strip()])
    return tuple(dict.fromkeys(chosen))


def _is_among(gpu: tuple[str, str], names: Sequence[str]) -> bool:
    index, uuid = gpu
    return any(
        name == index or (name.startswith("GPU-") and uuid.startswith(name)) for name in names
    )


def _nvidia_gpus() -> Sequence[tuple[str, str]]:
    """(index, UUID) of each; none when there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        output = subprocess.run(
            [command, "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("no gpus are offered: %s", error)
        return ()
    lines = [line.split(",") for line in output.splitlines()]
    return [(line[0].strip(), line[1].strip()) for line in lines if len(line) == 2]


def total_memory_bytes() -> int:
    """What the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
