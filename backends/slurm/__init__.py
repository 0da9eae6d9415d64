"""Workers as jobs of a Slurm cluster, by its own commands; no root and no daemon needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from backends.base import Backend, Context


def options() -> list[click.Option]:
    """What a job of one worker asks of Slurm."""
    from backends.slurm.settings import click_options

    return click_options()


def lifetime_seconds(settings: Mapping[str, Any]) -> float | None:
    """Until a worker is asked to leave, before Slurm ends its job; that may come up to 60 s early
    (sbatch(1), `--signal`), of which a short job is spared some."""
    from backends.slurm.script import warning_seconds
    from backends.slurm.settings import time_limit_seconds

    time = settings.get("time", "0")
    limit = time_limit_seconds(time)
    return None if limit is None else limit - warning_seconds(time) - min(60, limit // 8)


def create(context: Context, settings: Mapping[str, Any]) -> Backend:
    """The backend, from the values of its options. Raises Invalid."""
    from backends.slurm.backend import Slurm
    from backends.slurm.settings import Options

    return Slurm(context, Options.from_settings(settings))
