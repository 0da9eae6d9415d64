"""`worker-manager simulate SCENARIO.toml`: what would happen, on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from manager.options import output_option

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
            output_option(),
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
            "waiting time: "
            + ", ".join(
                f"{name} {duration(seconds)}" for name, seconds in waited.items() if name != "most"
            )
            + f", {duration(waited['most'])} at most"
        )
    pools = dict(report.pools)
    if len(pools) > 1:
        pools["all"] = report.whole
    table = new_table("", *pools)
    for column in table.columns[1:]:
        column.justify = "right"
    for what, text in _FIGURES.items():
        table.add_row(what, *(text(pool) for pool in pools.values()))
    console().print(table)


_FIGURES: dict[str, Callable[[PoolReport], str]] = {
    "workers launched": lambda pool: str(pool.launched),
    "refused": lambda pool: str(pool.refused),
    "withdrawn while they waited": lambda pool: str(pool.withdrawn),
    "with a machine": lambda pool: str(pool.workers),
    "of these, ran nothing": lambda pool: f"{pool.ran_nothing} ({pool.ran_nothing_fraction:.1%})",
    "preempted": lambda pool: str(pool.preempted),
    "died": lambda pool: str(pool.died),
    "workers at most": lambda pool: str(pool.peak),
    "machine hours": lambda pool: f"{pool.worker_seconds / 3600:.1f}",
    "of these, idle": lambda pool: f"{pool.idle_fraction:.1%}",
    "cost": lambda pool: f"{pool.cost:.2f}",
}
