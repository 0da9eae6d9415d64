"""What /proc says about processes: parents, sessions, start times, memory. Reads only, no psutil:
one pass over all processes is made every second, and psutil reads several files for each."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Stat:
    """One process. ``started`` in ticks since boot names it together with its pid: pids are used
    again. Ticks include those of its children that have been waited for."""

    pid: int
    state: str
    parent: int
    session: int
    started: int
    user_ticks: int
    system_ticks: int
    resident_bytes: int


def read_stat(pid: int) -> Stat | None:
    """The process; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name in parentheses may hold anything, also parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        user_ticks=int(fields[11]) + int(fields[13]),
        system_ticks=int(fields[12]) + int(fields[14]),
        resident_bytes=int(fields[21]) * PAGE_BYTES,
    )


def read_all() -> dict[int, Stat]:
    """Every process of the machine that can be seen, by pid."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = read_stat(int(name))
            if stat is not None:
                found[stat.pid] = stat
    return found


def children_of(pid: int) -> list[int]:
    """The children of a process; of the kernel's own list where it has one."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(word) for word in file.read().split()]
    except FileNotFoundError:
        if os.path.exists("/proc/thread-self/children"):
            return found
        return [stat.pid for stat in read_all().values() if stat.parent == pid]
    except OSError:
        pass
    return found


def descendants(pids: Iterable[int], processes: dict[int, Stat]) -> set[int]:
    """The given processes and everything below them."""
    below: dict[int, list[int]] = defaultdict(list)
    for stat in processes.values():
        below[stat.parent].append(stat.pid)
    found: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += below.get(pid, ())
    return found


def has_variable(pid: int, variable: bytes) -> bool:
    """Whether the process was started with this `NAME=value` (or `NAME=`, then any value)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return False
    end = b"" if variable.endswith(b"=") else b"\0"
    return (b"\0" + environment + b"\0").find(b"\0" + variable + end) >= 0


def proportional_bytes(pid: int) -> int:
    """Memory of the process, with its share of what it shares; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


@functools.cache
def boot_id() -> str:
    """Names this boot of this machine: no process outlives it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
