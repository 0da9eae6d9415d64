"""`worker-manager <backend>`: keeps one pool of workers, or says what it would do."""

from __future__ import annotations

from typing import Any

import click

from backends import registry
from manager.log_format import write_json
from manager.options import pool_options


def pool_command(backend_name: str) -> click.Command:
    """The command of one backend, with the common options and its own."""
    entry = registry.find(backend_name)

    def run(**settings: Any) -> int:
        return _run(entry.name, settings)

    return click.Command(
        backend_name,
        params=[*every_option(entry)],
        callback=run,
        help=f"{entry.summary}\n\nOptions may stand on either side of the backend's name.",
        short_help=entry.summary,
    )


def every_option(entry: registry.Entry) -> list[click.Option]:
    """The options of a backend, and those of every pool. Raises BrokenBackend."""
    own = registry.load(entry.name).options()
    common = pool_options()
    taken = {option.name for option in common} & {option.name for option in own}
    if taken:
        names = ", ".join(sorted(name for name in taken if name))
        raise registry.BrokenBackend(
            f"the backend {entry.name} has options that every pool has already: {names}"
        )

    return [*own, *common]


def _run(backend_name: str, settings: dict[str, Any]) -> int:
    from manager.pool import make_pool

    if settings["log_format"] == "json":
        write_json()
    pool = make_pool(backend_name, settings)
    if settings["plan"]:
        from manager.commands.plan import plan

        return plan([pool], as_json=settings["output"] == "json")
    if settings["dry_run"]:
        from manager.commands.plan import dry_run

        return dry_run(pool)
    if settings["output"] != "text":
        raise click.UsageError("--output json goes with --plan")
    from manager.alarm import Alarm
    from manager.service import keep

    alarm = Alarm()
    alarm.listen()
    return keep([pool], settings, alarm)
