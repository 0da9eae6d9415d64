"""How `top` looks: the pools of a home at one moment, for a terminal of any size from 80×24 on.

Pure: what it shows are the documents of manager.overview.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from bundles.sizes import format_duration
from manager.overview import (
    FAILING,
    HELD,
    KEEPING,
    NO_BUDGET,
    NO_MANAGER,
    PROBATION,
    QUARANTINED,
    STARTING,
)

WIDE = 110
INDENT = " " * 9
STYLES = {
    KEEPING: "green",
    STARTING: "cyan",
    PROBATION: "yellow",
    HELD: "yellow",
    QUARANTINED: "bold yellow",
    NO_BUDGET: "yellow",
    FAILING: "bold red",
    NO_MANAGER: "dim",
}
_COLUMNS = (
    ("STATE", 12),
    *((name, 0) for name in ("ACTIVE", "PEND", "DRAIN", "END")),
    ("MIN-MAX", 0),
    ("STAGED", 0),
    ("LAUNCHED", 0),
    ("FAILED", 0),
)
"""Names, and how wide they are at least."""
_WIDE_COLUMNS = (("UNFIT", 0), ("SPENT TODAY", 0), ("SINCE", 6), ("BACKEND", 13))
_WORKERS = ("active", "pending", "draining", "ending")

Document = dict[str, Any]


def picture(pools: Sequence[Document], now: float, width: int, height: int) -> RenderableType:
    """At most ``width`` × ``height`` characters, in which what matters most comes first."""
    head = _head(pools, now)
    if not pools:
        return Group(head, Text("No pool yet: start one with `worker-manager local-process`."))
    room = height - 1 - len(head.plain.splitlines()) - 2
    shown = list(pools[: max(1, room)])
    left = len(pools) - len(shown)
    lines = [line for pool in _loudest_first(pools) for line in _words(pool, now)]
    parts: list[RenderableType] = [head, _table(shown, now, width)]
    if left:
        parts.append(Text(f"and {left} more: a taller terminal shows them", style="dim"))
    free = room - len(shown) - (1 if left else 0)
    if free > 1:
        parts += [Text(), *_fitted(lines, width, free - 1)]
    return Group(*parts)


def _head(pools: Sequence[Document], now: float) -> Text:
    workers = {state: _sum(pools, state) for state in _WORKERS}
    managers = {pool["manager"] for pool in pools} - {None}
    text = Text.assemble(
        ("worker-manager top", "bold"),
        f"   {_clock(now)}   pools {len(pools)}   managers {len(managers)}   ",
        ("q quits", "dim"),
        "\nworkers  ",
        *(f"{number} {state}   " for state, number in workers.items()),
        no_wrap=True,
        overflow="ellipsis",
    )
    spent = _spent(pools)
    return text.append(spent) if spent else text


def _spent(pools: Sequence[Document]) -> str:
    costs = [pool["cost"] for pool in pools if pool["cost"]]
    if not costs:
        return ""
    sums = {period: sum(cost["spent"][period] for cost in costs) for period in costs[0]["spent"]}
    rate = sum(cost["per_hour"] for cost in costs)
    words = "   ".join(f"{amount:.2f} this {period}" for period, amount in sums.items())
    return f"\nspent    {words}   now {rate:.2f} an hour"


def _table(pools: Sequence[Document], now: float, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    is_wide = width >= WIDE
    columns = [*_COLUMNS, *(_WIDE_COLUMNS if is_wide else ())]
    room = width - sum(max(len(name), least) + 1 for name, least in columns)
    table.add_column("POOL", no_wrap=True, overflow="ellipsis", max_width=max(8, room))
    for name, least in columns:
        justify: JustifyMethod = "left" if name in ("STATE", "BACKEND") else "right"
        table.add_column(name, justify=justify, no_wrap=True, min_width=max(len(name), least))
    for pool in pools:
        cells = [Text(pool["pool"]), *_cells(pool)]
        if is_wide:
            cells += _wide_cells(pool, now)
        table.add_row(*cells, style="dim" if pool["state"] == NO_MANAGER else "")
    return table


def _cells(pool: Document) -> list[Text]:
    workers = pool["workers"] or {}
    return [
        Text(pool["state"], style=STYLES.get(pool["state"], "")),
        *(_number(workers.get(state)) for state in _WORKERS),
        Text(f"{pool['min_workers']}-{pool['max_workers']}"),
        _number(pool["staged"]),
        _number(pool["launched_lately"]),
        _number(sum(pool["failures_lately"].values()), style="red"),
    ]


def _wide_cells(pool: Document, now: float) -> list[Text]:
    cost, last = pool["cost"], pool["last"]
    return [
        _number(pool["unfit"]),
        Text(f"{cost['spent']['day']:.2f}") if cost else Text("-", style="dim"),
        Text(_duration(now - last["time"]) if last else "-", style="dim"),
        Text(pool["backend"]),
    ]


def _number(value: int | None, style: str = "") -> Text:
    if value is None:
        return Text("?", style="dim")
    return Text(str(value), style=style if value else "dim")


def _loudest_first(pools: Sequence[Document]) -> list[Document]:
    """What does not go as it should comes first."""
    return sorted(pools, key=lambda pool: (pool["state"] == NO_MANAGER, pool["state"] == KEEPING))


def _words(pool: Document, now: float) -> list[Text]:
    """Lines about one pool: what was decided, since when and why, and what failed lately."""
    if pool["state"] == NO_MANAGER:
        return []
    last, until = pool["last"], pool["until"]
    state = "" if pool["state"] == KEEPING else f"{pool['state']}"
    if until is not None:
        state += f" for {_duration(until - now)} more"
    lines = [
        Text.assemble(
            (_clock(last["time"]) if last else "        ", "dim"),
            " ",
            (pool["pool"], "bold"),
            "  ",
            (f"{state}: " if state else "", STYLES.get(pool["state"], "")),
            pool["why"],
        )
    ]
    if last and last["decision"] and pool["state"] == KEEPING:
        others = [reason for reason in last["decision"]["reasons"] if reason["held"]][:-1]
        lines += [Text(f"{INDENT}{reason['sentence']}", style="dim") for reason in others]
    if pool["failures_lately"]:
        causes = ", ".join(f"{number} {cause}" for cause, number in pool["failures_lately"].items())
        lines.append(Text(f"{INDENT}failed in the last hour: {causes}", style="red"))
    return lines


def _fitted(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    """The lines whole, on several where they are long; cut when there is not the room for that."""
    console = Console(width=width)
    wrapped = [part for line in lines for part in line.wrap(console, width)]
    if len(wrapped) <= height:
        return wrapped
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return list(lines[:height])


def _sum(pools: Sequence[Document], state: str) -> int:
    return sum((pool["workers"] or {}).get(state, 0) for pool in pools)


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _duration(seconds: float) -> str:
    """`42s`, `3m05s`: as format_duration, without tenths that nobody can read."""
    return f"{max(0.0, seconds):.0f}s" if seconds < 60 else format_duration(seconds)
