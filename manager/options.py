"""The options of every pool, under the names that cl-worker-manager gave them, and ours."""

from __future__ import annotations

import re
from typing import Any

import click

from backends.base import POOL_PATTERN
from bundles.home import HOME_VARIABLE, SERVER_VARIABLE


class Word(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A text of a given form. ``called``: what it is not, when it has another."""

    name = "text"

    def __init__(self, pattern: re.Pattern[str], called: str, remedy: str) -> None:
        self.pattern = pattern
        self._called = called
        self._remedy = remedy

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self.pattern.fullmatch(value):
            self.fail(f"{value!r} is not {self._called}: {self._remedy}", param, ctx)
        return str(value)


TAG = Word(re.compile(r"[A-Za-z0-9-]+"), "a tag", "write letters, digits and hyphens")
ADDRESS = Word(re.compile(r"https?://\S+"), "an address", "write http://… or https://…")
POOL_NAME = Word(POOL_PATTERN, "a name for a pool", "write up to 48 letters, digits, - and _")


def connection_options() -> list[click.Option]:
    """Where things are: for every command."""
    return [
        _option(
            "--home",
            metavar="DIRECTORY",
            envvar=HOME_VARIABLE,
            show_envvar=True,
            help="Where the ledger, jobs and journal are.",
        ),
        _option("--verbose", is_flag=True, help="Say more; show where an error came from."),
    ]


def pool_options() -> list[click.Option]:
    """Everything that a backend command takes beside the backend's own options."""
    return [
        *connection_options(),
        *set_options(),
        *own_options(),
        *look_options(),
        *worker_options(),
    ]


def set_options() -> list[click.Option]:
    """What concerns all the pools that one manager keeps; a pools file says it once."""
    return [
        _option(
            "--server",
            metavar="URL",
            type=ADDRESS,
            envvar=SERVER_VARIABLE,
            show_envvar=True,
            help="The server of bundles.",
        ),
        _option("--password-file", metavar="FILE", help="User and password for it, mode 0600."),
        _option(
            "--search",
            multiple=True,
            metavar="WORDS…",
            help="Only bundles that these keywords select, too.",
        ),
        _option(
            "--sleep-time",
            type=click.FloatRange(min=0.1),
            default=5,
            help="Seconds between looks at what cannot tell by itself.",
        ),
        _option(
            "--restart-after-seconds",
            type=click.FloatRange(min=1),
            default=None,
            help="Start this command anew after so many seconds.",
        ),
        _option(
            "--terminate-on-exit",
            is_flag=True,
            help="When told to end, end this pool's workers, too.",
        ),
        _option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help="Serve /metrics, /healthz and /readyz there; 0: on a free one, see the log.",
        ),
        _option(
            "--metrics-host",
            metavar="ADDRESS",
            default="127.0.0.1",
            help="Address of this machine that --metrics-port is of.",
        ),
        _option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            help="How the log is written.",
        ),
    ]


def own_options() -> list[click.Option]:
    """What concerns one pool, whatever its backend."""
    return [
        _option("--pool", metavar="NAME", type=POOL_NAME, help="Name of this pool of jobs."),
        _option(
            "--min-workers",
            "--min",
            type=click.IntRange(min=0),
            default=1,
            help="Never fewer workers than this.",
        ),
        _option(
            "--max-workers",
            "--max",
            type=click.IntRange(min=0),
            default=10,
            help="Never more workers than this.",
        ),
        _option(
            "--no-prefilter",
            is_flag=True,
            help="Also count bundles that no worker of this pool can run.",
        ),
        _option(
            "--min-seconds-between-workers",
            type=click.FloatRange(min=0),
            default=0,
            help="Above 0: one launch at most in so many seconds, except below the minimum.",
        ),
        _option(
            "--max-launches-per-minute",
            type=click.IntRange(min=1),
            help="No more launches in any minute, except below the minimum.",
        ),
        _option(
            "--drain-grace-seconds",
            type=click.FloatRange(min=0),
            default=3600,
            help="A worker that is to take no more bundles has so long for those that it has.",
        ),
        _option(
            "--registration-seconds",
            type=click.FloatRange(min=1),
            default=600,
            help="A worker that the server has not heard of so long after its start is ended.",
        ),
        _option(
            "--price-per-hour",
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="What one worker costs an hour, in the currency of the budgets.",
        ),
        _option(
            "--budget-per-hour",
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="No launch that would make this pool cost more in an hour.",
        ),
        _option(
            "--budget-per-day",
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="No launch that would make this pool cost more in a day.",
        ),
        _option(
            "--budget-per-month",
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="No launch that would make this pool cost more in a month.",
        ),
        _option(
            "--patience-seconds",
            type=click.FloatRange(min=0),
            help="In a set: work of workers pending longer than this goes to the next pool.",
        ),
    ]


def look_options() -> list[click.Option]:
    """What this start of the command is for: said by nobody but who starts it."""
    return [
        _option("--once", is_flag=True, help="Look, act, and end."),
        _option("--plan", is_flag=True, help="Say what the next look would do, and do nothing."),
        _option(
            "--dry-run",
            is_flag=True,
            help="Print what would be submitted for one worker, and end.",
        ),
        output_option("How --plan is printed."),
        _option(
            "--temp-session",
            is_flag=True,
            help="Taken for old command lines; no session is ever kept on disk.",
        ),
    ]


def worker_options() -> list[click.Option]:
    """What is handed on to every worker."""
    return [
        _option("--worker-executable", metavar="COMMAND", help="The worker, instead of our own."),
        _option("--worker-tag", type=TAG, help="Run bundles queued for this tag, too."),
        _option(
            "--worker-tag-exclusive", is_flag=True, help="Run bundles queued for --worker-tag only."
        ),
        _option("--worker-group", help="Run bundles of this group's members, too."),
        _option(
            "--worker-idle-seconds",
            type=click.IntRange(min=0),
            default=600,
            help="A worker leaves when idle this long.",
        ),
        _option(
            "--worker-exit-after-num-runs",
            type=click.IntRange(min=0),
            help="A worker leaves after so many runs.",
        ),
        _option("--worker-work-dir-prefix", metavar="DIRECTORY", help="Where workers keep files."),
        _option(
            "--worker-max-work-dir-size",
            metavar="SIZE",
            callback=_check_size,
            help="How much workers keep there: 10g.",
        ),
        _option(
            "--worker-delete-work-dir-on-exit",
            is_flag=True,
            help="Workers leave nothing of their files.",
        ),
        _option(
            "--worker-download-dependencies-max-retries",
            type=click.IntRange(min=0),
            default=3,
            help="Tries again of a download that failed.",
        ),
        _option(
            "--worker-checkin-frequency-seconds",
            type=click.IntRange(min=1),
            help="Seconds between check-ins where the server cannot hold them.",
        ),
        _option(
            "--worker-shared-memory-size-gb",
            type=click.IntRange(min=1),
            help="Shared memory of a bundle's container.",
        ),
        _option(
            "--worker-pass-down-termination",
            is_flag=True,
            help="A worker that is ended gives its bundles back.",
        ),
        _option("--worker-exit-on-exception", is_flag=True, help="Leave at unforeseen errors."),
        _option("--worker-preemptible", is_flag=True, help="Its machine may go at any time."),
    ]


def output_option(help: str | None = None) -> click.Option:
    """For people or for programs: of every command that shows something."""
    return _option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help=help)


def check_together(settings: dict[str, Any]) -> None:
    """What no option can check alone. Raises click.UsageError."""
    low, high = settings["min_workers"], settings["max_workers"]
    if low > high:
        raise click.UsageError(
            f"--min-workers {low} is more than --max-workers {high}: lower the one or raise the "
            "other"
        )
    is_once = settings.get("once")  # `doctor` has no such option
    if is_once and settings["metrics_port"] is not None:
        raise click.UsageError("--metrics-port serves nobody with --once: leave one of them out")
    if is_once and settings["terminate_on_exit"]:
        raise click.UsageError("--terminate-on-exit goes without --once, which leaves at once")
    if settings["worker_tag_exclusive"] and not settings["worker_tag"]:
        raise click.UsageError("--worker-tag-exclusive needs a --worker-tag to be exclusive to")


def _option(*names: str, **attributes: Any) -> click.Option:
    if attributes.get("default") is not None:
        attributes.setdefault("show_default", True)
    return click.Option(list(names), **attributes)


def _check_size(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    from bundles.errors import UsageError
    from bundles.sizes import parse_size

    if value is not None:
        try:
            parse_size(value)
        except UsageError as error:
            raise click.BadParameter(str(error), context, option) from error
    return value
