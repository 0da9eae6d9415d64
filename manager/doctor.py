"""`worker-manager doctor BACKEND`: every check, a line each. What is checked is in checkup."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from backends import registry
from manager.arguments import in_order
from manager.options import pool_options

if TYPE_CHECKING:
    from manager.examination import Verdict

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_NOT_OURS = frozenset({"plan", "once", "dry_run", "restart_after_seconds", "temp_session"})


class Doctor(click.Group):
    """A command for each backend, with the backend's options on either side of its name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {
            name for option in pool_options() if not option.is_flag for name in option.opts
        }
        return super().parse_args(ctx, in_order(args, registry.names(), with_value))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in registry.names():
            return None
        from manager.pool_command import every_option

        entry = registry.find(cmd_name)

        options = [option for option in every_option(entry) if option.name not in _NOT_OURS]
        required = {option.name: option.opts[0] for option in options if option.required}
        for option in options:
            option.required = False  # what is missing is a finding

        def run(**settings: Any) -> int:
            missing = [text for name, text in required.items() if settings[name or ""] is None]
            return _examine(entry.name, settings, missing)

        return click.Command(
            cmd_name,
            params=[*options],
            callback=run,
            short_help=entry.summary,
            help=f"What stands in the way of the first launch of a {entry.name} pool.",
        )


def doctor_command() -> click.Command:
    return Doctor(
        "doctor",
        help=(
            "What stands in the way of a pool's first launch: checks, a line each, with what to "
            "do.\n\nTakes the options that the pool will be kept with. Exits with 1 when a check "
            "fails. Launches nothing and writes nothing; the server is asked for a worker's token."
        ),
        subcommand_metavar="BACKEND [OPTIONS]",
    )


def _examine(backend_name: str, settings: dict[str, Any], missing: Sequence[str]) -> int:
    """Raises UsageError for options that cannot be read at all."""
    from manager.checkup import examine
    from manager.examination import Examination, Status
    from manager.pool_command import worker_of

    as_json = settings.pop("output") == "json"
    found: list[tuple[str, Verdict]] = []
    given = Examination(
        backend_name, settings, worker_of(settings), os.environ, missing=tuple(missing)
    )
    try:
        for name, verdict in examine(given):
            found.append((name, verdict))
            if not as_json:
                _show(name, verdict)
    finally:
        given.close()
    failed = sum(verdict.status is Status.FAIL for _, verdict in found)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "check": name,
                        "status": str(verdict.status),
                        "sentence": verdict.sentence,
                        "remedy": verdict.remedy,
                    }
                    for name, verdict in found
                ]
            )
        )
    else:
        warned = sum(verdict.status is Status.WARN for _, verdict in found)
        click.echo(f"{len(found)} checks: {failed} failed, {warned} warned")
    return 1 if failed else 0


def _show(name: str, verdict: Verdict) -> None:
    status = click.style(f"{verdict.status:4}", fg=STYLES[verdict.status])
    remedy = f": {verdict.remedy}" if verdict.remedy else ""
    sentence = " ".join(f"{verdict.sentence}{remedy}".split())
    click.echo(f"{status}  {name:20}  {sentence}")
