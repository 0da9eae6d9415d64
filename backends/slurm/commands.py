"""Slurm's own commands as calls: with a time limit, in a clean environment, and errors told apart.

Not for what their words mean: errors, jobs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from backends.base import BackendError, Invalid, Throttled, Unauthorized, Unreachable
from backends.slurm.errors import last_sentences, slurm_error, was_never_asked

T = TypeVar("T")

READ_SECONDS = 30.0
SUBMIT_SECONDS = 30.0
"""Slurm's own patience with its controller is 10 s by default (MessageTimeout)."""
RETRY_WITHIN_SECONDS = 5.0
"""A question that failed sooner is asked again: one that did not has waited for long enough."""

_REFUSAL = re.compile(r"job id (\S+?): (.*)$")

_OURS = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SACCT_")
_KEPT = frozenset(
    {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
    | {f"SBATCH_{name}" for name in ("ACCOUNT", "PARTITION", "QOS", "RESERVATION", "CONSTRAINT")}
)
"""Variables that say where the cluster is and what is left open there; any other of Slurm's would
change what our words mean (SBATCH_WAIT, SQUEUE_STATES, SCANCEL_INTERACTIVE), or comes from a job
that the manager itself is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed, and how it ended."""

    code: int
    output: str
    said: str


class LostReply(Unreachable):
    """A submission of which it is not known whether the controller took it."""


class Commands:
    """The commands that are on the PATH of ``environment``."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        read_seconds: float = READ_SECONDS,
        submit_seconds: float = SUBMIT_SECONDS,
    ) -> None:
        self._environment = {
            name: value
            for name, value in environment.items()
            if name in _KEPT or not name.startswith(_OURS)
        } | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
        self._read_seconds = read_seconds
        self._submit_seconds = submit_seconds

    @property
    def partition(self) -> str | None:
        """Where jobs queue that are not told."""
        return self._environment.get("SBATCH_PARTITION")

    def find(self, program: str) -> str:
        """Where a command is. Raises Invalid when there is none."""
        place = shutil.which(program, path=self._environment.get("PATH"))
        if place is None:
            raise _missing(program)
        return place

    def ask(self, doing: str, *words: str) -> str:
        """What a question prints; asked again, a bounded number of times, when nobody answers.

        Raises BackendError.
        """
        return _patiently((Unreachable, Throttled), self._ask, doing, words)

    def _ask(self, doing: str, words: Sequence[str]) -> str:
        answer = self.run(doing, words, self._read_seconds)
        if answer.code != 0:
            # scontrol complains on stdout.
            raise slurm_error(doing, answer.said or answer.output)
        return answer.output

    def cancel(self, ids: Sequence[str]) -> dict[str, str]:
        """What is said against ending each of some jobs, by id; jobs that are gone are not
        mentioned. Raises BackendError when nothing is known of any."""
        return _patiently((Unreachable, Throttled), self._cancel, ids)

    def _cancel(self, ids: Sequence[str]) -> dict[str, str]:
        doing = "ending Slurm's jobs"
        answer = self.run(doing, ("scancel", *ids), self._read_seconds)
        if answer.code == 0:
            return {}
        refusals = {m[1]: m[2] for m in map(_REFUSAL.search, answer.said.splitlines()) if m}
        if not refusals:
            raise slurm_error(doing, answer.said)
        return refusals

    def submit(self, words: Sequence[str]) -> int:
        """The id of the array that the words of sbatch made. Asked again only when the controller
        said that it did nothing because it is too busy.

        Raises LostReply when it cannot be told whether there is one, another BackendError when
        there is none.
        """
        return _patiently((Throttled,), self._submit, words)

    def _submit(self, words: Sequence[str]) -> int:
        doing = "submitting to Slurm"
        try:
            answer = self.run(doing, words, self._submit_seconds)
        except Unreachable as error:
            raise LostReply(str(error)) from error
        name = answer.output.strip().partition(";")[0]
        if answer.code == 0 and name.isdigit():
            return int(name)
        if answer.code == 0:
            raise LostReply(f"{doing}: sbatch printed {answer.output!r} and no job id")
        refusal = slurm_error(doing, answer.said)
        if isinstance(refusal, Unreachable) and not was_never_asked(answer.said):
            raise LostReply(str(refusal))
        raise refusal

    def run(self, doing: str, words: Sequence[str], seconds: float) -> Answer:
        """A command, ended. Raises Unreachable when it does not end in time, and Invalid or
        Unauthorized when it cannot be started."""
        try:
            process = subprocess.Popen(
                words,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise _missing(words[0]) from None
        except OSError as error:
            raise _start_error(doing, words[0], error) from error
        try:
            output, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as expired:
            sentence = f"{doing}: {words[0]} did not end within {seconds:g} s"
            told = last_sentences((expired.stderr or b"").decode(errors="replace"))
            if told:  # such as that the cluster is full, and that it goes on trying
                sentence += f"; it says {told!r}"
            raise Unreachable(sentence) from None
        finally:
            _end(process)
        return Answer(process.returncode, output, said)


def _patiently(
    passing: tuple[type[BackendError], ...], function: Callable[..., T], *arguments: Any
) -> T:
    """What a function returns, called again a few times when its error may pass."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(passing),
        stop=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(RETRY_WITHIN_SECONDS),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
        reraise=True,
    )
    return retrying(function, *arguments)


def _missing(program: str) -> Invalid:
    return Invalid(f"there is no {program} on PATH, which Slurm's jobs need")


def _start_error(doing: str, program: str, error: OSError) -> BackendError:
    sentence = f"{doing}: {program} cannot be started: {error.strerror}"
    return Unauthorized(sentence) if isinstance(error, PermissionError) else Unreachable(sentence)


def _end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of it running, whatever brought us here."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
