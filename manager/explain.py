"""Why: what was decided at a moment, what became of a worker, what a bundle waits for. Pure.

Says in sentences what journal, ledger and server know, and says so where they know nothing.
"""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.base import Job, JobState
from bundles.cli.output import duration, moment
from bundles.errors import UsageError
from bundles.exits import WorkerExit
from bundles.model import Bundle, Resources, State, queue_tag
from bundles.sizes import format_duration, format_size
from manager.capacity import Room
from manager.health import failure, meaning
from manager.history import Entry
from manager.journal import HEARTBEAT_SECONDS
from manager.ledger import Launch, Outcome, Stage
from manager.policy import count
from manager.queue import QueueConfig

if TYPE_CHECKING:
    from bundles.replies import Change

CHANGES_SHOWN = 20
LINES_SHOWN = 10

_GOOD_ENDS = {
    WorkerExit.FINISHED: "it was idle, or ran as many bundles as it should",
    WorkerExit.REPLACED: "another worker took over its name or its directory",
    WorkerExit.TERMINATED: "it was asked to end before it was idle",
    WorkerExit.PREEMPTED: "its machine was taken away",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """``sentences`` for people, the first the shortest answer; ``facts`` in JSON for programs."""

    about: str
    name: str
    sentences: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "name": self.name,
            "sentences": list(self.sentences),
            **self.facts,
        }


# A moment


def explain_moment(
    pool: str, entries: Sequence[Entry], when: float, *, manager: int | None, is_now: bool
) -> Explanation:
    """What the pool's manager had decided last at ``when``, and why.

    ``entries``: of the pool's journal, in the order of their times. ``manager``: the process that
    keeps the pool now, which is of interest when ``when`` is now.
    """
    place = bisect_right(entries, when, key=lambda entry: entry.time)
    sentences: list[str] = []
    if is_now:
        sentences.append(
            f"process {manager} keeps the pool now"
            if manager is not None
            else "no manager keeps the pool now: nothing is launched or ended"
        )
    if not entries:
        sentences.append("nothing is known: its journal is empty")
    elif place == 0:
        sentences.append(f"nothing is known: its journal begins at {moment(entries[0].time)}")
    if place == 0:
        return Explanation("pool", pool, tuple(sentences), {"manager": manager, "entry": None})
    entry = entries[place - 1]
    following = entries[place] if place < len(entries) else None
    sentences += decision_sentences(entry)
    silence = when - entry.time
    if following is not None and following.repeats:
        sentences.append(
            f"{count(following.repeats, 'tick')} more until {moment(following.time)} saw and "
            "decided the same"
        )
    elif silence > 2 * HEARTBEAT_SECONDS:
        sentences.append(
            f"nothing was written down in the {duration(silence)} after that: no manager ran, or "
            "its journal could not be written"
        )
    return Explanation(
        "pool", pool, tuple(sentences), {"manager": manager, "entry": dict(entry.document)}
    )


def decision_sentences(entry: Entry) -> list[str]:
    """What one tick saw and decided, every clause of it, and what came of it."""
    at = moment(entry.time)
    if entry.decision is None:
        return [f"at {at}: nothing was launched or ended, because {entry.error}"]
    sentences = [f"at {at}: {entry.decision.summary()}"]
    sentences += [
        f"{'yes' if reason.held else 'no'}, {reason.code}: {reason.sentence}"
        for reason in entry.decision.reasons
    ]
    if entry.launched:
        sentences.append(f"launched: {count(entry.launched, 'worker')}")
    errors = Counter(
        ("not launched" if "launch" in result else "not withdrawn", str(result["error"]))
        for result in entry.results
        if result.get("error")
    )
    sentences += [f"{what}: {count(n, 'worker')}: {error}" for (what, error), n in errors.items()]
    return sentences


# A worker


def explain_worker(
    launch: Launch, job: Job | None, entries: Sequence[Entry], now: float, *, unlisted: str = ""
) -> Explanation:
    """What became of a launch, and the decision that it came from.

    ``job``: as its service lists it now, None when it does not; ``unlisted``: why it could not be
    asked. ``entries``: of the pool's journal.
    """
    worker = str(launch.key)
    sentences = [_fate(launch, job, now)]
    sentences.append(f"intended at {moment(launch.requested)} for the pool {launch.key.pool}")
    if launch.outcome is Outcome.LAUNCHED:
        sentences.append(f"its service accepted it as job {launch.job_id}")
    sentences += _life(launch)
    if launch.ended is not None or (job is not None and job.state is JobState.ENDED):
        sentences.append(_end(launch, job))
    elif job is not None:
        since = f" since {moment(job.started or job.created)}" if job.started or job.created else ""
        why = f": {job.why}" if job.why else ""
        sentences.append(f"its job is {job.state}{since}{why}")
    elif unlisted:
        sentences.append(f"its job's state is unknown: {unlisted}")
    if launch.last_words:
        sentences.append("the last that it said:")
        sentences += [f"  {line}" for line in launch.last_words.splitlines()[-LINES_SHOWN:]]
    entry = decision_of(worker, entries)
    if entry is None:
        sentences.append("the decision that launched it is in the journal no more")
    else:
        sentences.append("the decision that launched it:")
        sentences += decision_sentences(entry)
    found = failure(launch)
    facts = {
        "pool": launch.key.pool,
        "intended": launch.requested,
        "outcome": launch.outcome and str(launch.outcome),
        "job": launch.job_id,
        "error": launch.error,
        "state": job and str(job.state),
        "ended": launch.ended,
        "exit_code": launch.exit_code,
        "why": launch.why,
        "cause": job.cause and str(job.cause) if job else launch.cause and str(launch.cause),
        "failure": found and {"cause": str(found.cause), "is_wasted": found.is_wasted},
        "stage": str(launch.stage),
        "stages": {str(stage): when for stage, when in launch.stages()},
        "started": launch.started,
        "given_up": launch.given_up,
        "last_words": launch.last_words,
        "entry": dict(entry.document) if entry else None,
    }
    return Explanation("worker", worker, tuple(sentences), facts)


def _life(launch: Launch) -> list[str]:
    """How far it came, and what its pool makes of its end."""
    told = {
        Stage.REGISTERED: "the server knew it",
        Stage.WORKING: "it had its first bundle",
        Stage.DRAINING: "it was told to take no more bundles",
    }
    known = [(when, told[stage]) for stage, when in launch.stages() if stage in told]
    if launch.started is not None:
        known.append((launch.started, "its job began to run"))
    if launch.given_up is not None:
        known.append((launch.given_up, "it was given up, for the server never heard of it"))
    sentences = [f"{words} at {moment(when)}" for when, words in sorted(known)]
    found = failure(launch)
    if found is not None:
        counts = "; it did nothing, and counts towards quarantine" if found.is_wasted else ""
        sentences.append(f"a failure of its pool: {found.cause}{counts}")
    return sentences


def decision_of(worker: str, entries: Sequence[Entry]) -> Entry | None:
    """The tick that launched a worker."""
    for entry in reversed(entries):
        if any(result.get("launch") == worker for result in entry.results):
            return entry
    return None


def _fate(launch: Launch, job: Job | None, now: float) -> str:
    """In one line."""
    if launch.outcome is None:
        return "its launch was asked for, and what became of it is not known yet"
    if launch.outcome is Outcome.REFUSED:
        return f"it was never launched: {launch.error or 'its service refused, and said no reason'}"
    if launch.outcome is Outcome.UNDONE:
        return (
            "it was never launched: its manager ended before its service had the request, or "
            "before the answer came, and there is no such job"
        )
    ended = launch.ended or (job.ended if job is not None else None)
    if ended is not None:
        return f"it ended {duration(max(0.0, now - ended))} ago"
    return f"it was launched {duration(max(0.0, now - launch.requested))} ago and has not ended"


def _end(launch: Launch, job: Job | None) -> str:
    ended = launch.ended or (job.ended if job else None)
    code = launch.exit_code
    if code is None and job is not None:
        code = job.exit_code
    why = launch.why or (job.why if job else "")
    cause = f", {job.cause}" if job is not None and job.cause is not None else ""
    at = f" at {moment(ended)}" if ended else ""
    left = "nobody saw its exit code" if code is None else exit_sentence(code)
    return f"it ended{at}{cause}: {left}" + (f" ({why})" if why else "")


def exit_sentence(code: int) -> str:
    """What a worker's exit code says."""
    if code in _GOOD_ENDS:
        return f"exit code {code}, {_GOOD_ENDS[WorkerExit(code)]}"
    if code > 128:
        try:
            return f"exit code {code}, killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    text = meaning(code)
    return f"exit code {code}{text}" if text else f"exit code {code}, which is none of a worker's"


# A bundle


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool of the bundle's server, as one bundle is concerned with it.

    ``selected``: whether the pool's search finds the bundle, None when it was not asked.
    """

    name: str
    queue: QueueConfig
    selected: bool | None
    manager: int | None
    last: Entry | None


def explain_bundle(
    bundle: Bundle,
    changes: Sequence[Change],
    parents: Mapping[str, str],
    pools: Sequence[PoolView],
) -> Explanation:
    """Why a bundle is in its state, and what it waits for.

    ``changes``: its life, as far as its server tells. ``parents``: the states of the bundles that
    it depends on, "" for one that there is not.
    """
    worker = changes[-1].worker if changes else None
    sentences = [_state_sentence(bundle, worker)]
    views: list[dict[str, Any]] = []
    if bundle.state == State.CREATED:
        sentences += [
            f"it waits for {uuid}, which is {state or 'not there'}"
            for uuid, state in parents.items()
            if state != State.READY
        ]
    if bundle.state == State.STAGED and bundle.bundle_type == "run":
        if not pools:
            sentences.append("no pool of this home is for its server: nobody launches for it here")
        for view in pools:
            obstacle = _obstacle(bundle, view)
            views.append({"pool": view.name, "can_hold": not obstacle, "why_not": obstacle})
            sentences += _pool_sentences(view, obstacle)
    if changes:
        sentences.append("its life:")
        if len(changes) > CHANGES_SHOWN:
            sentences.append(f"{len(changes) - CHANGES_SHOWN} changes before these")
    for change in changes[-CHANGES_SHOWN:]:
        by = f", worker {change.worker}" if change.worker else ""
        why = f" ({change.reason})" if change.reason else ""
        before = f"{change.from_state} → " if change.from_state else ""
        sentences.append(f"{moment(change.time)} {before}{change.to_state}{by}{why}")
    facts = {
        "state": str(bundle.state),
        "state_details": bundle.state_details,
        "worker": worker,
        "parents": dict(parents),
        "pools": views,
        "changes": [
            {"time": c.time, "from": c.from_state, "to": c.to_state, "worker": c.worker,
             "claim": c.claim, "reason": c.reason}
            for c in changes
        ],
    }  # fmt: skip
    return Explanation("bundle", bundle.uuid, tuple(sentences), facts)


def _state_sentence(bundle: Bundle, worker: str | None) -> str:
    details = f": {bundle.state_details}" if bundle.state_details else ""
    if bundle.state in (State.FAILED, State.KILLED):
        message = bundle.metadata.get("failure_message") or bundle.state_details
        code = bundle.metadata.get("exitcode")
        said = f": {message}" if message else ""
        return f"it {'was ' if bundle.state == State.KILLED else ''}{bundle.state}{said}" + (
            f" (exit code {code})" if code is not None else ""
        )
    if bundle.final:
        return f"it is {bundle.state}: there is nothing that it waits for"
    by = f" with worker {worker}" if worker else ""
    return f"it is {bundle.state}{by}{details}"


def _obstacle(bundle: Bundle, view: PoolView) -> str:
    """Why no worker of a pool would ever run the bundle; "" when one could."""
    try:
        asked = bundle.resources
    except UsageError as error:
        return f"what it asks for cannot be read: {error}"
    reasons = _too_large(asked, view.queue)
    tag = queue_tag(asked.queue)
    if tag and tag != view.queue.tag:
        reasons.append(f"it is queued for the tag {tag!r}, and its workers have "
                       f"{repr(view.queue.tag) if view.queue.tag else 'none'}")  # fmt: skip
    if not tag and view.queue.tag and view.queue.tag_exclusive:
        reasons.append(f"its workers run bundles for the tag {view.queue.tag!r} only")
    if not reasons and view.last is not None and view.last.config is not None:
        reasons = _more_than(asked, view.last.config.shape.room, "no new worker had more than")
    if not reasons and view.selected is False:
        words = " ".join(view.queue.search)
        reasons.append(
            f"its search does not select it: {words}"
            if words
            else "it counts its own user's bundles only"
        )
    return "; ".join(reasons)


def _more_than(asked: Resources, room: Room, whose: str) -> list[str]:
    sizes = (
        ("cpus", str(asked.cpus), str(room.cpus), asked.cpus > room.cpus),
        ("gpus", str(asked.gpus), str(room.gpus), asked.gpus > room.gpus),
        (
            "memory",
            format_size(asked.memory_bytes),
            format_size(room.memory_bytes),
            asked.memory_bytes > room.memory_bytes,
        ),
        (
            "disk",
            format_size(asked.disk_bytes),
            format_size(room.disk_bytes),
            asked.disk_bytes > room.disk_bytes,
        ),
    )
    return [
        f"it asks for {wanted} of {name}, and {whose} {offered}"
        for name, wanted, offered, is_more in sizes
        if is_more
    ]


def _too_large(asked: Resources, queue: QueueConfig) -> list[str]:
    reasons = _more_than(asked, queue.shape.room, "a worker has")
    life = queue.lifetime_seconds
    if life is not None and asked.worker_seconds > life:
        wanted, offered = format_duration(asked.worker_seconds), format_duration(life)
        reasons.append(f"it asks for {wanted} of time, and a new worker has {offered}")
    return reasons


def _pool_sentences(view: PoolView, obstacle: str) -> list[str]:
    if obstacle:
        return [f"the pool {view.name} cannot hold it: {obstacle}"]
    sentences = [f"the pool {view.name} could hold it"]
    if view.manager is None:
        sentences.append(f"no manager keeps the pool {view.name} now: nothing is launched")
    if view.last is not None:
        sentences.append(f"the last decision of {view.name}:")
        sentences += decision_sentences(view.last)
    return sentences
