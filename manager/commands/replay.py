"""`worker-manager replay JOURNAL`: what other settings would have decided, beside what was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from manager.options import output_option

if TYPE_CHECKING:
    from pathlib import Path

    from manager.policy import PoolConfig
    from manager.replay import Summary, Tick

TICKS_SHOWN = 40

UNKNOWN = (
    "A replay sees what was seen then. With other workers the queue would have been another: how "
    "long bundles would have waited it cannot know."
)


def replay_command() -> click.Command:
    return click.Command(
        "replay",
        params=[
            click.Argument(
                ["journal"], type=click.Path(exists=True, dir_okay=False), metavar="JOURNAL"
            ),
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False),
                metavar="FILE",
                help="A pools file; its pool of the journal's name is replayed.",
            ),
            click.Option(["--pool"], metavar="NAME", help="… or this one of its pools."),
            click.Option(
                ["--price-per-hour"],
                type=click.FloatRange(min=0),
                help="What a worker costs in an hour.",
            ),
            click.Option(["--min-workers", "--min"], type=click.IntRange(min=0)),
            click.Option(["--max-workers", "--max"], type=click.IntRange(min=0)),
            click.Option(["--min-seconds-between-workers"], type=click.FloatRange(min=0)),
            click.Option(["--cpus"], type=click.IntRange(min=1)),
            click.Option(["--gpus"], type=click.IntRange(min=0)),
            click.Option(["--memory-mb"], type=click.IntRange(min=1)),
            output_option(),
            click.Option(["--verbose"], is_flag=True, help="Show where an error came from."),
        ],
        callback=_replay,
        help=(
            "What would have been decided with other settings, beside what was.\n\nJOURNAL is "
            f"journal/POOL.jsonl in the home; what was rotated away is read, too. {UNKNOWN}"
        ),
    )


def _replay(
    journal: str,
    output: str,
    verbose: bool,
    config: str | None,
    pool: str | None,
    price_per_hour: float | None,
    **settings: Any,
) -> int:
    """Raises UsageError, or OSError for a journal that cannot be read."""
    from pathlib import Path

    if pool is not None and config is None:
        raise click.UsageError("--pool names a pool of a file: give --config FILE, too")
    from manager.history import read_journal
    from manager.replay import replay, summarize

    entries = list(read_journal(Path(journal)))
    if not entries:
        raise click.UsageError(f"{journal} is no journal: no line of it tells of a tick")
    planned = None
    if config is not None:
        planned, price = _planned(Path(config), pool or entries[-1].pool)
        price_per_hour = price if price_per_hour is None else price_per_hour
    ticks = list(replay(entries, _change(settings, planned)))
    summary = summarize(entries, ticks, price_per_hour)
    if output == "json":
        document = {
            "summary": summary.to_document(),
            "unknown": UNKNOWN,
            "ticks": [tick.to_document() for tick in ticks],
        }
        print(json.dumps(document))
    else:
        _print(ticks, summary)
    return 0


def _planned(path: Path, pool: str) -> tuple[PoolConfig, float | None]:
    """A pool of a file, and its price. Raises UsageError."""
    from manager.pool import config_of
    from manager.pools_file.reading import load

    tables = {table.name: table for table in load(path).pools}
    if pool not in tables:
        raise click.UsageError(
            f"{path} has no pool {pool}: give --pool NAME, one of {', '.join(tables)}"
        )
    table = tables[pool]
    return config_of(table.backend_name, table.settings), table.settings["price_per_hour"]


def _change(
    settings: dict[str, Any], planned: PoolConfig | None = None
) -> Callable[[PoolConfig | None], PoolConfig | None]:
    """The configuration of a line, or the ``planned`` one, with what is given in its place; None
    when something lacks."""
    from manager.capacity import UNBOUNDED, Offer, Room
    from manager.policy import PoolConfig

    given = {name: value for name, value in settings.items() if value is not None}

    def change(config: PoolConfig | None) -> PoolConfig | None:
        config = planned or config
        if config is None:
            if not {"min_workers", "max_workers", "cpus", "memory_mb"} <= given.keys():
                return None
            config = PoolConfig(Offer(Room(disk_bytes=UNBOUNDED, time_seconds=UNBOUNDED)))
        room = config.shape.room
        room = room._replace(
            cpus=given.get("cpus", room.cpus),
            gpus=given.get("gpus", room.gpus),
            memory_bytes=given["memory_mb"] * 1024**2
            if "memory_mb" in given
            else room.memory_bytes,
        )
        changed = replace(
            config,
            shape=config.shape._replace(room=room),
            min_workers=given.get("min_workers", config.min_workers),
            max_workers=given.get("max_workers", config.max_workers),
            min_seconds_between_workers=given.get(
                "min_seconds_between_workers", config.min_seconds_between_workers
            ),
        )
        if changed.min_workers > changed.max_workers:
            raise click.UsageError(
                f"--min-workers {changed.min_workers} is more than --max-workers "
                f"{changed.max_workers}: give both"
            )
        return changed

    return change


def _print(ticks: list[Tick], summary: Summary) -> None:
    from bundles.cli.output import console, duration, moment, new_table

    paper = console()
    differing = [tick for tick in ticks if tick.differs]
    for tick in differing[:TICKS_SHOWN]:
        click.echo(f"{moment(tick.time)}  {tick.staged} staged")
        click.echo(f"  was    {tick.was.sentence}")
        click.echo(f"  would  {tick.would.sentence}")
    if len(differing) > TICKS_SHOWN:
        click.echo(f"and {len(differing) - TICKS_SHOWN} ticks more that differ: see -o json")
    table = new_table("", "WAS", "WOULD BE")
    was, would = summary.was, summary.would
    table.add_row("workers launched", str(was.launched), str(would.launched))
    table.add_row("workers withdrawn", str(was.ended), str(would.ended))
    table.add_row("workers at most", str(was.peak_workers), str(would.peak_workers))
    table.add_row("worker time", duration(was.worker_seconds), duration(would.worker_seconds))
    if was.cost is not None and would.cost is not None:
        table.add_row("cost", f"{was.cost:.2f}", f"{would.cost:.2f}")
    table.add_row("bundles' waiting", duration(summary.waiting_seconds), "not known")
    paper.print(table)
    click.echo(
        f"{summary.ticks} ticks, {len(differing)} of them otherwise; {summary.failed_ticks} saw "
        "nothing"
    )
    if summary.other_rule_ticks:
        click.echo(
            f"{summary.other_rule_ticks} decisions came of another rule than this program's: it "
            "would decide them otherwise with the settings that were, too"
        )
    click.echo(UNKNOWN)
