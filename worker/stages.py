"""The life of one run as a pure state machine: run × event → run and what to do about it.

The names of the stages are CodaLab's. Nothing here touches the disk, a process or the clock; the
worker saves the run that comes out, and only then carries out its effects.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from bundles.model import Resources, State

KILL_MESSAGE = "Kill requested"


class Stage(StrEnum):
    """Where a run is on this worker."""

    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    CLEANING_UP = "CLEANING_UP"
    UPLOADING_RESULTS = "UPLOADING_RESULTS"
    FINALIZING = "FINALIZING"
    FINISHED = "FINISHED"
    RESTAGED = "RESTAGED"


REPORTED_STATES: Mapping[Stage, State] = {
    Stage.PREPARING: State.PREPARING,
    Stage.RUNNING: State.RUNNING,
    Stage.CLEANING_UP: State.RUNNING,
    Stage.UPLOADING_RESULTS: State.RUNNING,
    Stage.FINALIZING: State.FINALIZING,
    Stage.RESTAGED: State.STAGED,
}
"""What the server is told; a run that is FINISHED is not mentioned any more."""


class Fate(StrEnum):
    """What becomes of a run's results."""

    KEPT = "kept"
    RESTAGED = "restaged"
    """Given back: the bundle will be run anew, here or elsewhere."""
    REVOKED = "revoked"
    """Someone else's by now: nothing of it may reach the server."""


class Effect(StrEnum):
    """What the worker has to do after a step, in this order."""

    CANCEL = "cancel"
    """Stop fetching or uploading for it; whatever that comes to is not waited for."""
    STOP = "stop"
    """End its processes: they were asked to, or they broke a limit."""
    CLEAN_UP = "clean up"
    """Kill what is left of it, and take the dependencies out of its directory."""
    UPLOAD = "upload"
    REPORT = "report"
    """Tell the server now."""
    MENTION = "mention"
    """Tell the server soon."""
    REMOVE = "remove"
    """Delete everything of it, then forget it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One claim of one bundle, as it is on disk.

    ``process`` is the runtime's own word for the running command. ``times`` are (start, end) of
    the stages in epoch seconds, by name. ``seconds`` are total, user and system time of the
    command. ``claim`` is None on a server without claims.
    """

    uuid: str
    claim: int | None
    bundle: Mapping[str, Any]
    resources: Resources
    accepted: float
    stage: Stage = Stage.PREPARING
    fate: Fate = Fate.KEPT
    failure_message: str | None = None
    exitcode: int | None = None
    stopping: bool = False
    process: Mapping[str, Any] | None = None
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    times: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def key(self) -> str:
        """Names the run on this worker: also a second claim of the same bundle has its own."""
        return self.uuid if self.claim is None else f"{self.uuid}-{self.claim}"

    @property
    def has_started(self) -> bool:
        return self.process is not None


@dataclass(frozen=True, slots=True)
class Started:
    """The command's process is there, held at the door: it goes once this is on disk."""

    process: Mapping[str, Any]
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A dependency, its directory or its process could not be had."""

    reason: str


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The process was gone before it was let go: the run is to be started again."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ended: as a shell would say it, 128 + n is the end by signal n. ``reason``: what
    ended it, if that is known better than by its exit code."""

    exitcode: int
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is gone and nobody knows how: the machine, or its container, was restarted."""


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """The run used more than it asked for."""

    reason: str


@dataclass(frozen=True, slots=True)
class KillRequested:
    reason: str = KILL_MESSAGE


@dataclass(frozen=True, slots=True)
class GiveBack:
    """This worker leaves, and takes its runs down."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The server says that the claim is not ours, or that it needs nothing more of us."""


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """Nothing of the run lives any more. ``reason``: a limit that only showed now."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The server has the results."""


@dataclass(frozen=True, slots=True)
class NotUploaded:
    """The server will never take the results."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finalized:
    """The server knows how the run ended."""


Event = (
    Started
    | NotStarted
    | HeldBack
    | Exited
    | Lost
    | LimitExceeded
    | KillRequested
    | GiveBack
    | Revoked
    | CleanedUp
    | Uploaded
    | NotUploaded
    | Finalized
)

Step = tuple[Run, tuple[Effect, ...]]


def step(run: Run, event: Event, now: float) -> Step:
    """What the event makes of the run, and what to do. ``now`` in epoch seconds.

    An event that has no meaning in the run's stage changes nothing: messages may come twice, and
    threads may be overtaken.
    """
    match run.stage:
        case Stage.PREPARING:
            return _preparing(run, event, now)
        case Stage.RUNNING:
            return _running(run, event, now)
        case Stage.CLEANING_UP:
            return _cleaning_up(run, event, now)
        case Stage.UPLOADING_RESULTS:
            return _uploading(run, event, now)
        case Stage.FINALIZING:
            return _finalizing(run, event, now)
        case Stage.RESTAGED:
            if isinstance(event, Revoked | Finalized):
                return _enter(run, Stage.FINISHED, now), (Effect.REMOVE,)
        case Stage.FINISHED:
            pass
    return run, ()


def _enter(run: Run, stage: Stage, now: float, **changes: Any) -> Run:
    times = dict(run.times)
    start, _ = times.get(run.stage.value, (run.accepted, None))
    times[run.stage.value] = (start, now)
    times[stage.value] = (now, None)
    return replace(run, stage=stage, times=times, **changes)


def _preparing(run: Run, event: Event, now: float) -> Step:
    clean = (Effect.CANCEL, Effect.CLEAN_UP)
    match event:
        case Started(process, cpus, gpus):
            entered = _enter(run, Stage.RUNNING, now, process=process, cpus=cpus, gpus=gpus)
            return entered, (Effect.MENTION,)
        case NotStarted(reason) | LimitExceeded(reason) | KillRequested(reason):
            return _enter(run, Stage.CLEANING_UP, now, failure_message=reason), clean
        case GiveBack() | Lost():
            return _enter(run, Stage.CLEANING_UP, now, fate=Fate.RESTAGED), clean
        case Revoked() | Finalized():
            return _enter(run, Stage.CLEANING_UP, now, fate=Fate.REVOKED), clean
    return run, ()


def _running(run: Run, event: Event, now: float) -> Step:
    match event:
        case HeldBack():
            if run.stopping:  # nothing of the command ran, so that there is nothing to upload
                return _enter(run, Stage.CLEANING_UP, now, process=None), (Effect.CLEAN_UP,)
            return _enter(run, Stage.PREPARING, now, process=None, cpus=(), gpus=()), ()
        case Exited(exitcode, seconds, reason):
            ended = replace(
                run,
                exitcode=exitcode,
                seconds=seconds,
                failure_message=run.failure_message or reason or signal_message(exitcode),
            )
            return _enter(ended, Stage.CLEANING_UP, now), (Effect.CLEAN_UP, Effect.MENTION)
        case Lost():
            fate = run.fate if run.stopping else Fate.RESTAGED
            return _enter(run, Stage.CLEANING_UP, now, fate=fate), (Effect.CLEAN_UP,)
        case NotStarted(reason):
            return (
                replace(run, failure_message=run.failure_message or reason, stopping=True),
                (Effect.STOP,),
            )
        case LimitExceeded(reason) | KillRequested(reason):
            if run.stopping:
                return run, ()
            return replace(run, failure_message=reason, stopping=True), (Effect.STOP,)
        case GiveBack():
            if run.stopping:
                return run, ()
            return replace(run, fate=Fate.RESTAGED, stopping=True), (Effect.STOP,)
        case Revoked() | Finalized():
            return replace(run, fate=Fate.REVOKED, stopping=True), (Effect.STOP,)
    return run, ()


def _cleaning_up(run: Run, event: Event, now: float) -> Step:
    match event:
        case CleanedUp(reason):
            failed = replace(run, failure_message=run.failure_message or reason)
            if run.fate is Fate.REVOKED:
                return _enter(failed, Stage.FINISHED, now), (Effect.REMOVE,)
            if run.fate is Fate.RESTAGED:
                return _enter(failed, Stage.RESTAGED, now), (Effect.REPORT,)
            if not run.has_started:
                return _enter(failed, Stage.FINALIZING, now), (Effect.REPORT,)
            return _enter(failed, Stage.UPLOADING_RESULTS, now), (Effect.UPLOAD,)
        case GiveBack():
            if run.fate is Fate.KEPT:
                return replace(run, fate=Fate.RESTAGED), ()
        case Revoked() | Finalized():
            return replace(run, fate=Fate.REVOKED), ()
    return run, ()


def _uploading(run: Run, event: Event, now: float) -> Step:
    match event:
        case Uploaded():
            return _enter(run, Stage.FINALIZING, now), (Effect.REPORT,)
        case NotUploaded(reason):
            failed = replace(run, failure_message=run.failure_message or reason)
            return _enter(failed, Stage.FINALIZING, now), (Effect.REPORT,)
        case KillRequested(reason):
            failed = replace(run, failure_message=run.failure_message or reason)
            return _enter(failed, Stage.FINALIZING, now), (Effect.CANCEL, Effect.REPORT)
        case GiveBack():
            entered = _enter(run, Stage.RESTAGED, now, fate=Fate.RESTAGED)
            return entered, (Effect.CANCEL, Effect.REPORT)
        case Revoked() | Finalized():
            entered = _enter(run, Stage.FINISHED, now, fate=Fate.REVOKED)
            return entered, (Effect.CANCEL, Effect.REMOVE)
    return run, ()


def _finalizing(run: Run, event: Event, now: float) -> Step:
    match event:
        case Finalized() | Revoked():
            return _enter(run, Stage.FINISHED, now), (Effect.REMOVE,)
        case KillRequested():
            # The server may not have seen the end yet: it hears it again.
            return run, (Effect.REPORT,)
    return run, ()


def signal_message(exitcode: int) -> str | None:
    """A sentence for the end by a signal; None for an exit of the command's own.

    Shells say 128 + n for signal n, and so do commands on behalf of theirs: it is reported so too.
    """
    try:
        number = signal.Signals(exitcode - 128)
    except ValueError:
        return None
    return f"Killed by signal {number.name} ({number.value})"
