"""What is submitted: the words for sbatch, and the script that each element runs. Pure.

The options are words of the command line, not `#SBATCH` lines: they need no quoting of Slurm's own
and no variable of the submitter's environment outranks them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from backends.base import LaunchRequest
from backends.shell import keyed_command
from backends.slurm.jobs import Mark
from backends.slurm.settings import Options, time_limit_seconds

SCRIPT_NAME = "script"
SECRETS_NAME = "secrets"

WARNING_SECONDS = 120
"""Workers are asked to leave so long before their time limit, at least."""

UNUSABLE = 5
"""What a job exits with when its node does not see the launch's directory (bundles.exits)."""

_SCRIPT = r"""#!/bin/sh
# Runs one worker of the pool {pool}. Submitted by the words in the file `command` beside this one.
launch={launch}
index=${{SLURM_ARRAY_TASK_ID:?}}
key="{pool}-$(({first} + index))-{random}"
leave_word() {{
    printf '%s\n' "$2" > "$launch/$index.$1.new" &&
        mv -f "$launch/$index.$1.new" "$launch/$index.$1"
}}
worker=
warned=
forward() {{
    ending=yes
    [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null
}}
# Comes before the time limit, to this script alone.
trap 'warned=yes; forward' USR1
# Comes when the job is cancelled, {comes_to}.
trap '{on_term}' TERM
rm -f "$launch/$index.exit"
if ! leave_word start "${{SLURM_ARRAY_JOB_ID:?}} $(hostname)"{secrets_readable}; then
    echo "$launch cannot be used on $(hostname): see --slurm-work-dir" >&2
    exit {unusable}
fi
{environment}
code=143
if [ -z "${{ending:-}}" ]; then
    {{ {command}; }} &
    worker=$!
    # The signal may have come before the worker's number was known.
    [ -z "${{ending:-}}" ] || forward
    while :; do
        wait "$worker"
        code=$?
        # A signal ends `wait`, too: the worker's own end is told by its number being gone.
        [ "$code" -gt 128 ] && kill -0 "$worker" 2>/dev/null || break
    done
fi
{clean}
leave_word exit "$code ${{warned:-no}}"
set -- "$launch"/*.exit
[ "$#" -lt {number} ] || rm -f "$launch/{secrets}"
exit "$code"
"""


def submission(launch: Path, mark: Mark, request: LaunchRequest, options: Options) -> list[str]:
    """The words of sbatch, for an array of ``mark.number`` elements."""
    resources = request.resources
    words = [
        "sbatch",
        "--parsable",
        f"--job-name={options.job_name}",
        f"--array=0-{mark.number - 1}",
        f"--comment={mark}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        f"--mem={resources.memory_bytes // 1024**2}M",
        f"--time={options.time}",
        f"--signal=B:USR1@{warning_seconds(options.time)}",
        # A second life under one key could meet the first one on a node that was only cut off.
        "--no-requeue",
        # One variable that Slurm sets anyway: nothing of the submitter's environment travels, and
        # no login environment is made on the node, either.
        "--export=SLURM_CONF",
        "--open-mode=append",
        f"--output={_escaped(launch)}/%a.log",
        f"--chdir={launch}",
    ]
    if resources.gpus:
        kind = f"{options.gpu_type}:" if options.gpu_type else ""
        words.append(f"--gres=gpu:{kind}{resources.gpus}")
    for name in ("partition", "account", "qos", "constraint", "nodelist", "exclude"):
        value = getattr(options, name)
        if value is not None:
            words.append(f"--{name}={value}")
    return [*words, str(launch / SCRIPT_NAME)]


def script(
    launch: Path,
    mark: Mark,
    request: LaunchRequest,
    *,
    removes: str | None,
    signals_all: bool,
) -> str:
    """The text that every element runs.

    ``removes``: the directory of a worker's files, relative to the launches' own, with the key in
    place of `{}`; removed when the worker left in good order. None: they are not ours to remove.
    ``signals_all``: Slurm sends a cancelled job's SIGTERM to every process and not to this script
    alone. A worker takes a second SIGTERM for impatience and leaves at once, so it must not get
    both.
    """
    lines = [
        f"{name}={shlex.quote(value)}; export {name}"
        for name, value in sorted(request.environment.items())
    ]
    if request.secrets:
        lines.append(f'set -a; . "$launch/{SECRETS_NAME}"; set +a')
    clean = ""
    if removes is not None:
        clean = f'[ "$code" -ne 0 ] || rm -rf "$launch/../{removes.format("$key")}"'
    return _SCRIPT.format(
        pool=mark.pool,
        launch=shlex.quote(str(launch)),
        first=mark.first.sequence,
        random=mark.first.random,
        comes_to="to every process of it" if signals_all else "to this script alone",
        on_term="ending=yes" if signals_all else "forward",
        secrets_readable=f' || [ ! -r "$launch/{SECRETS_NAME}" ]' if request.secrets else "",
        environment="\n".join(lines),
        command=keyed_command(
            request.argv,
            mark.first.sequence,
            mark.first.random,
            mark.pool,
            "SLURM_ARRAY_TASK_ID",
        ),
        clean=clean,
        number=mark.number,
        secrets=SECRETS_NAME,
        unusable=UNUSABLE,
    )


def secrets_text(request: LaunchRequest) -> str:
    """The file that the script reads its secrets from; only its owner may."""
    return "".join(
        f"{name}={shlex.quote(value)}\n" for name, value in sorted(request.secrets.items())
    )


def preview(words: Sequence[str], text: str) -> str:
    """What would be submitted, for a person."""
    return f"{shlex.join(words)}\n\n{text}"


def warning_seconds(time: str) -> int:
    """How long before the time limit a worker is asked to leave; a short job keeps most of its
    time (Slurm sends it up to a minute early)."""
    limit = time_limit_seconds(time)
    return WARNING_SECONDS if limit is None else int(min(WARNING_SECONDS, max(1, limit // 4)))


def _escaped(path: Path) -> str:
    """A path in which sbatch replaces nothing."""
    return str(path).replace("%", "%%")
