"""`worker-manager status`: what each pool of this home has, and what was decided last, and why."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from manager.options import connection_options, output_option

if TYPE_CHECKING:
    from manager.installation import Installation

RECENT_ENDS = 5


def status_command() -> click.Command:
    return click.Command(
        "status",
        params=[
            *connection_options(),
            click.Option(["--pool"], metavar="NAME", help="Only this pool."),
            output_option(),
        ],
        callback=_status,
        help="What the pools of this home have, and what was decided last.",
    )


def _status(home: str | None, pool: str | None, output: str, verbose: bool) -> int:
    from bundles.home import Home
    from manager.installation import Installation

    pools = pools_document(Installation(Home.find(home)))
    if pool is not None:
        pools = [document for document in pools if document["pool"] == pool]
        if not pools:
            raise click.UsageError(f"no manager of this home ever kept a pool {pool!r}")
    if output == "json":
        print(json.dumps({"pools": pools}))
    else:
        _print(pools)
    return 0


def pools_document(installation: Installation) -> list[dict[str, Any]]:
    """Every pool of a home, as manager.overview has it, and its jobs (living, and the last that
    ended) as its service has them at this moment.

    ``jobs`` is None and ``error`` says why when it could not be asked: unknown is not zero.
    """
    from backends.base import BackendError
    from manager.overview import Overview

    documents = []
    with Overview(installation) as overview:
        for pool in overview.pools():
            jobs: list[dict[str, Any]] | None = None
            error = ""
            try:
                jobs = [_job(job) for job in installation.backend(pool, os.environ).list_jobs()]
            except BackendError as failure:
                error = str(failure)
            document = overview.document(pool, time.time())
            documents.append(document | {"jobs": jobs, "error": error})
    return documents


def _job(job: Any) -> dict[str, Any]:
    return {
        "id": job.id,
        "worker": job.worker_id,
        "state": str(job.state),
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "exit_code": job.exit_code,
        "cause": job.cause and str(job.cause),
        "why": job.why,
    }


def _print(pools: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from bundles.cli.output import console as new_console

    console = new_console()  # what services say may look like rich's markup
    if not pools:
        console.print("No pool yet: start one with `worker-manager local-process`.")
    for pool in pools:
        manager = f"process {pool['manager']}" if pool["manager"] else "no manager runs"
        console.print(Text(pool["pool"], style="bold"), f"for {pool['server']}: {manager}")
        if pool["error"]:
            console.print(Text(f"  its jobs are unknown: {pool['error']}", style="red"))
        for problem in pool["file_problems"]:
            console.print(Text(f"  kept as before its file changed: {problem}", style="red"))
        if pool["until"] is not None:
            left = _duration(pool["until"] - time.time())
            words = f"  {pool['state']} for {left} more: {pool['why']}"
            console.print(Text(words, style="yellow"))
        _print_last(console, pool["last"])
        living, ended = _split(pool["jobs"] or [])
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("  WORKER", "STATE", "SINCE", "WHY"):
            table.add_column(column, overflow="fold")
        for job in [*living, *ended]:
            table.add_row(
                f"  {job['worker']}", job["state"], _age(job["ended"] or job["created"]), _left(job)
            )
        if living or ended:
            console.print(table)
        console.print(
            f"  {len(living)} of {pool['min_workers']} to {pool['max_workers']} workers, "
            f"{pool['launched']} launched in all, {pool['launched_lately']} in the last hour"
        )
        if pool["failures_lately"]:
            causes = [f"{number} {cause}" for cause, number in pool["failures_lately"].items()]
            console.print(Text(f"  failed in the last hour: {', '.join(causes)}", style="red"))
        if pool["cost"]:
            console.print(f"  {_cost(pool['cost'])}")


def _print_last(console: Any, entry: dict[str, Any] | None) -> None:
    if entry is None:
        console.print("  nothing decided yet")
        return
    when = _age(entry["time"])
    if entry.get("error"):
        console.print(f"  {when} ago: could not look: {entry['error']}")
        return
    snapshot, decision = entry["snapshot"], entry["decision"]
    console.print(
        f"  {when} ago: {snapshot['staged']} staged, {snapshot['pending']} pending, "
        f"{snapshot['active']} active: launch {decision['launch']}"
    )
    for reason in decision["reasons"]:
        mark = "yes" if reason["held"] else "no "
        console.print(f"    {mark} {reason['code']}: {reason['sentence']}")


def _split(jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The living jobs, and the last that ended."""
    living = [job for job in jobs if job["state"] != "ended"]
    ended = sorted((j for j in jobs if j["state"] == "ended"), key=lambda j: -(j["ended"] or 0))
    return living, ended[:RECENT_ENDS]


def _left(job: dict[str, Any]) -> str:
    """Why one ended, or what a pending one waits for."""
    if job["state"] != "ended":
        return str(job["why"])
    said = [job["cause"], job["why"]]
    if job["exit_code"] is not None:
        said.append(f"exit code {job['exit_code']}")
    return ", ".join(word for word in said if word)


def _cost(cost: dict[str, Any]) -> str:
    words = []
    for period, spent in cost["spent"].items():
        budget = cost["budget"][period]
        words.append(f"{spent:.2f}{f' of {budget:.2f}' if budget else ''} this {period}")
    return f"spent {', '.join(words)}; now {cost['per_hour']:.2f} an hour"


def _age(when: float | None) -> str:
    return _duration(time.time() - when) if when else "?"


def _duration(seconds: float) -> str:
    from bundles.sizes import format_duration

    return format_duration(max(0.0, seconds))
