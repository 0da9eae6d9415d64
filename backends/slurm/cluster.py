"""The questions that are asked of a cluster, and their answers as values.

Not for whose jobs they are or what to do about them: backend.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from backends.base import BackendError, Unreachable
from backends.slurm.commands import Commands
from backends.slurm.errors import slurm_error
from backends.slurm.jobs import (
    HISTORY_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    Element,
    Mark,
    parse_history,
    parse_queue,
)

DEFAULT_ARRAY_SIZE = 1001
"""Slurm's own default of MaxArraySize (slurm.conf(5))."""
IDS_PER_CALL = 500
HISTORY_PAUSE_SECONDS = 60.0
"""An accounting database that did not answer is left alone so long."""

_SETTING = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_MOST_TASKS = re.compile(r"\bmax_array_tasks=(\d+)")
# Without --all, jobs in partitions that the cluster hides are not shown, also not to their owner.
_SQUEUE = ("squeue", "--noheader", "--all", "--array", "--states=all")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What of the cluster's configuration concerns us.

    ``array_size``: how many elements an array may have; ``has_history``: there is an accounting
    database; ``signals_all``: a cancelled job's SIGTERM goes to every process of it, as all but
    proctrack/cgroup do, which signals the batch script alone.
    """

    name: str = ""
    version: str = ""
    array_size: int = DEFAULT_ARRAY_SIZE
    has_history: bool = False
    signals_all: bool = False

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """Of what `scontrol show config` prints."""
        settings = dict(_SETTING.findall(text))
        size = settings.get("MaxArraySize", "")
        longest = int(size) if size.isdigit() and int(size) > 0 else DEFAULT_ARRAY_SIZE
        tasks = _MOST_TASKS.search(settings.get("SchedulerParameters", ""))
        return cls(
            name=settings.get("ClusterName", ""),
            version=settings.get("SLURM_VERSION", ""),
            array_size=max(1, min(longest, int(tasks[1]))) if tasks else longest,
            has_history=settings.get("AccountingStorageType", "").endswith("/slurmdbd"),
            signals_all=not settings.get("ProctrackType", "proctrack/cgroup").endswith("/cgroup"),
        )


class Cluster:
    """One cluster, asked as one user, by number. Methods raise BackendError."""

    def __init__(
        self, commands: Commands, user: int, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.commands = commands
        self._user = user
        self._clock = clock
        self._configuration: Configuration | None = None
        self._history_fails_until = 0.0

    @property
    def known(self) -> Configuration:
        """The configuration as far as it was read; Slurm's defaults before. Asks nothing."""
        return self._configuration or Configuration()

    def configuration(self) -> Configuration:
        """Read once: it changes with a restart of the cluster, if ever."""
        if self._configuration is None:
            text = self.commands.ask("reading Slurm's configuration", "scontrol", "show", "config")
            self._configuration = Configuration.parse(text)
        return self._configuration

    def queue(self, submitted: Mapping[int, tuple[str, Mark]]) -> list[tuple[Element, Mark]]:
        """Every marked element of the user's arrays that the controller knows, ended ones, too;
        see parse_queue."""
        doing = "listing Slurm's jobs"
        text = self.commands.ask(
            doing, *_SQUEUE, f"--user={self._user}", f"--format={QUEUE_FORMAT}"
        )
        try:
            return parse_queue(text, submitted)
        except ValueError as error:
            raise Unreachable(f"{doing}: {error}") from error

    def exit_codes(self, elements: Iterable[Element]) -> dict[str, int]:
        """The exit codes of batch scripts that ended while the controller knows them, by id."""
        ids = [element.id for element in elements]
        found: dict[str, int] = {}
        for part in _parts(ids):
            text = self.commands.ask(
                "reading exit codes",
                *_SQUEUE,
                f"--jobs={','.join(part)}",
                f"--Format=JobArrayID:60{SEPARATOR},exit_code:20",
            )
            for line in text.splitlines():
                name, _, status = (field.strip() for field in line.partition(SEPARATOR))
                # As wait(2) gives it: a signal in the low byte.
                if status.isdigit() and int(status) & 0xFF == 0:
                    found[name] = int(status) >> 8
        return found

    def exists(self, ids: Iterable[str]) -> set[str]:
        """Those that the controller knows, anybody's."""
        found: set[str] = set()
        for part in _parts(sorted(ids)):
            # Of several ids the unknown are passed over; of one they are an error.
            arrays = sorted({job_id.partition("_")[0] for job_id in part})
            doing = "looking for jobs"
            try:
                text = self.commands.ask(
                    doing, *_SQUEUE, "--format=%i", f"--jobs={','.join(arrays)}"
                )
            except BackendError as error:
                if "Invalid job id" in str(error):
                    continue
                raise
            found |= set(text.split()) & set(part)
        return found

    def history(self, names: Mapping[int, str]) -> list[Element] | None:
        """What accounting knows of arrays, given with their job names; nothing where there is no
        accounting, None when it does not answer now."""
        now = self._clock()
        if now < self._history_fails_until:
            return None
        elements = []
        try:
            if not self.configuration().has_history:
                return []
            for part in _parts([str(array) for array in names]):
                text = self.commands.ask(
                    "asking Slurm's accounting",
                    *("sacct", "--noheader", "--allocations", "--parsable2"),
                    *(f"--delimiter={SEPARATOR}", f"--jobs={','.join(part)}"),
                    f"--format={','.join(HISTORY_FIELDS)}",
                )
                elements += parse_history(text, names)
        except BackendError:
            self._history_fails_until = now + HISTORY_PAUSE_SECONDS
            return None
        return elements

    def submit(self, words: Sequence[str]) -> int:
        """See Commands.submit."""
        return self.commands.submit(words)

    def cancel(self, ids: Sequence[str]) -> dict[str, BackendError | None]:
        """End jobs; those that are not there count as ended. Never raises."""
        results: dict[str, BackendError | None] = dict.fromkeys(ids)
        for part in _parts(ids):
            try:
                refusals = self.commands.cancel(part)
            except BackendError as error:
                results.update(dict.fromkeys(part, error))
                continue
            for job_id in refusals.keys() & results.keys():
                if "already completing" not in refusals[job_id]:
                    results[job_id] = slurm_error(f"ending {job_id}", refusals[job_id])
        return results


def _parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    for begin in range(0, len(ids), IDS_PER_CALL):
        yield ids[begin : begin + IDS_PER_CALL]
