"""`worker-manager simulate SCENARIO.toml`: what would happen, on a virtual clock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from manager.simulation.report import PoolReport, Report


def simulate_command() -> click.Command:
    return click.Command(
        "simulate",
        params=[
            click.Argument(["scenario"], metavar="SCENARIO.toml", type=click.Path(dir_okay=False)),
            click.Option(
                ["--plot"], metavar="FILE.svg", help="Draw queue, workers and cost over time."
            ),
            click.Option(
                ["--output", "-o"],
                type=click.Choice(["text", "json"]),
                default="text",
                show_default=True,
            ),
            click.Option(["--verbose"], is_flag=True, help="Show where an error came from."),
        ],
        callback=_simulate,
        help=(
            "What would happen to bundles, workers and money.\n\nSCENARIO.toml says which bundles "
            "come, which pools there are and how their services behave (docs/simulate.md). What "
            "is launched is decided by the manager's own rules. Nobody is asked anything."
        ),
    )


def _simulate(scenario: str, plot: str | None, output: str, verbose: bool) -> int:
    """Raises UsageError for a scenario that cannot be used, and OSError."""
    from pathlib import Path

    from manager.simulation.scenario import load
    from manager.simulation.world import simulate

    if plot is not None and not plot.endswith(".svg"):
        raise click.UsageError(f"--plot {plot}: it is drawn as SVG: give a name that ends in .svg")
    report = simulate(load(Path(scenario)))
    if plot is not None:
        from manager.simulation.drawing import draw

        Path(plot).write_text(draw(report), encoding="utf-8")
    if output == "json":
        print(json.dumps(report.to_document()))
    else:
        _print(report)
    return 0


def _print(report: Report) -> None:
    from bundles.cli.output import console, duration, new_table

    if report.description:
        click.echo(report.description)
    click.echo(
        f"{report.came} bundles in {duration(report.seconds)}: {report.done} done"
        + "".join(
            f", {number} {what}"
            for number, what in (
                (report.failed, "failed"),
                (report.taken_back, "killed while they waited"),
                (report.left, "left"),
            )
            if number
        )
        + (f"; {report.restarts} started again after their worker was lost"
           if report.restarts else "")
    )  # fmt: skip
    waited = report.waiting_seconds
    if waited:
        click.echo(
            f"they waited {duration(waited['p50'])} (half of them at most), "
            f"{duration(waited['p90'])} (90 %), {duration(waited['p99'])} (99 %), "
            f"{duration(waited['most'])} (all)"
        )
    table = new_table(
        "POOL", "LAUNCHED", "REFUSED", "WITHDRAWN", "MACHINES", "RAN NOTHING", "IDLE", "LOST",
        "PEAK", "TIME", "COST",
    )  # fmt: skip
    for name, pool in report.pools.items():
        table.add_row(*_row(name, pool))
    if len(report.pools) > 1:
        table.add_row(*_row("all", report.whole))
    console().print(table)


def _row(name: str, pool: PoolReport) -> list[str]:
    return [
        name,
        str(pool.launched),
        str(pool.refused),
        str(pool.withdrawn),
        str(pool.workers),
        f"{pool.ran_nothing} ({pool.ran_nothing_fraction:.1%})",
        f"{pool.idle_fraction:.1%}",
        str(pool.preempted + pool.died),
        str(pool.peak),
        f"{pool.worker_seconds / 3600:.1f} h",
        f"{pool.cost:.2f}",
    ]
