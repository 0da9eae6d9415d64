"""`worker-manager run pools.toml`: keeps the pools of a file, or says what it would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from manager.log_format import complain, write_json
from manager.options import connection_options, look_options, set_options

if TYPE_CHECKING:
    from manager.pool import Pool
    from manager.pools_file.reading import BadPoolsFile, PoolsFile


def run_command() -> click.Command:
    return _command(
        "run",
        "Keep the pools of a file, the best first.\n\nAn option that is given here comes before "
        "what the file says.",
        [*look_options()],
    )


def plan_command() -> click.Command:
    return _command(
        "plan",
        "What the next look at the pools of a file would do. Changes nothing: run --plan.",
        [option for option in look_options() if option.name == "output"],
    )


def _command(name: str, said: str, looks: list[click.Option]) -> click.Command:
    options = [*connection_options(), *set_options(), *looks]
    options = [option for option in options if option.name != "temp_session"]

    def run(file: str, **settings: Any) -> int:
        context = click.get_current_context()
        given = said_of(context, [*connection_options(), *set_options()])
        settings.setdefault("plan", True)
        return _run(Path(file), settings, given)

    return click.Command(
        name,
        params=[click.Argument(["file"], metavar="POOLS.TOML"), *options],
        callback=run,
        help=said,
    )


def said_of(context: click.Context, options: Iterable[click.Option]) -> dict[str, Any]:
    """By key: the options that the command line gives."""
    from manager.pools_file.model import key_of

    return {
        key_of(option): context.params[option.name or ""]
        for option in options
        if option.name != "verbose"
        and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    }


def complain_of(error: BadPoolsFile) -> int:
    """A line for each problem; returns the exit code."""
    for problem in error.problems:
        complain(problem)
    return 2


def _run(path: Path, settings: Mapping[str, Any], said: Mapping[str, Any]) -> int:
    from manager.pools_file.reading import BadPoolsFile, load

    if settings["log_format"] == "json":
        write_json()
    try:
        file = load(path, said)
        pools = pools_of(file)
    except BadPoolsFile as error:
        return complain_of(error)
    together = file.pools[0].settings
    if together["log_format"] == "json":
        write_json()
    if settings["plan"]:
        from manager.commands.plan import plan

        return plan(
            pools,
            as_json=settings["output"] == "json",
            budget=file.budget.amounts,
            soft_fraction=file.budget.soft_fraction,
        )
    if settings["dry_run"]:
        return _dry_run(pools)
    if settings["output"] != "text":
        raise click.UsageError("--output json goes with --plan")
    return _keep(file, said, pools, {**together, "once": settings["once"]})


def _keep(
    file: PoolsFile, said: Mapping[str, Any], pools: list[Pool], settings: Mapping[str, Any]
) -> int:
    from manager.alarm import Alarm
    from manager.loop import Manager
    from manager.pools_file.watched import WatchedFile
    from manager.reload import Reload, set_budget
    from manager.service import Service, keep

    alarm = Alarm()
    alarm.listen(reloads=True)

    def prepare(service: Service, manager: Manager) -> None:
        set_budget(manager, file)
        watched = WatchedFile(file, said)
        manager.before_tick = Reload(watched, alarm, service, manager, pools_of)

    if settings["once"]:  # nobody would look at metrics, and there is no exit to end workers at
        settings = {**settings, "metrics_port": None, "terminate_on_exit": False}
    return keep(pools, settings, alarm, prepare)


def _dry_run(pools: Iterable[Pool]) -> int:
    from manager.commands.plan import dry_run

    for pool in pools:
        print(f"{pool.name}:")
        dry_run(pool)
    return 0


def pools_of(file: PoolsFile) -> list[Pool]:
    """The pools, as the commands of their backends make them.

    Raises BadPoolsFile for what their backends do not take, UsageError and NotAuthenticated.
    """
    from backends.base import BackendError, Invalid
    from manager.money import PoolSet
    from manager.pool import make_pool
    from manager.pools_file.reading import BadPoolsFile

    together = PoolSet(tuple(table.name for table in file.pools), file.budget.amounts).to_settings()
    pools = []
    problems: list[str] = []
    for table in file.pools:
        pool = make_pool(table.backend_name, {**table.settings, **together})
        pools.append(pool)
        try:
            pool.backend()
        except Invalid as error:
            problems += file.blamed(table, str(error)).problems
        except BackendError:
            continue  # it may pass; whoever keeps the pool says so
    if problems:
        raise BadPoolsFile(problems)
    return pools
