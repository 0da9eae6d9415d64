"""What this process may use of its machine: its control groups and its Slurm allocation, read.

Pure functions of what files and variables say. Which cpus there are is not asked here: the kernel
keeps the affinity of a process within the cpusets of its groups, and Slurm within its allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

MIB = 1024**2

Number = TypeVar("Number", int, float)

ReadText = Callable[[str], str | None]
"""The content of a file by its path; None when it cannot be read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """None: no bound. ``cpus``: how many at a time, maybe not a whole number. ``gpus``: which, by
    index or UUID."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] | None = None

    def within(self, other: Bounds) -> Bounds:
        """What both allow; of two lists of gpus, this one's."""
        return Bounds(
            _least(self.cpus, other.cpus),
            _least(self.memory_bytes, other.memory_bytes),
            other.gpus if self.gpus is None else self.gpus,
        )


def group_bounds(read: ReadText) -> Bounds:
    """The bounds of the control groups of this process, of version 1 and 2, and of all that they
    lie in. ``read`` reads `/proc/self/cgroup`, `/proc/self/mountinfo` and what they name.

    Source: cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
    """
    bounds = Bounds()
    mounts = list(_mounts(read("/proc/self/mountinfo") or ""))
    for line in (read("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        names = set(controllers.split(",")) if number != "0" else set()
        for mount in mounts:
            if number == "0" and mount.is_unified:
                for place in _places(mount, group):
                    bounds = bounds.within(_unified(read, place))
            elif names & mount.controllers:
                for place in _places(mount, group):
                    bounds = bounds.within(_legacy(read, place, names & mount.controllers))
    return bounds


def slurm_bounds(environ: Mapping[str, str]) -> Bounds:
    """The bounds of a Slurm job on this node. Sizes are MB there.

    Source: sbatch(1), "OUTPUT ENVIRONMENT VARIABLES". Its gpus are numbered as on the whole node,
    so what `visible_gpus` says goes before.
    """
    if "SLURM_JOB_ID" not in environ:
        return Bounds()
    cpus = _number(environ.get("SLURM_CPUS_ON_NODE"))
    memory = _number(environ.get("SLURM_MEM_PER_NODE"))
    if not memory and cpus:  # 0 is: all of the node
        memory = cpus * (_number(environ.get("SLURM_MEM_PER_CPU")) or 0)
    return Bounds(cpus or None, memory * MIB if memory else None, _slurm_gpus(environ))


def visible_gpus(environ: Mapping[str, str]) -> Bounds:
    """The gpus that `CUDA_VISIBLE_DEVICES` leaves; like Slurm, other managers of jobs set it."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return Bounds()
    names = [part.strip() for part in text.split(",")]
    # CUDA itself ignores what comes after the first that is none, such as -1 or NoDevFiles.
    valid = [name for name in names if name.isdigit() or name.startswith(("GPU-", "MIG-"))]
    return Bounds(gpus=tuple(valid))


def _slurm_gpus(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    if "SLURM_JOB_GPUS" in environ:
        return tuple(part for part in environ["SLURM_JOB_GPUS"].split(",") if part)
    count = _number(environ.get("SLURM_GPUS_ON_NODE"))
    return None if count is None else tuple(str(index) for index in range(count))


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy. ``root``: the group that is seen at ``point``."""

    point: PurePosixPath
    root: PurePosixPath
    is_unified: bool
    controllers: frozenset[str]


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        fields = line.split()
        if "-" not in fields:
            continue
        end = fields.index("-")
        kind = fields[end + 1]
        if kind in ("cgroup", "cgroup2"):
            options = fields[end + 3].split(",")
            yield _Mount(
                PurePosixPath(fields[4]),
                PurePosixPath(fields[3]),
                kind == "cgroup2",
                frozenset(options) if kind == "cgroup" else frozenset(),
            )


def _places(mount: _Mount, group: str) -> Iterator[PurePosixPath]:
    """The directory of a group and of every group around it, as far as they are visible."""
    path = PurePosixPath(group)
    try:
        relative = path.relative_to(mount.root)
    except ValueError:
        # A container that sees its group as the root of the mount, and its name as outside.
        relative = PurePosixPath()
    place = mount.point / relative
    while True:
        yield place
        if place == mount.point:
            return
        place = place.parent


def _unified(read: ReadText, place: PurePosixPath) -> Bounds:
    quota, _, period = (read(f"{place}/cpu.max") or "").partition(" ")
    return Bounds(_share(quota, period), _number(read(f"{place}/memory.max")))


def _legacy(read: ReadText, place: PurePosixPath, controllers: set[str]) -> Bounds:
    cpus = memory_bytes = None
    if "cpu" in controllers:
        quota = read(f"{place}/cpu.cfs_quota_us") or ""
        cpus = _share(quota, read(f"{place}/cpu.cfs_period_us") or "")
    if "memory" in controllers:
        # No limit is a number there, too: one that is larger than any memory.
        memory_bytes = _number(read(f"{place}/memory.limit_in_bytes"))
    return Bounds(cpus, memory_bytes)


def _share(quota: str, period: str) -> float | None:
    part, whole = _number(quota), _number(period)
    return part / whole if part and whole else None


def _number(text: str | None) -> int | None:
    """A number that is not negative; None for `max`, -1 and what is no number."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isdigit() else None


def _least(one: Number | None, other: Number | None) -> Number | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
