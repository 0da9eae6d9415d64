"""What squeue and sacct say of the elements of our arrays, and the Job that each is. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from backends.base import EndCause, Job, JobState, LaunchKey

SEPARATOR = "\x1f"
"""Between fields: names, comments and reasons may hold anything else."""

QUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%V", "%S", "%e", "%N", "%j", "%k"))
HISTORY_FIELDS = ("JobID", "JobName", "State", "ExitCode", "Submit", "Start", "End", "NodeList")

_ID_PATTERN = re.compile(r"(\d+)_(\d+)")
_MARK_PATTERN = re.compile(r"worker-manager/([0-9a-f]{16})/([^/]+)/([^/]+)/(\d+)")

_PENDING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
     "SPECIAL_EXIT"}
)  # fmt: skip
_ENDED: dict[str, EndCause] = {
    "COMPLETED": EndCause.FINISHED,
    "FAILED": EndCause.FAILED,
    "OUT_OF_MEMORY": EndCause.FAILED,
    "NODE_FAIL": EndCause.PREEMPTED,
    "PREEMPTED": EndCause.PREEMPTED,
    "BOOT_FAIL": EndCause.PREEMPTED,
    "TIMEOUT": EndCause.KILLED_BY_OTHERS,
    "CANCELLED": EndCause.KILLED_BY_OTHERS,
    "DEADLINE": EndCause.OUT_OF_CAPACITY,
    "REVOKED": EndCause.UNKNOWN,
}
_MEANINGS = {
    "CANCELLED": "cancelled",
    "OUT_OF_MEMORY": "it used more memory than --memory-mb gives it",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted by another job",
    "BOOT_FAIL": "its node did not boot",
    "TIMEOUT": "it reached its time limit (--time)",
    "DEADLINE": "Slurm could not start it before its deadline",
    "REVOKED": "another cluster of the federation runs it",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose an array is, and which keys its elements have: it rides in the job's comment."""

    owner: str
    pool: str
    first: LaunchKey
    number: int

    @classmethod
    def parse(cls, comment: str) -> Mark | None:
        match = _MARK_PATTERN.fullmatch(comment)
        key = LaunchKey.parse(match[3]) if match else None
        if match is None or key is None or key.pool != match[2]:
            return None
        return cls(match[1], match[2], key, int(match[4]))

    def __str__(self) -> str:
        return f"worker-manager/{self.owner}/{self.pool}/{self.first}/{self.number}"

    def key(self, index: int) -> LaunchKey:
        return replace(self.first, sequence=self.first.sequence + index)


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an array, in Slurm's words. Times are seconds since the epoch.

    ``exit_code``: of the batch script, None where it is not told.
    """

    array: int
    index: int
    state: str
    reason: str = ""
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    node: str = ""
    exit_code: int | None = None

    @property
    def id(self) -> str:
        return f"{self.array}_{self.index}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a job's script has left in its launch's directory, and what we left there.

    ``exit_code``: the worker's; ``was_warned``: it was asked to leave before its time limit;
    ``was_asked``: we asked it to end. Times are seconds since the epoch.
    """

    array: int | None = None
    node: str = ""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    was_warned: bool = False
    was_asked: bool = False


def parse_id(text: str) -> tuple[int, int] | None:
    """Array and index of `123_4`; None when it is nothing of the kind."""
    match = _ID_PATTERN.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def parse_queue(text: str, submitted: Mapping[int, tuple[str, Mark]]) -> list[tuple[Element, Mark]]:
    """The marked elements in what squeue printed with QUEUE_FORMAT. Raises ValueError when torn.

    ``submitted``: job name and mark of arrays that sbatch named to us: they are ours also where
    the cluster's own rules put another comment in the place of ours.
    """
    if text and not text.endswith("\n"):
        raise ValueError(f"squeue stopped in the midst of {text.splitlines()[-1]!r}")
    found = []
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) != QUEUE_FORMAT.count(SEPARATOR) + 1:
            continue  # of somebody else's name or comment, which may have several lines
        name, state, reason, queued, started, ended, node, job_name, comment = fields
        place = parse_id(name)
        if place is None:
            continue
        mark = Mark.parse(comment)
        if mark is None and place[0] in submitted:
            known_name, known = submitted[place[0]]
            mark = known if job_name == known_name and place[1] < known.number else None
        if mark is None:
            continue
        element = Element(
            *place, state, reason, _time(queued) or 0.0, _time(started), _time(ended), node
        )
        found.append((element, mark))
    return found


def parse_history(text: str, names: Mapping[int, str]) -> list[Element]:
    """The elements in what sacct printed with HISTORY_FIELDS, of the arrays of these names: ids
    come again when a cluster starts anew."""
    found = []
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) != len(HISTORY_FIELDS):
            continue
        name, job_name, state, exit_code, submitted, started, ended, node = fields
        place = parse_id(name)
        if place is None or names.get(place[0]) != job_name:
            continue
        code, _, number = exit_code.partition(":")
        found.append(
            Element(
                *place,
                # `CANCELLED by 1000`: the user's number is the reason.
                state.partition(" ")[0],
                state.partition(" ")[2],
                _time(submitted) or 0.0,
                _time(started),
                _time(ended),
                node,
                int(code) if code.isdigit() and number in ("", "0") else None,
            )
        )
    return found


def was_refused(element: Element) -> bool:
    """Whether it is what the controller keeps of a submission that it refused."""
    return (element.state, element.reason) == ("FAILED", "BadConstraints")


def has_ended(state: str) -> bool:
    return state in _ENDED


def job(element: Element, key: LaunchKey, evidence: Evidence) -> Job:
    """The job that an element is. Slurm's word on the state stands; of the worker's end the
    evidence knows more."""
    if element.state in _PENDING:
        return Job(
            element.id,
            key,
            str(key),
            JobState.PENDING,
            created=element.submitted,
            why=_waiting(element),
        )
    # Anything else that is no end has a process: also SUSPENDED, COMPLETING, and states to come.
    if not has_ended(element.state):
        return Job(
            element.id,
            key,
            str(key),
            JobState.ACTIVE,
            created=element.submitted,
            started=element.started,
            why="" if element.state == "RUNNING" else element.state.lower(),
        )
    started = evidence.started or element.started
    if evidence.started is None and element.started == element.ended:
        started = None  # cancelled while it was pending
    exit_code = evidence.exit_code
    if exit_code is None and element.state == "FAILED":
        exit_code = element.exit_code
    if exit_code is None and element.state == "COMPLETED":
        exit_code = 0
    return Job(
        element.id,
        key,
        str(key),
        JobState.ENDED,
        created=element.submitted,
        started=started,
        ended=element.ended if element.ended is not None else evidence.ended,
        exit_code=exit_code,
        why=_end(element, evidence),
        cause=_cause(element, evidence, exit_code),
    )


def gone_job(array: int, index: int, key: LaunchKey, evidence: Evidence, intended: float) -> Job:
    """The job of an element that Slurm knows nothing of any more, by the evidence alone."""
    if evidence.exit_code is not None:
        state, reason = ("FAILED" if evidence.exit_code else "COMPLETED"), ""
    elif evidence.was_asked:
        state, reason = "CANCELLED", ""
    else:
        state, reason = "REVOKED", "gone"
    element = Element(array, index, state, reason, intended, evidence.started, evidence.ended)
    known = job(element, key, evidence)
    if reason == "gone":
        return replace(known, why="Slurm knows it no longer, and its end was not seen")
    return known


def _waiting(element: Element) -> str:
    """What a pending element waits for, in Slurm's word."""
    reason = "" if element.reason == "None" else element.reason
    return reason or element.state.lower()


def _end(element: Element, evidence: Evidence) -> str:
    """How an element ended, in a few words."""
    if evidence.was_warned and element.state in ("COMPLETED", "FAILED"):
        return "asked to leave before its time limit (--time)"
    told = _MEANINGS.get(element.state, "")
    if element.state == "CANCELLED" and element.reason.startswith("by "):
        told += f" {element.reason}"
    if element.state == "FAILED" and evidence.exit_code is None:
        told = element.reason if element.reason != "None" else ""
    if element.node and element.state in ("NODE_FAIL", "BOOT_FAIL"):
        told += f" ({element.node})"
    return told


def _cause(element: Element, evidence: Evidence, exit_code: int | None) -> EndCause:
    cause = _ENDED[element.state]
    if element.state in ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"):
        return cause
    if exit_code == 0:
        return EndCause.FINISHED
    if evidence.was_asked:
        return EndCause.KILLED_BY_US
    if evidence.was_warned:
        return EndCause.KILLED_BY_OTHERS
    return cause


def _time(text: str) -> float | None:
    """Seconds since the epoch; None for `N/A`, `Unknown` and the like."""
    return float(text) if text.isdigit() and int(text) > 0 else None
