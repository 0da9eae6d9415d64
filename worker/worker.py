"""The worker itself: events in, steps of runs, and their effects carried out.

Everything here happens in the loop's thread. What takes time is done in pools of threads, which
post what it came to; each post is an event for one run (worker.stages).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bundles.client import Client
from bundles.errors import BundlesError, UsageError
from bundles.exits import WorkerExit
from bundles.model import State
from worker import records
from worker.checkin import Reporter, Trouble
from worker.dependencies import Cache, DependencyFailed, Key
from worker.devices import Share, assign
from worker.held import Held
from worker.limits import disk_exceeded, out_of_memory
from worker.links import place_links, remove_links
from worker.loop import Loop, Outcome, Pool, Timer
from worker.messages import (
    FinalizedMessage,
    KillMessage,
    NetcatMessage,
    ReadMessage,
    RevokeMessage,
    RunMessage,
    Unreadable,
    WriteMessage,
    read_message,
)
from worker.report import describe_run
from worker.runtimes.base import (
    Attachment,
    CannotStart,
    End,
    Ended,
    Failed,
    Gone,
    Job,
    Runtime,
    mount_name,
)
from worker.settings import Settings
from worker.stages import (
    REPORTED_STATES,
    CleanedUp,
    Effect,
    Event,
    Exited,
    Finalized,
    GiveBack,
    HeldBack,
    KillRequested,
    LimitExceeded,
    Lost,
    NotStarted,
    NotUploaded,
    Revoked,
    Run,
    Stage,
    Started,
    step,
)
from worker.trees import measure_tree, remove_tree
from worker.uploads import Cancelled, upload
from worker.visits import Visits
from worker.watch import Watch

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.5
"""Between asking the processes of a run to end, and ending them."""

START_PATIENCE_SECONDS = 60.0
"""How long a worker without runs waits for a server at its start."""
AWAY_PATIENCE_SECONDS = 24 * 3600.0
"""How long one keeps its runs for a server that is away, or does not take its credentials."""
IDLE_AWAY_SECONDS = 60.0
"""How long an idle worker that should leave waits to say so to a server that is away."""
LAST_WORDS_SECONDS = 3.0
GIVE_BACK_SECONDS = 15.0
CHECKOUT_SECONDS = 5.0

RuntimeFactory = Callable[[Loop, Ended], Runtime]


class Worker:
    """One worker from its start to its end: ``run`` is its whole life."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        loop: Loop,
        make_runtime: RuntimeFactory,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._client = client
        self._loop = loop
        self._now = now
        self._hostname = socket.gethostname()
        self._held: dict[str, Held] = {}
        self._runs_started = 0
        self._idle_since = loop.clock()
        self._idle_timer: Timer | None = None
        self._refreshing: Timer | None = None
        self._is_started = False
        self._is_terminating = False
        self._is_idle_at_end = False
        self._is_leaving = False
        self._asked_to_start = 0
        self._exit = WorkerExit.FAILED
        self._concerned: Held | None = None
        settings.runs_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._runtime = make_runtime(loop, self._ended)
        self._cache = Cache(
            settings.work_directory,
            client,
            loop,
            quota_bytes=settings.max_work_dir_bytes,
            max_retries=settings.download_retries,
        )
        self._chores = Pool(loop, "chores", 4)
        self._uploads = Pool(loop, "uploads", 8)
        self._requests = Pool(loop, "requests", 2)
        self._visits = Visits(client, loop, settings.worker_id, self._runtime.address)
        self._watch = Watch(loop, self._runtime, self._chores, self._exceeded, now=now)
        self._reporter = Reporter(
            client,
            loop,
            settings.worker_id,
            self,
            frequency_seconds=settings.checkin_frequency_seconds,
        )

    def run(self) -> WorkerExit:
        """Work until there is a reason to leave; returns that reason."""
        self._recover()
        self._chores.submit(self._cache.sweep, self._swept)
        self._reporter.now()
        self._loop.run(self.stumbled)
        self._runtime.close()
        return self._exit

    @property
    def holds_runs(self) -> bool:
        """Whether there are runs to come back to."""
        return bool(self._held)

    # What was there before

    def _recover(self) -> None:
        """Take up the runs of an earlier process of this worker."""
        for place in sorted(self._settings.runs_directory.iterdir()):
            try:
                run = records.load(place)
            except records.TornRecord as error:
                log.error("a run is lost, and will be staged again: %s", error)
                self._chores.submit(partial(self._obliterate, place), self._swept)
                continue
            held = self._held[run.key] = Held(run, place)
            self._resume(held)
        self._runtime.sweep(list(self._held))
        if self._held:
            log.info("carrying on with %d runs", len(self._held))

    def _obliterate(self, place: Path) -> None:
        self._runtime.end_all(place.name, place)
        remove_tree(place)

    def _resume(self, held: Held) -> None:
        run = held.run
        match run.stage:
            case Stage.PREPARING:
                self._prepare(held)
            case Stage.RUNNING:
                assert run.process is not None
                held.has_spawned = True
                found = self._runtime.attach(self._job(held), run.process)
                if found is Attachment.ALIVE:
                    self._began(held)
                    if run.stopping:
                        self._stop(held)
            case Stage.CLEANING_UP:
                held.has_spawned = run.has_started
                self._carry_out(held, Effect.CLEAN_UP)
            case Stage.UPLOADING_RESULTS:
                self._carry_out(held, Effect.UPLOAD)
            case Stage.FINISHED:
                self._carry_out(held, Effect.REMOVE)
            case Stage.FINALIZING | Stage.RESTAGED:
                pass  # the first check-in says it

    def _swept(self, outcome: Outcome[None]) -> None:
        if outcome.error is not None:
            log.warning("something of an earlier run stays behind: %s", outcome.error)

    # Steps

    def _apply(self, held: Held, event: Event) -> None:
        self._concerned = held
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
                self._chores.submit(partial(self._clean_up, held), partial(self._cleaned_up, held))
            case Effect.UPLOAD:
                self._upload(held)
            case Effect.REPORT:
                self._reporter.now()
            case Effect.MENTION:
                self._reporter.soon()
            case Effect.REMOVE:
                self._chores.submit(partial(remove_tree, held.place), partial(self._removed, held))

    def _cancel(self, held: Held) -> None:
        held.attempt += 1
        held.cancelled.set()
        held.cancelled = threading.Event()
        for key, done in held.waits_for.items():
            self._cache.withdraw(key, done)
        held.waits_for.clear()
        held.is_prepared = False
        self._runtime.withdraw(held.run.key)

    # Preparing

    def _accept(self, message: RunMessage) -> None:
        """A new run. Raises OSError when it cannot be written down: the message comes again."""
        run = Run(
            message.uuid, message.claim, message.bundle, message.resources, accepted=self._now()
        )
        if run.key in self._held:
            return
        for other in [h for h in self._held.values() if h.run.uuid == run.uuid]:
            if (other.run.claim or 0) > (run.claim or 0):
                return
            self._apply(other, Revoked())
        records.save(self._settings.runs_directory, run)
        held = Held(run, self._settings.runs_directory / run.key)
        self._held[run.key] = held
        self._runs_started += 1
        self._note_work()
        self._reporter.soon()
        if message.fault is not None:
            self._apply(held, NotStarted(message.fault))
        else:
            self._prepare(held)

    def _prepare(self, held: Held) -> None:
        """Make its directory, and get what it depends on."""
        self._concerned = held
        try:
            remove_tree(held.directory)
            held.directory.mkdir(mode=0o755)
        except OSError as error:
            self._apply(held, NotStarted(f"Its directory cannot be made: {error.strerror}"))
            return
        held.is_equipped = held.are_links_placed = False
        attempt = held.attempt

        def equipped(failure: CannotStart | None) -> None:
            if held.attempt != attempt or held.run.stage is not Stage.PREPARING:
                return
            if failure is not None:
                self._apply(held, NotStarted(str(failure)))
                return
            held.is_equipped = True
            self._prepared(held)

        self._runtime.prepare(self._job(held), equipped)
        keys = list(dict.fromkeys(records.dependency_keys(held.run.bundle)))
        held.waits_for = {key: partial(self._fetched, held, key) for key in keys}
        held.contents.clear()
        for key, done in list(held.waits_for.items()):
            if key in held.waits_for:
                self._cache.request(key, done)
        if not keys:
            held.are_links_placed = True
            self._prepared(held)

    def _fetched(self, held: Held, key: Key, result: Path | DependencyFailed) -> None:
        if held.waits_for.pop(key, None) is None:
            return
        if isinstance(result, DependencyFailed):
            self._apply(held, NotStarted(str(result)))
            return
        held.contents[key] = result
        if held.waits_for:
            return
        contents = self._contents(held)
        root = self._runtime.dependency_paths(held.run.uuid)
        shown = {path: root / mount_name(path) for path in contents} if root else None
        attempt = held.attempt

        def done(outcome: Outcome[None]) -> None:
            if held.attempt != attempt or held.run.stage is not Stage.PREPARING:
                return
            if isinstance(outcome.error, OSError | UsageError):
                reason = f"A dependency cannot be linked: {outcome.error}"
                self._apply(held, NotStarted(reason))
                return
            self._concerned = held
            outcome.value  # noqa: B018 - raises what was not foreseen
            held.are_links_placed = True
            self._prepared(held)

        self._chores.submit(partial(place_links, held.directory, contents, shown), done)

    def _contents(self, held: Held) -> dict[str, Path]:
        """What it depends on, as far as that was fetched, by child path."""
        keyed = {
            dependency["child_path"]: (
                dependency["parent_uuid"],
                dependency.get("parent_path") or "",
            )
            for dependency in held.run.bundle.get("dependencies") or ()
        }
        return {path: held.contents[key] for path, key in keyed.items() if key in held.contents}

    def _prepared(self, held: Held) -> None:
        if held.is_equipped and held.are_links_placed:
            held.is_prepared = True
            self._start(held)

    def _start_waiting(self) -> None:
        for held in list(self._held.values()):
            if held.is_prepared and held.run.stage is Stage.PREPARING:
                self._start(held)

    def _start(self, held: Held) -> None:
        self._concerned = held
        if self._is_leaving:
            return
        resources = held.run.resources
        taken = [other.share for other in self._held.values()]
        share = assign(self._settings.devices, taken, resources.cpus, resources.gpus)
        if share is None:
            held.status = f"Waiting for {resources.cpus} cpus and {resources.gpus} gpus"
            return
        held.is_prepared = False
        try:
            held.has_spawned = True
            process = self._runtime.start(self._job(held, share))
        except CannotStart as error:
            held.has_spawned = False
            self._apply(held, NotStarted(str(error)))
            return
        run, _ = step(held.run, Started(process, share.cpus, share.gpus), self._now())
        try:
            records.save(self._settings.runs_directory, run)
        except OSError as error:
            # It is held at its door, and goes away when that is shut.
            self._runtime.stop(held.run.key, force=True)
            reason = f"Its start cannot be written down: {error.strerror}"
            self._apply(held, NotStarted(reason))
            return
        held.run = run
        self._left_stage(held)
        self._runtime.release(run.key)
        self._began(held)
        self._reporter.soon()

    def _job(self, held: Held, share: Share | None = None) -> Job:
        share = share or held.share
        devices = self._settings.devices
        return Job(
            key=held.run.key,
            uuid=held.run.uuid,
            command=held.run.bundle["command"],
            place=held.place,
            directory=held.directory,
            cpus=share.cpus if devices.is_pinned else (),
            gpus=share.gpus if devices.gpus else None,
            read_only=self._cache.contents if held.run.bundle.get("dependencies") else None,
            image=held.run.resources.docker_image,
            contents=self._contents(held),
            memory_bytes=held.run.resources.memory_bytes,
            network=held.run.resources.network,
        )

    # Running

    def _began(self, held: Held) -> None:
        self._watch.begin(held)
        if self._refreshing is None:
            self._refreshing = self._loop.call_later(
                self._settings.checkin_frequency_seconds, self._refresh
            )

    def _refresh(self) -> None:
        """Figures of what runs, while anything does."""
        self._refreshing = None
        if self._held:
            self._refreshing = self._loop.call_later(
                self._settings.checkin_frequency_seconds, self._refresh
            )
            self._reporter.refresh()

    def _stop(self, held: Held) -> None:
        key = held.run.key
        if held.is_forced:
            self._runtime.stop(key, force=True)
            return
        self._runtime.stop(key, force=False)
        held.timers.append(
            self._loop.call_later(GRACE_SECONDS, partial(self._runtime.stop, key, force=True))
        )

    def _exceeded(self, held: Held, sentence: str) -> None:
        self._apply(held, LimitExceeded(sentence))

    def _ended(self, key: str, end: End) -> None:
        """The runtime says that a command has ended."""
        held = self._held.get(key)
        if held is None or held.run.stage is not Stage.RUNNING:
            return
        if end.how is Gone.HELD_BACK:
            held.has_spawned = False
            self._runtime.forget(key)
            self._apply(held, HeldBack())
            if REPORTED_STATES[held.run.stage] is State.PREPARING:
                self._prepare(held)
        elif end.how is Gone.UNKNOWN:
            self._apply(held, Lost())
        elif isinstance(end.how, Failed):
            self._apply(held, NotStarted(end.how.reason))
            self._apply(held, HeldBack())
        else:
            assert isinstance(end.how, int)
            total = self._now() - held.started
            user = max(end.user_seconds, held.usage.user_seconds)
            system = max(end.system_seconds, held.usage.system_seconds)
            reason = out_of_memory(held.run.resources) if end.is_out_of_memory else None
            self._apply(held, Exited(end.how, (total, user, system), reason))

    # After it

    def _clean_up(self, held: Held) -> str | None:
        """In a thread: nothing of it is left; returns the sentence for a limit it had passed."""
        run = held.run
        if held.has_spawned:
            self._runtime.end_all(run.key, held.place)
        remove_tree(held.place / "tmp")
        dependencies = run.bundle.get("dependencies") or ()
        if dependencies:
            child_paths = [dependency["child_path"] for dependency in dependencies]
            place = self._runtime.dependency_paths(run.uuid) or self._cache.directory
            remove_links(held.directory, child_paths, place)
        if run.resources.disk_bytes and run.has_started:
            held.disk_bytes, _ = measure_tree(held.directory)
            return disk_exceeded(run.resources, held.disk_bytes)
        return None

    def _cleaned_up(self, held: Held, outcome: Outcome[str | None]) -> None:
        if outcome.error is not None:
            log.warning("cleaning up after %s: %s", held.run.key, outcome.error)
        self._runtime.forget(held.run.key)
        self._apply(held, CleanedUp(outcome.result))
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
            self._concerned = held
            self._apply(held, outcome.value)

        self._uploads.submit(
            partial(
                upload,
                self._client,
                run.uuid,
                run.claim,
                held.directory,
                exclude=[str(p) for p in metadata.get("exclude_patterns") or ()],
                store=str(metadata.get("store") or ""),
                cancelled=held.cancelled,
            ),
            done,
        )

    def _removed(self, held: Held, outcome: Outcome[None]) -> None:
        if outcome.error is not None:
            log.warning("something of %s stays behind: %s", held.run.key, outcome.error)
        self._held.pop(held.run.key, None)
        if not self._held:
            self._idle_since = self._loop.clock()
        self._consider_leaving()

    # What the server says

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """See worker.checkin.Speaker."""
        settings = self._settings
        newest: dict[str, Held] = {}
        for held in self._held.values():
            if held.run.stage in REPORTED_STATES:
                other = newest.get(held.run.uuid)
                if other is None or (other.run.claim or 0) < (held.run.claim or 0):
                    newest[held.run.uuid] = held
        runs = [
            describe_run(
                held,
                worker_id=settings.worker_id,
                fetching=self._fetching(held),
                now=self._now(),
                every_stage=not self._reporter.is_batch,
            )
            for held in newest.values()
        ]
        remaining = 999_999_999
        if settings.exit_after_num_runs is not None:
            remaining = max(0, settings.exit_after_num_runs - self._runs_started)
        document = {
            "tag": settings.tag,
            "group_name": settings.group,
            "cpus": len(settings.devices.cpus),
            "gpus": len(settings.devices.gpus),
            "memory_bytes": settings.memory_bytes,
            "free_disk_bytes": _free_bytes(settings.work_directory),
            "dependencies": [list(key) for key in self._cache.held_keys()],
            "hostname": self._hostname,
            "runs": runs,
            "shared_file_system": False,
            "tag_exclusive": settings.tag_exclusive,
            "exit_after_num_runs": remaining,
            "is_terminating": self._is_terminating or self._is_leaving,
            "preemptible": settings.preemptible,
        }
        states = {held.run.key: str(held.run.stage) for held in newest.values()}
        return document, states

    def _fetching(self, held: Held) -> str | None:
        fetches = [self._cache.fetches[k] for k in held.waits_for if k in self._cache.fetches]
        if fetches:
            return str(fetches[0])
        return self._runtime.status(held.run.key) or None

    def receive(self, document: Any) -> None:
        """See worker.checkin.Speaker. Raises OSError when the effect cannot be on disk now."""
        try:
            message = read_message(document)
        except Unreadable as error:
            log.warning("a message is left aside: %s", error)
            return
        self._concerned = None
        if isinstance(message, RunMessage):
            if self._is_leaving or self._is_terminating:
                return  # it is staged again by the check-out, or for not being listed
            if message.claim is None and not self._reporter.is_batch:
                self._ask_to_start(message)
            else:
                self._accept(message)
            return
        held = self._find(message.uuid, message.claim)
        match message:
            case KillMessage(reason=reason):
                if held is not None:
                    self._apply(held, KillRequested(reason))
            case FinalizedMessage():
                if held is not None:
                    self._apply(held, Finalized())
            case RevokeMessage():
                if held is not None:
                    self._apply(held, Revoked())
            case WriteMessage():
                if held is not None:
                    self._visits.write(held, message)
            case ReadMessage() | NetcatMessage():
                self._visits.answer(held, message)

    def _find(self, uuid: str, claim: int | None) -> Held | None:
        if claim is not None:
            held = self._held.get(f"{uuid}-{claim}")
            if held is not None:
                return held if held.run.stage is not Stage.FINISHED else None
            return None
        for held in self._held.values():
            if held.run.uuid == uuid and held.run.stage is not Stage.FINISHED:
                return held
        return None

    def _ask_to_start(self, message: RunMessage) -> None:
        """A server without claims wants to be asked whether the run is still ours."""

        def done(outcome: Outcome[bool]) -> None:
            self._asked_to_start -= 1
            if isinstance(outcome.error, BundlesError):
                log.warning("%s is not started: %s", message.uuid, outcome.error)
            elif outcome.value:
                self._accept(message)
                self._reporter.soon()
                if self._is_terminating:
                    self._let_go()
            self._consider_leaving()

        self._asked_to_start += 1
        self._requests.submit(
            partial(
                self._client.start_bundle,
                self._settings.worker_id,
                message.uuid,
                self._hostname,
                int(self._now()),
            ),
            done,
        )

    def confirmed(self, states: Mapping[str, str]) -> None:
        """See worker.checkin.Speaker."""
        if not self._is_started:
            self._is_started = True
            log.info("Worker started!")
            if self._reporter.is_batch:
                self._consider_leaving()
        if not self._reporter.is_batch:
            # The same reply may bring a run: whether to leave is considered after that.
            for key, stage in states.items():
                held = self._held.get(key)
                if held is not None and stage == held.run.stage == Stage.RESTAGED:
                    self._apply(held, Finalized())

    def listened(self) -> None:
        """See worker.checkin.Speaker."""
        self._consider_leaving()

    def troubled(self, trouble: Trouble, error: BundlesError) -> None:
        """See worker.checkin.Speaker."""
        if self._is_leaving:
            return
        since = self._reporter.failing_since
        lasted = self._loop.clock() - since if since is not None else 0.0
        is_new = not self._reporter.has_answered and not self._held
        if trouble is Trouble.REPLACED:
            log.error("this worker stops: %s", error)
            self._give_up_runs(WorkerExit.REPLACED)
        elif trouble is Trouble.UNAUTHORIZED and (is_new or lasted > AWAY_PATIENCE_SECONDS):
            self._give_up(WorkerExit.UNAUTHORIZED, error)
        elif trouble is Trouble.REFUSED and is_new:
            self._give_up(WorkerExit.USAGE, error)
        elif trouble is Trouble.AWAY and lasted > (
            START_PATIENCE_SECONDS if is_new else AWAY_PATIENCE_SECONDS
        ):
            self._give_up(WorkerExit.UNREACHABLE, error)
        else:
            self._consider_leaving()

    # Leaving

    def terminate(self) -> None:
        """A signal asks the worker to end. The second one is not argued with."""
        if self._is_terminating or self._is_leaving:
            self._finish(WorkerExit.TERMINATED)
            return
        self._is_terminating = True
        if all(held.run.stage is Stage.FINISHED for held in self._held.values()):
            self._is_idle_at_end = True
            self._consider_leaving()  # or once the last one is removed
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Give the runs back, or leave them as they are, as the options say, and leave."""
        if self._settings.pass_down_termination:
            log.info("giving %d runs back", len(self._held))
            for held in list(self._held.values()):
                self._apply(held, GiveBack())
            self._reporter.now()
            self._loop.call_later(
                GIVE_BACK_SECONDS, partial(self._check_out, "terminated", WorkerExit.TERMINATED)
            )
        else:
            log.info("leaving %d runs as they are: start this worker again", len(self._held))
            self._say_last_words(WorkerExit.TERMINATED)

    def _say_last_words(self, code: WorkerExit) -> None:
        self._is_leaving = True
        self._reporter.last_words(partial(self._finish, code))
        self._loop.call_later(LAST_WORDS_SECONDS, partial(self._finish, code))

    def _give_up(self, code: WorkerExit, error: BundlesError) -> None:
        log.error("%s", error)
        self._is_leaving = True
        self._finish(code)

    def _give_up_runs(self, code: WorkerExit) -> None:
        self._is_leaving = True
        self._exit = code
        self._reporter.close()
        for held in list(self._held.values()):
            self._apply(held, Revoked())
        if not self._held:
            self._finish(code)
        self._loop.call_later(GIVE_BACK_SECONDS, partial(self._finish, code))

    def _note_work(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _consider_leaving(self) -> None:
        if self._held or self._asked_to_start:
            return
        if self._is_leaving:
            if self._exit is WorkerExit.REPLACED:
                self._finish(self._exit)
            return
        settings = self._settings
        if self._is_terminating:
            was_idle = self._is_idle_at_end
            code = WorkerExit.FINISHED if was_idle else WorkerExit.TERMINATED
            self._check_out("terminated", code)
            return
        if (
            settings.exit_after_num_runs is not None
            and self._runs_started >= settings.exit_after_num_runs
        ):
            if self._reporter.may_stop_listening:
                self._check_out("it ran as many bundles as it should", WorkerExit.FINISHED)
            return
        if not settings.exit_when_idle or not self._is_started:
            return
        idle = self._loop.clock() - self._idle_since
        since = self._reporter.failing_since
        needed = settings.idle_seconds
        if since is not None:
            # A server that comes back may have work, and wants to hear that we leave.
            needed = max(needed, since - self._idle_since + IDLE_AWAY_SECONDS)
        if idle >= needed:
            if self._reporter.may_stop_listening:
                self._check_out("idle", WorkerExit.FINISHED)
            return
        self._note_work()
        self._idle_timer = self._loop.call_later(needed - idle, self._consider_leaving)

    def _check_out(self, reason: str, code: WorkerExit) -> None:
        """Tell the server that we leave, and leave, whether it hears it or not."""
        if self._is_leaving:
            return
        self._is_leaving = True
        log.info("leaving: %s", reason)
        if "checkout" not in self._client.features:
            # A CodaLab server gives no more bundles to a worker that says it terminates.
            self._say_last_words(code)
            return
        self._reporter.close()
        session = self._reporter.session

        def done(outcome: Outcome[list[str]]) -> None:
            if isinstance(outcome.error, BundlesError):
                log.warning("the server does not know that this worker left: %s", outcome.error)
            self._finish(code)

        self._requests.submit(
            partial(self._client.checkout, self._settings.worker_id, session, reason), done
        )
        self._loop.call_later(CHECKOUT_SECONDS, partial(self._finish, code))

    def _finish(self, code: WorkerExit) -> None:
        self._is_leaving = True
        self._exit = code
        self._reporter.close()
        self._loop.stop()

    def stumbled(self, error: Exception) -> None:
        """Something unforeseen: the run that it happened to fails, the others go on."""
        held, self._concerned = self._concerned, None
        log.error("something unforeseen happened", exc_info=error)
        if self._settings.exit_on_exception:
            self._say_last_words(WorkerExit.FAILED)
            return
        if held is None or held.run.key not in self._held:
            return
        held.faults += 1
        if held.faults > 3:
            return
        reason = f"The worker failed: {type(error).__name__}: {error}"
        try:
            if held.run.stage is Stage.UPLOADING_RESULTS:
                self._apply(held, NotUploaded(reason))
            elif held.run.stage is Stage.CLEANING_UP:
                self._apply(held, CleanedUp(reason))
            else:
                self._apply(held, NotStarted(reason))
        except Exception:
            log.exception("and it cannot be failed either")


def _free_bytes(directory: Path) -> int:
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
