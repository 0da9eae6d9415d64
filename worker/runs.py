"""The runs that a worker holds: events for each, and the effects of its steps carried out.

What the server says and hears of them is the business of worker.worker.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from bundles.client import Client
from bundles.model import State
from worker import records, shared
from worker.dependencies import Cache
from worker.devices import assign
from worker.held import Held
from worker.limits import disk_exceeded, out_of_memory
from worker.links import remove_links
from worker.loop import Loop, Outcome, Pool, Timer
from worker.preparation import Preparation
from worker.runtimes.base import Attachment, CannotStart, End, Ended, Failed, Gone, Runtime
from worker.settings import Settings
from worker.stages import (
    REPORTED_STATES,
    CleanedUp,
    Effect,
    Event,
    Exited,
    GiveBack,
    HeldBack,
    LimitExceeded,
    Lost,
    NotStarted,
    NotUploaded,
    Run,
    Stage,
    Started,
    step,
)
from worker.trees import make_readable, measure_tree, remove_tree
from worker.uploads import Cancelled, Sending, upload
from worker.watch import Watch

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.5
"""Between asking the processes of a run to end, and ending them."""

RuntimeFactory = Callable[[Loop, Ended], Runtime]


class Messenger(Protocol):
    """Who tells others of the runs: ``now`` for news that someone waits for, ``soon`` for news
    that have time, ``refresh`` for figures."""

    def now(self) -> None: ...

    def soon(self) -> None: ...

    def refresh(self) -> None: ...


class Runs:
    """For the loop's thread. What takes time is done in pools of threads, which post what it came
    to; each post is an event for one run (worker.stages)."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        loop: Loop,
        make_runtime: RuntimeFactory,
        reporter: Messenger,
        removed: Callable[[], None],
        *,
        now: Callable[[], float],
    ) -> None:
        """``removed`` is called whenever nothing is left of a run."""
        settings.runs_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.held: dict[str, Held] = {}
        self.concerned: Held | None = None
        """The run of the event that is being dealt with."""
        self.may_start = True
        self._is_heard = False
        self.runtime = make_runtime(loop, self._ended)
        self.cache = Cache(
            settings.work_directory,
            client,
            loop,
            quota_bytes=settings.max_work_dir_bytes,
            max_retries=settings.download_retries,
        )
        self.chores = Pool(loop, "chores", 4)
        self._settings = settings
        self._client = client
        self._loop = loop
        self._reporter = reporter
        self._removed_one = removed
        self._now = now
        self._refreshing: Timer | None = None
        self._uploads = Pool(loop, "uploads", 8)
        self._watch = Watch(loop, self.runtime, self.chores, self._exceeded, now=now)
        self._preparation = Preparation(
            settings, self.runtime, self.cache, loop, self.chores, self._prepared
        )

    def accept(self, run: Run) -> Held:
        """A new run. Raises OSError when it cannot be written down."""
        if not self._settings.shared_file_system:
            run = replace(run, bundle=shared.without_locations(run.bundle))
        records.save(self._settings.runs_directory, run)
        held = Held(run, self._settings.runs_directory / run.key)
        self.held[run.key] = held
        return held

    def give_back(self, *stages: Stage) -> None:
        """End the runs that are in one of ``stages``; the server may have them run elsewhere."""
        given = [held for held in self.held.values() if held.run.stage in stages]
        if given:
            log.info("giving %d runs back", len(given))
        for held in given:
            self.apply(held, GiveBack())

    def resume(self, held: Held) -> None:
        """Take up a run of an earlier process of this worker where that one left it."""
        run = held.run
        match run.stage:
            case Stage.PREPARING:
                self.prepare(held)
            case Stage.RUNNING:
                assert run.process is not None
                held.has_spawned = True
                found = self.runtime.attach(self._preparation.job(held), run.process)
                if found is Attachment.ALIVE:
                    self._began(held)
                    if run.stopping:
                        self._stop(held)
            case Stage.CLEANING_UP:
                held.has_spawned = run.has_started
                self._carry_out(held, Effect.CLEAN_UP)
            case _:
                held.run = replace(run, cpus=(), gpus=())
                if run.stage is Stage.UPLOADING_RESULTS:
                    self._carry_out(held, Effect.UPLOAD)
                elif run.stage is Stage.FINISHED:
                    self._carry_out(held, Effect.REMOVE)
                # the first check-in tells of the others

    def heard(self) -> None:
        """The server knows this worker by the token it has now: what needs the server goes on.

        Before that it refuses a worker that came back with another token than it had when it
        was given the run.
        """
        if self._is_heard:
            return
        self._is_heard = True
        for held in list(self.held.values()):
            if held.run.stage is Stage.PREPARING:
                self.prepare(held)
            elif held.run.stage is Stage.UPLOADING_RESULTS and not held.is_shared:
                self._upload(held)

    def prepare(self, held: Held) -> None:
        """Get what the run needs, and start it; not before the server has heard of the worker."""
        if not self._is_heard:
            return
        self.concerned = held
        self._refresh_later()
        self._preparation.begin(held)

    def find(self, uuid: str, claim: int | None) -> Held | None:
        """The run of a bundle; with ``claim``, of that one only."""
        if claim is not None:
            held = self.held.get(f"{uuid}-{claim}")
            if held is not None:
                return held if held.run.stage is not Stage.FINISHED else None
            return None
        for held in self.held.values():
            if held.run.uuid == uuid and held.run.stage is not Stage.FINISHED:
                return held
        return None

    def newest(self) -> list[Held]:
        """What the server is told of: of each bundle the run with the latest claim."""
        newest: dict[str, Held] = {}
        for held in self.held.values():
            if held.run.stage in REPORTED_STATES:
                other = newest.get(held.run.uuid)
                if other is None or (other.run.claim or 0) < (held.run.claim or 0):
                    newest[held.run.uuid] = held
        return list(newest.values())

    def waiting_for(self, held: Held) -> str:
        """What a run waits for, for its owner; empty when it waits for nothing."""
        if held.run.stage is Stage.UPLOADING_RESULTS and held.sending is not None:
            return str(held.sending)
        return self._preparation.status(held)

    # Steps

    def apply(self, held: Held, event: Event) -> None:
        """Take the step that the event asks for: on disk first, then its effects."""
        self.concerned = held
        before = held.run
        run, effects = step(before, event, self._now())
        if run is not before:
            held.run = run
            try:
                records.save(self._settings.runs_directory, run)
            except OSError as error:
                # Everything but a start may be done anew from the state before (see _start).
                log.error("the state of %s cannot be written: %s", run.key, error)
            if run.stage is not before.stage:
                log.debug("%s: %s after %s", run.key, run.stage, type(event).__name__)
                self._left_stage(held)
        for effect in effects:
            self._carry_out(held, effect)

    def _left_stage(self, held: Held) -> None:
        held.status = ""
        held.cancel_timers()
        if not held.is_running:
            self._watch.end(held)

    def _carry_out(self, held: Held, effect: Effect) -> None:
        match effect:
            case Effect.CANCEL:
                self._cancel(held)
            case Effect.STOP:
                self._stop(held)
            case Effect.CLEAN_UP:
                self.chores.submit(partial(self._clean_up, held), partial(self._cleaned_up, held))
            case Effect.UPLOAD:
                self._upload(held)
            case Effect.REPORT:
                self._reporter.now()
            case Effect.MENTION:
                self._reporter.soon()
            case Effect.REMOVE:
                self.chores.submit(partial(remove_tree, held.place), partial(self._removed, held))

    def _cancel(self, held: Held) -> None:
        held.attempt += 1
        held.cancelled.set()
        held.cancelled = threading.Event()
        held.is_prepared = False
        self._preparation.withdraw(held)

    # Starting

    def _prepared(self, held: Held, failure: Exception | None) -> None:
        self.concerned = held
        if isinstance(failure, CannotStart):
            self.apply(held, NotStarted(str(failure)))
        elif failure is not None:
            raise failure
        else:
            held.is_prepared = True
            self._start(held)

    def _start_waiting(self) -> None:
        for held in list(self.held.values()):
            if held.is_prepared and held.run.stage is Stage.PREPARING:
                self._start(held)

    def _start(self, held: Held) -> None:
        self.concerned = held
        if not self.may_start:
            return
        resources = held.run.resources
        taken = [other.share for other in self.held.values()]
        share = assign(self._settings.devices, taken, resources.cpus, resources.gpus)
        if share is None:
            held.status = f"Waiting for {resources.cpus} cpus and {resources.gpus} gpus"
            return
        held.is_prepared = False
        try:
            held.has_spawned = True
            process = self.runtime.start(self._preparation.job(held, share))
        except CannotStart as error:
            held.has_spawned = False
            self.apply(held, NotStarted(str(error)))
            return
        run, _ = step(held.run, Started(process, share.cpus, share.gpus), self._now())
        try:
            records.save(self._settings.runs_directory, run)
        except OSError as error:
            # It is held at its door, and goes away when that is shut.
            self.runtime.stop(held.run.key, force=True)
            reason = f"Its start cannot be written down: {error.strerror}"
            self.apply(held, NotStarted(reason))
            return
        held.run = run
        self._left_stage(held)
        self.runtime.release(run.key)
        self._began(held)
        self._reporter.soon()

    # Running

    def _began(self, held: Held) -> None:
        self._watch.begin(held)
        self._refresh_later()

    def _refresh_later(self) -> None:
        if self._refreshing is None:
            self._refreshing = self._loop.call_later(
                self._settings.checkin_frequency_seconds, self._refresh
            )

    def _refresh(self) -> None:
        """Figures of what runs, and how far the others are, while there is any."""
        self._refreshing = None
        if self.held:
            self._refresh_later()
            self._reporter.refresh()

    def _stop(self, held: Held) -> None:
        key = held.run.key
        if held.is_forced:
            self.runtime.stop(key, force=True)
            return
        self.runtime.stop(key, force=False)
        held.timers.append(
            self._loop.call_later(GRACE_SECONDS, partial(self.runtime.stop, key, force=True))
        )

    def _exceeded(self, held: Held, sentence: str) -> None:
        self.apply(held, LimitExceeded(sentence))

    def _ended(self, key: str, end: End) -> None:
        """The runtime says that a command has ended."""
        held = self.held.get(key)
        if held is None or held.run.stage is not Stage.RUNNING:
            return
        if end.how is Gone.HELD_BACK:
            held.has_spawned = False
            self.runtime.forget(key)
            self.apply(held, HeldBack())
            if REPORTED_STATES[held.run.stage] is State.PREPARING:
                self.prepare(held)
        elif end.how is Gone.UNKNOWN:
            self.apply(held, Lost())
        elif isinstance(end.how, Failed):
            self.apply(held, NotStarted(end.how.reason))
            self.apply(held, HeldBack())
        else:
            assert isinstance(end.how, int)
            total = self._now() - held.started
            user = max(end.user_seconds, held.usage.user_seconds)
            system = max(end.system_seconds, held.usage.system_seconds)
            reason = out_of_memory(held.run.resources) if end.is_out_of_memory else None
            self.apply(held, Exited(end.how, (total, user, system), reason))

    # After it

    def _clean_up(self, held: Held) -> str | None:
        """In a thread: nothing of it is left; returns the sentence for a limit it had passed."""
        run = held.run
        if held.has_spawned:
            self.runtime.end_all(run.key, held.place)
        remove_tree(held.place / "tmp")
        if held.directory.is_symlink() or not held.directory.is_dir():
            # Gone, or something else was put in its place: what that leads to is not the run's.
            remove_tree(held.directory)
            held.directory.mkdir(mode=0o755)
        if os.geteuid() != 0:
            make_readable(held.directory)  # which modes do not keep root from
        dependencies = run.bundle.get("dependencies") or ()
        if dependencies:
            child_paths = [dependency["child_path"] for dependency in dependencies]
            place = self.runtime.dependency_paths(run.uuid) or self.cache.directory
            remove_links(held.directory, child_paths, place, *shared.places(run.bundle))
        if run.resources.disk_bytes and run.has_started:
            held.disk_bytes, _ = measure_tree(held.directory)
            return disk_exceeded(run.resources, held.disk_bytes)
        return None

    def _cleaned_up(self, held: Held, outcome: Outcome[str | None]) -> None:
        if outcome.error is not None:
            log.warning("cleaning up after %s: %s", held.run.key, outcome.error)
        self.runtime.forget(held.run.key)
        self.apply(held, CleanedUp(outcome.result))
        held.run = replace(held.run, cpus=(), gpus=())
        self._start_waiting()

    def _upload(self, held: Held) -> None:
        held.attempt += 1
        attempt = held.attempt
        run = held.run
        metadata = run.bundle.get("metadata") or {}

        def done(outcome: Outcome[Event]) -> None:
            if held.attempt != attempt or isinstance(outcome.error, Cancelled):
                return
            self.concerned = held
            self.apply(held, outcome.value)

        exclude = [str(pattern) for pattern in metadata.get("exclude_patterns") or ()]
        if held.is_shared:
            self._uploads.submit(partial(shared.leave, held.directory, exclude), done)
            return
        if not self._is_heard:
            return
        held.sending = Sending()
        self._refresh_later()
        self._uploads.submit(
            partial(
                upload,
                self._client,
                run.uuid,
                run.claim,
                held.directory,
                exclude=exclude,
                store=str(metadata.get("store") or ""),
                cancelled=held.cancelled,
                sending=held.sending,
            ),
            done,
        )

    def _removed(self, held: Held, outcome: Outcome[None]) -> None:
        if outcome.error is not None:
            log.warning("something of %s stays behind: %s", held.run.key, outcome.error)
        self.held.pop(held.run.key, None)
        self._removed_one()

    def stumbled(self, held: Held, error: Exception) -> None:
        """Something unforeseen happened to a run: it fails."""
        held.faults += 1
        if held.faults > 3:
            return
        reason = f"The worker failed: {type(error).__name__}: {error}"
        try:
            if held.run.stage is Stage.UPLOADING_RESULTS:
                self.apply(held, NotUploaded(reason))
            elif held.run.stage is Stage.CLEANING_UP:
                self.apply(held, CleanedUp(reason))
            else:
                self.apply(held, NotStarted(reason))
        except Exception:
            log.exception("and it cannot be failed either")
