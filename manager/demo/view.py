"""How the demo looks: one picture of one moment, for a terminal of any size from 80×24 on. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bundles.model import State
from manager.demo.pipeline import AFTER, FAILS, MERGE, SHARDS, SOURCE, Pipeline, shard_name

STYLES = {
    "": "dim",
    State.UPLOADING: "cyan",
    State.CREATED: "dim",
    State.STAGED: "yellow",
    State.STARTING: "blue",
    State.PREPARING: "blue",
    State.RUNNING: "bold cyan",
    State.FINALIZING: "cyan",
    State.READY: "green",
    State.FAILED: "red",
    State.KILLED: "red",
    State.WORKER_OFFLINE: "magenta",
}

_ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (State.CREATED, ("", State.UPLOADING, State.CREATED)),
    (State.STAGED, (State.STAGED,)),
    (State.RUNNING, (State.STARTING, State.PREPARING, State.RUNNING, State.WORKER_OFFLINE)),
    (State.FINALIZING, (State.FINALIZING,)),
    (State.READY, (State.READY,)),
    (State.FAILED, (State.FAILED, State.KILLED)),
)
"""The rows of the table of bundles: a name, and the states counted in it."""

_MARKS = {
    "": "·",
    State.CREATED: "·",
    State.STARTING: "▷",
    State.FINALIZING: "▶",
    State.READY: "●",
    State.FAILED: "✗",
    State.KILLED: "✗",
    State.RUNNING: "▶",
    State.PREPARING: "▷",
    State.STAGED: "○",
}


@dataclass
class Moment:
    """Everything that the picture shows. ``jobs`` and ``last`` are those of `status`."""

    pipeline: Pipeline
    server: str = ""
    seconds: float = 0.0
    jobs: Sequence[dict[str, Any]] = ()
    max_workers: int = 0
    last: dict[str, Any] | None = None
    events: deque[str] = field(default_factory=lambda: deque(maxlen=60))
    told: int = 0
    """How many events there were in all."""

    def tell(self, event: str) -> None:
        self.events.append(event)
        self.told += 1

    @property
    def living(self) -> list[dict[str, Any]]:
        return [job for job in self.jobs if job["state"] != "ended"]


def picture(moment: Moment, width: int, height: int) -> RenderableType:
    """At most ``width`` × ``height`` characters."""
    width = min(width, 120)
    half = (width - 1) // 2
    head = Text.assemble(
        ("worker-manager demo", "bold"),
        f"   {moment.seconds:5.1f} s   server {moment.server}",
        no_wrap=True,
        overflow="ellipsis",
    )
    panels = Columns(
        [
            Panel(_bundles(moment.pipeline, half - 4), title="bundles", width=half, height=8),
            Panel(_workers(moment, half - 4), title="workers", width=half, height=8),
        ],
        padding=(0, 1, 0, 0),
    )
    parts: list[RenderableType] = [
        head,
        panels,
        Panel(_graph(moment.pipeline), title="pipeline", width=2 * half + 1, height=5),
        Panel(
            _decision(moment.last, 2 * half - 3),
            title="last decision",
            width=2 * half + 1,
            height=5,
        ),
    ]
    room = height - 1 - 8 - 5 - 5 - 1
    parts += [
        Text(line, style="dim", no_wrap=True, overflow="ellipsis")
        for line in list(moment.events)[-room:]
        if room > 0
    ]
    return Group(*parts)


def _bundles(pipeline: Pipeline, width: int) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    total = len(pipeline.states)
    bar = max(4, width - 16)
    for name, states in _ROWS:
        number = pipeline.number_in(*states)
        filled = round(bar * number / total)
        style = STYLES[name] if number else "dim"
        table.add_row(
            Text(name, style=style),
            Text(str(number), style=style, justify="right"),
            Text("━" * max(filled, 1 if number else 0), style=style),
        )
    return table


def _workers(moment: Moment, width: int) -> RenderableType:
    numbers = dict.fromkeys(("pending", "active", "ended"), 0)
    for job in moment.jobs:
        numbers[job["state"]] += 1
    line = Text.assemble(
        *[
            part
            for state, style in (("pending", "yellow"), ("active", "bold cyan"), ("ended", "green"))
            for part in ((f"{numbers[state]} {state}", style if numbers[state] else "dim"), "  ")
        ]
    )
    rows = [Text(f"of 0 to {moment.max_workers} at a time", style="dim"), line]
    for job in (moment.living + [j for j in moment.jobs if j["state"] == "ended"][::-1])[:4]:
        left = "" if job["state"] != "ended" else f" {job['exit_code']}"
        rows.append(
            Text(
                f"{job['worker']} {job['state']}{left}",
                style="cyan" if job["state"] == "active" else "dim",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
    return Group(*rows)


def _graph(pipeline: Pipeline) -> RenderableType:
    """The pipeline, left to right: one mark a bundle."""

    def mark(name: str) -> Text:
        state = pipeline.states[name]
        return Text(_MARKS.get(state, "○"), style=STYLES.get(state, ""))

    chain = Text.assemble(f"{SOURCE} ", mark(SOURCE), " → count ")
    for number in range(SHARDS):
        chain.append_text(mark(shard_name(number)))
    chain.append_text(Text.assemble(f" → {MERGE} ", mark(MERGE)))
    side = Text.assemble(f"{FAILS} ", mark(FAILS), f" → {AFTER} ", mark(AFTER))
    legend = Text.assemble(
        *[
            part
            for state in (State.STAGED, State.RUNNING, State.READY, State.FAILED)
            for part in ((_MARKS[state], STYLES[state]), (f" {state}   ", "dim"))
        ]
    )
    return Group(chain, side, legend)


def _decision(entry: dict[str, Any] | None, width: int) -> RenderableType:
    if entry is None or not entry.get("decision"):
        return Text((entry or {}).get("error") or "none yet", style="dim")
    snapshot, decision = entry["snapshot"], entry["decision"]
    lines = [
        Text.assemble(
            (f"launch {decision['launch']}", "bold"),
            f"   seen: {snapshot['staged']} staged, {snapshot['pending']} pending, "
            f"{snapshot['active']} active",
            no_wrap=True,
            overflow="ellipsis",
        )
    ]
    deciding = [reason for reason in decision["reasons"] if reason["held"]]
    lines += [
        Text(f"{reason['code']}: {reason['sentence']}", no_wrap=True, overflow="ellipsis")
        for reason in (deciding or decision["reasons"])[-2:]
    ]
    return Group(*lines)
