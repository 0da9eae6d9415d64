"""`worker-manager doctor BACKEND|FILE`: every check, a line each. What is checked is in checkup."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends import registry
from manager.commands.by_backend import ByBackend
from manager.options import pool_options

if TYPE_CHECKING:
    from manager.examination import Verdict

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_NOT_OURS = frozenset({"plan", "once", "dry_run", "restart_after_seconds", "temp_session"})


def _command_of(entry: registry.Entry) -> click.Command:
    from manager.commands.pool import every_option

    options = [option for option in every_option(entry) if option.name not in _NOT_OURS]
    required = {option.name: option.opts[0] for option in options if option.required}
    for option in options:
        option.required = False  # what is missing is a finding

    def run(**settings: Any) -> int:
        missing = [text for name, text in required.items() if settings[name or ""] is None]
        as_json = settings["output"] == "json"
        found = _examine(entry.name, settings, missing, as_json=as_json)
        return _conclude(found, as_json=as_json)

    return click.Command(
        entry.name,
        params=[*options],
        callback=run,
        short_help=entry.summary,
        help=f"What stands in the way of the first launch of a {entry.name} pool.",
    )


class Doctor(ByBackend):
    """… and one for each pools file, by its path."""

    also = ", or a file whose name ends in .toml"

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _file_command(cmd_name)


def _file_command(file: str) -> click.Command | None:
    if not file.endswith(".toml"):
        return None

    def run(output: str, verbose: bool) -> int:
        from manager.commands.run import complain_of
        from manager.pools_file.reading import BadPoolsFile, load

        try:
            tables = load(Path(file)).pools
        except BadPoolsFile as error:
            return complain_of(error)
        as_json = output == "json"
        found = []
        for table in tables:
            if not as_json:
                click.echo(f"{table.name}:")
            found += _examine(table.backend_name, table.settings, (), as_json=as_json)
        return _conclude(found, as_json=as_json)

    shown = [option for option in pool_options() if option.name in ("output", "verbose")]
    return click.Command(file, params=[*shown], callback=run)


def doctor_command() -> click.Command:
    return Doctor(
        "doctor",
        _command_of,
        help=(
            "What stands in the way of a pool's first launch: checks, a line each, with what to "
            "do.\n\nTakes the options that the pool will be kept with, or a file: worker-manager "
            "doctor pools.toml. Exits with 1 when a check fails. Launches nothing and writes "
            "nothing; the server is asked for a worker's token."
        ),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What one check of one pool said."""

    pool: str
    check: str
    verdict: Verdict

    def document(self) -> dict[str, str]:
        verdict = self.verdict
        return {
            "pool": self.pool,
            "check": self.check,
            "status": str(verdict.status),
            "sentence": verdict.sentence,
            "remedy": verdict.remedy,
        }


def _examine(
    backend_name: str, settings: Mapping[str, Any], missing: Sequence[str], *, as_json: bool
) -> list[Found]:
    """One pool, told as it goes. Raises UsageError for options that cannot be read at all."""
    from manager.checkup import examine
    from manager.examination import Examination
    from manager.pool import worker_of

    found: list[Found] = []
    given = Examination(
        backend_name, settings, worker_of(settings), os.environ, missing=tuple(missing)
    )
    try:
        for name, verdict in examine(given):
            found.append(Found(settings["pool"] or "", name, verdict))
            if not as_json:
                _show(name, verdict)
    finally:
        given.close()
    return found


def _conclude(found: Sequence[Found], *, as_json: bool) -> int:
    from manager.examination import Status

    failed = sum(each.verdict.status is Status.FAIL for each in found)
    if as_json:
        print(json.dumps([each.document() for each in found]))
    else:
        warned = sum(each.verdict.status is Status.WARN for each in found)
        click.echo(f"{len(found)} checks: {failed} failed, {warned} warned")
    return 1 if failed else 0


def _show(name: str, verdict: Verdict) -> None:
    status = click.style(f"{verdict.status:4}", fg=STYLES[verdict.status])
    remedy = f": {verdict.remedy}" if verdict.remedy else ""
    sentence = " ".join(f"{verdict.sentence}{remedy}".split())
    click.echo(f"{status}  {name:20}  {sentence}")
