"""What a job of one worker asks of Slurm: the options, named as cl-worker-manager names them.

Not for what is done with them: script.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from backends.base import Invalid, JobResources

DEFAULT_JOB_NAME = "codalab-slurm-worker"
DEFAULT_TIME = "10-0"

_TIME_PATTERN = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?P<m>\d+)|(?P<ms_m>\d+):(?P<ms_s>\d+)|(?P<h>\d+):(?P<hm>\d+):(?P<hs>\d+))"
)
_ENDLESS = frozenset({"unlimited", "infinite", "-1", "0"})


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of Slurm; None where it is left to the cluster.

    ``time``: a time limit as Slurm writes it. ``work_directory``: where launches are kept, on a
    file system that every node sees; None is the pool's own place in the home.
    """

    resources: JobResources
    job_name: str = DEFAULT_JOB_NAME
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    time: str = DEFAULT_TIME
    gpu_type: str | None = None
    work_directory: Path | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Options:
        """Raises Invalid when jobs should be another user's."""
        user = settings.get("user") or None
        if user and user != getpass.getuser():
            raise Invalid(
                f"--user {user}: jobs are always of the user who runs this command "
                f"({getpass.getuser()}): run it as {user}"
            )
        directory = settings.get("slurm_work_dir")
        return cls(
            resources=JobResources(
                settings["cpus"], settings["gpus"], settings["memory_mb"] * 1024**2
            ),
            job_name=settings["job_name"],
            partition=settings.get("partition") or None,
            account=settings.get("account") or None,
            qos=settings.get("qos") or None,
            constraint=settings.get("constraint") or None,
            nodelist=settings.get("nodelist") or None,
            exclude=settings.get("exclude") or None,
            time=settings["time"],
            gpu_type=settings.get("gpu_type") or None,
            work_directory=Path(directory) if directory else None,
        )


def time_limit_seconds(text: str) -> float | None:
    """The seconds of a time limit as sbatch reads it; None: there is none. Raises ValueError.

    sbatch(1), `--time`: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
    days-hours:minutes and days-hours:minutes:seconds; 0 is no limit.
    """
    if text.lower() in _ENDLESS:
        return None
    match = _TIME_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a time: write 90 (minutes), 12:00:00 or 2-12 (days-hours)"
        )
    found = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = found["days"] * 24 + found["hours"] + found["h"]
    minutes = hours * 60 + found["minutes"] + found["m"] + found["ms_m"] + found["hm"]
    return float(minutes * 60 + found["seconds"] + found["ms_s"] + found["hs"])


def click_options() -> list[click.Option]:
    return [
        _option("--cpus", type=click.IntRange(min=1), default=1, help="Cpus of one worker."),
        _option("--gpus", type=click.IntRange(min=0), default=0, help="Gpus of one worker."),
        _option("--gpu-type", metavar="TYPE", help="With --gpus: of this type only."),
        _option(
            "--memory-mb",
            type=click.IntRange(min=1),
            default=2048,
            help="Memory of one worker, in MiB.",
        ),
        _option(
            "--time",
            default=DEFAULT_TIME,
            metavar="TIME",
            callback=_check_time,
            help="Time limit of a job, as sbatch reads it. Workers leave in good order before it.",
        ),
        _option("--partition", help="Where jobs queue.  [default: the cluster's default]"),
        _option("--account", help="Who is charged.  [default: the user's default]"),
        _option("--qos", help="Quality of service.  [default: the user's default]"),
        _option("--constraint", help="Features that nodes must have."),
        _option("--nodelist", metavar="NODES", help="Run on these nodes."),
        _option("--exclude", metavar="NODES", help="Never run on these nodes."),
        _option("--job-name", default=DEFAULT_JOB_NAME, help="Name of the jobs in squeue."),
        _option("--user", help="Whose jobs they are: can only be yourself."),
        _option(
            "--slurm-work-dir",
            metavar="DIRECTORY",
            type=click.Path(file_okay=False, resolve_path=True),
            help="Where scripts and logs are kept: every node must see it.  [default: in --home]",
        ),
        _option(
            "--exit-after-num-failed",
            type=click.IntRange(min=0),
            metavar="N",
            help="Give up when more than N workers have failed.",
        ),
    ]


def _option(*names: str, **attributes: Any) -> click.Option:
    if attributes.get("default") is not None:
        attributes.setdefault("show_default", True)
    return click.Option(list(names), **attributes)


def _check_time(context: click.Context, option: click.Parameter, value: str) -> str:
    try:
        time_limit_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from error
    return value
