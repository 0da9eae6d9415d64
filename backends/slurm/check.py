"""What is right and wrong with a configuration, as the cluster judges it. Changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import localtime, strftime

from backends.base import BackendError, Finding, Invalid, OutOfCapacity, Unauthorized
from backends.slurm.cluster import Cluster, Configuration
from backends.slurm.errors import slurm_error
from backends.slurm.settings import Options, time_limit_seconds

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
TEST_SECONDS = 30.0

_SETTING = re.compile(r"(\w+)=(\S*)")
_OPTION = re.compile(r"--[a-z-]+")
_EPOCH = re.compile(r"(?<=to start at )\d{1,11}\b")


def findings(
    cluster: Cluster, options: Options, directory: Path, submission: Sequence[str]
) -> list[Finding]:
    """``submission``: the words of sbatch for one worker, without a script."""
    found = [_directory(directory), *_programs(cluster)]
    if any(finding.error for finding in found[1:]):
        return found
    try:
        configuration = cluster.configuration()
    except BackendError as error:
        remedy = "ask again later, or set SLURM_CONF to the cluster's slurm.conf"
        return [*found, Finding("the cluster", str(error), error, remedy)]
    found.append(_cluster(configuration))
    partition = options.partition or cluster.commands.partition
    if partition is not None:
        found += _partition(cluster, partition, options.time)
    if not any(finding.error for finding in found[1:]):
        found.append(_whole(cluster, submission))
        if partition is None:
            found += _default_partition(cluster, options.time)
    return found


def _directory(directory: Path) -> Finding:
    place = directory
    while not place.exists():
        place = place.parent
    subject = "--slurm-work-dir"
    if os.access(place, os.W_OK | os.X_OK):
        sentence = f"launches are kept in {directory}, which every node must see"
        return Finding(subject, sentence)
    error = Unauthorized(f"{place} cannot be written to")
    return Finding(subject, str(error), error, "give another with --slurm-work-dir")


def _programs(cluster: Cluster) -> list[Finding]:
    found = []
    for program in PROGRAMS:
        try:
            place = cluster.commands.find(program)
        except BackendError as error:
            remedy = "run this on a login node, or add Slurm's commands to PATH"
            found.append(Finding(program, str(error), error, remedy))
        else:
            found.append(Finding(program, f"{program} is {place}"))
    return found


def _cluster(configuration: Configuration) -> Finding:
    history = "with accounting" if configuration.has_history else "without accounting"
    return Finding(
        "the cluster",
        f"{configuration.name or 'it'} answers (Slurm {configuration.version}, {history}); one "
        f"call launches up to {configuration.array_size} workers",
    )


def _partition(cluster: Cluster, name: str, time: str) -> list[Finding]:
    """Each partition of a list that --partition may be."""
    found = []
    for partition in name.split(","):
        doing = f"looking at the partition {partition}"
        try:
            text = cluster.commands.ask(
                doing, "scontrol", "--all", "--oneliner", "show", "partition", partition
            )
        except BackendError as error:
            found.append(Finding("--partition", str(error), error, "`sinfo` shows those there are"))
            continue
        settings = dict(_SETTING.findall(text))
        state, longest = settings.get("State", "UP"), settings.get("MaxTime", "UNLIMITED")
        if state != "UP":
            away = OutOfCapacity(f"the partition {partition} is {state}: jobs there wait")
            found.append(
                Finding("--partition", str(away), away, "wait, or give another; see `sinfo`")
            )
        elif _is_longer(time, longest):
            never = Invalid(f"--time {time} is more than {partition} allows, {longest}")
            found.append(Finding("--time", str(never), never, f"give at most {longest}"))
        else:
            found.append(Finding("--partition", f"{partition} is {state}, up to {longest} a job"))
    return found


def _default_partition(cluster: Cluster, time: str) -> list[Finding]:
    """Only what jobs would wait for there: whether they go there is the cluster's choice."""
    doing = "looking at the default partition"
    with suppress(BackendError):  # a test of the whole job tells as much
        text = cluster.commands.ask(doing, "scontrol", "--oneliner", "show", "partition")
        for line in text.splitlines():
            settings = dict(_SETTING.findall(line))
            name, longest = settings.get("PartitionName"), settings.get("MaxTime", "UNLIMITED")
            if settings.get("Default") == "YES" and _is_longer(time, longest):
                away = OutOfCapacity(
                    f"--time {time} is more than {name}, the default partition, allows, {longest}: "
                    "jobs there wait for ever"
                )
                remedy = f"give at most {longest}, or another --partition"
                return [Finding("--time", str(away), away, remedy)]
    return []


def _is_longer(time: str, longest: str) -> bool:
    try:
        most = time_limit_seconds(longest)
    except ValueError:
        return False
    asked = time_limit_seconds(time)
    return most is not None and (asked is None or asked > most)


def _whole(cluster: Cluster, submission: Sequence[str]) -> Finding:
    """What the controller says of the whole job, by a submission that is only a test."""
    words = [word for word in submission if word != "--parsable"]
    doing = "testing a submission"
    try:
        answer = cluster.commands.run(doing, [*words, "--test-only", "--wrap=:"], TEST_SECONDS)
        if answer.code != 0:
            raise slurm_error(doing, answer.said)
    except BackendError as error:
        option = _OPTION.search(str(error))
        told, _, hint = str(error).partition("; ")
        return Finding(
            option[0] if option else "the job", told, error, hint or "see `sinfo` and `sacctmgr`"
        )
    # After whatever the cluster tells everybody who submits.
    sentence = answer.said.strip().rpartition("\n")[2].removeprefix("sbatch: ")
    return Finding("the job", f"Slurm would take it: {_EPOCH.sub(_as_time, sentence)}")


def _as_time(match: re.Match[str]) -> str:
    """As a person reads it: all commands are asked for seconds since the epoch."""
    return strftime("%Y-%m-%d %H:%M:%S", localtime(int(match[0])))
