"""The server's books: every bundle that has not ended, every worker, and how they change.

Owned by one thread (desk.py). An operation validates first and then changes the books; what it
changed is noted here and written by records.py when the batch of operations ends. If that fails
the books are thrown away and read again, so nothing here has to be undone. No SQL, no sockets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bundles.model import FINAL_STATES, State
from bundles.server.accounts import Accounts
from bundles.server.entries import (
    GENERATED_METADATA,
    LASTING_METADATA,
    LOST_WITH,
    Effects,
    Entry,
    Lease,
    Letter,
    Past,
    Taken,
    Worker,
)
from bundles.server.lifecycle import may_follow, parents_verdict
from bundles.server.scheduler import Offer, Scheduler
from bundles.server.store import location_of_run

log = logging.getLogger(__name__)

START_SECONDS = 10.0
"""A worker without claims must ask to start a bundle this long after it was given to it."""
POLL_SECONDS = 5.0
"""How long a check-in of CodaLab's own worker is held, and how long it counts as polling."""
VERDICTS_A_BATCH = 500
"""``staged_status`` sentences written in one go, so that they never delay a match for long."""
FORMER_SESSIONS = 20
RETIRED_SESSIONS = 10_000
DISK_STEP_BYTES = 64 * 1024**2

SUSPICIOUS_LOSSES = 3
"""From so many on a bundle may be what ends its workers, and goes behind others for a while."""
DEFERRED_SECONDS = 60.0
"""How long, after that many losses; twice as long after each one more."""
LONGEST_DEFERRED_SECONDS = 3600.0


class Reader(Protocol):
    """What an operation may ask of the database: what is not in the books."""

    def find_bundles(self, uuids: Iterable[str]) -> dict[str, Past]: ...

    def children_of(self, uuids: Iterable[str]) -> dict[str, set[str]]: ...

    def row(self, uuid: str) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class Clock:
    """``wall``: seconds since the epoch. ``monotonic``: for leases and deadlines."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Books:
    """All of it. Operations call its methods; only its own thread may."""

    def __init__(
        self, reader: Reader, clock: Clock, worker_timeout_seconds: float, max_losses: int
    ) -> None:
        self.reader = reader
        self.clock = clock
        self.worker_timeout_seconds = worker_timeout_seconds
        self.max_losses = max_losses
        self.accounts = Accounts()
        self.entries: dict[str, Entry] = {}
        self.workers: dict[str, Worker] = {}
        self.leases: dict[tuple[str, str], Lease] = {}
        """By user id and name."""
        self.children: dict[str, set[str]] = {}
        self.scheduler = Scheduler()
        self.live: dict[str, dict[str, Any]] = {}
        """The latest figures of running bundles, as metadata; written with the next transition."""
        self.next_bundle_id = 1
        self.next_transition_id = 1
        self._letters = 0
        self._verdicts: dict[str, str | None] = {}
        self._unsettled: list[Entry] = []
        self._deferred: dict[str, Entry] = {}
        self._retired: dict[tuple[str, str], None] = {}
        self.tick()
        self.start_batch()

    def start_batch(self) -> None:
        """Nothing has changed yet."""
        self.new: dict[str, Entry] = {}
        self.dirty: dict[str, Entry] = {}
        self.ended: list[Entry] = []
        self.deleted: dict[str, int] = {}
        self.changed_workers: dict[str, Worker | None] = {}
        self.statements: list[tuple[Any, list[dict[str, Any]]]] = []
        self.effects = Effects()

    def tick(self) -> None:
        """Look at the clock: an operation sees one time."""
        self.now = self.clock.wall()
        self.instant = self.clock.monotonic()

    # Bundles

    def find(self, uuid: str) -> Past | None:
        """A bundle in brief, wherever it is."""
        return self.find_all([uuid]).get(uuid)

    def find_all(self, uuids: Iterable[str]) -> dict[str, Past]:
        """Bundles in brief: from the books, which are ahead of the database, or from there."""
        found: dict[str, Past] = {}
        missing: list[str] = []
        for uuid in uuids:
            entry = self.entries.get(uuid)
            if entry is not None:
                found[uuid] = entry.past()
            elif uuid not in self.deleted:
                missing.append(uuid)
        if missing:
            found.update(self.reader.find_bundles(missing))
        return found

    def add(self, entry: Entry) -> None:
        """A new bundle, in its first state; one that waits for nothing is staged by ``settle``."""
        self.entries[entry.uuid] = entry
        self.new[entry.uuid] = entry
        self._note(entry, None, "")

    def restore(self, entry: Entry) -> None:
        """A bundle as the database has it, when the books are read."""
        self.entries[entry.uuid] = entry
        entry.runs_alone = self._is_to_run_alone(entry)
        if entry.state is State.CREATED:
            self._index_parents(entry)
        elif entry.state is State.STAGED:
            self._stage(entry)
        elif entry.is_assigned and entry.worker_id is not None:
            worker = self.workers.get(entry.worker_id)
            if worker is not None:
                worker.assigned.add(entry.uuid)
                self.scheduler.occupy(worker.id, entry.uuid, entry.need())
                entry.is_acknowledged = entry.state is not State.STARTING

    def settle(self, entry: Entry) -> None:
        """Stage a created bundle, or fail it, if its parents allow a verdict; else let it wait."""
        if entry.state is not State.CREATED:
            return
        allow_failed = bool(entry.metadata.get("allow_failed_dependencies"))
        verdict, parent_uuid = parents_verdict(entry.parents, allow_failed)
        if verdict is None:
            self._index_parents(entry)
        elif verdict is State.STAGED:
            self.move(entry, State.STAGED)
        else:
            assert parent_uuid is not None
            state = entry.parents[parent_uuid]
            past = self.find(parent_uuid)
            name = f"{past.name} " if past and past.name else ""
            end = "was killed" if state is State.KILLED else "failed"
            self.end(entry, State.FAILED, f"The bundle that it depends on, {name}({parent_uuid}), "
                     f"{end}; --allow-failed-dependencies would run it all the same.")  # fmt: skip

    def _index_parents(self, entry: Entry) -> None:
        for uuid, state in entry.parents.items():
            if state not in FINAL_STATES:
                self.children.setdefault(uuid, set()).add(entry.uuid)

    def touch(self, entry: Entry) -> None:
        """Something of the bundle changed: write it with this batch."""
        if entry.uuid not in self.new:
            self.dirty[entry.uuid] = entry

    def move(self, entry: Entry, state: State, reason: str = "") -> None:
        """The one way in which a bundle changes its state."""
        before = entry.state
        if not may_follow(before, state):
            raise RuntimeError(f"{entry.uuid} cannot go from {before} to {state}")
        if before is State.STAGED:
            self.scheduler.remove(entry.uuid)
            self._deferred.pop(entry.uuid, None)
            entry.staged_status = entry.deferred_until = None
        entry.state = state
        figures = self.live.get(entry.uuid)
        if figures:
            entry.metadata = {**entry.metadata, **figures}
        self._note(entry, before, reason)
        self.touch(entry)
        if state is State.STAGED:
            self._stage(entry)
            verdict = self.scheduler.verdict(entry.uuid)
            if verdict is not None:
                self._verdicts[entry.uuid] = verdict
        elif state in FINAL_STATES:
            self._ended(entry)

    def _is_to_run_alone(self, entry: Entry) -> bool:
        """As many losses as it has left must be nobody else's fault."""
        return len(entry.lost_with) >= max(1, self.max_losses // 2)

    def _stage(self, entry: Entry) -> None:
        entry.runs_alone = self._is_to_run_alone(entry)
        more = len(entry.lost_with) - SUSPICIOUS_LOSSES
        if more >= 0:
            # So many doublings are far beyond the longest: more would not fit a float.
            seconds = min(DEFERRED_SECONDS * 2.0 ** min(more, 30), LONGEST_DEFERRED_SECONDS)
            entry.deferred_until = self.instant + seconds
            self._deferred[entry.uuid] = entry
        self.scheduler.add(entry.waiting())

    def end(self, entry: Entry, state: State, failure_message: str | None = None) -> None:
        """Move to a final state, with the reason where people look for it."""
        if failure_message:
            entry.metadata = {**entry.metadata, "failure_message": failure_message}
        self.move(entry, state, failure_message or "")

    def _ended(self, entry: Entry) -> None:
        self.live.pop(entry.uuid, None)
        self.ended.append(entry)
        self._leave_worker(entry)
        entry.kill_message = None
        # One end may be the end of thousands in a row, each the child of the one before: they
        # are taken from a list, since calls that deep would break the stack.
        self._unsettled.append(entry)
        if len(self._unsettled) == 1:
            for parent in self._unsettled:  # grows while it is gone through
                self._settle_children(parent)
            self._unsettled.clear()

    def _settle_children(self, parent: Entry) -> None:
        for uuid in sorted(self.children.pop(parent.uuid, ())):
            child = self.entries.get(uuid)
            if child is not None and child.state is State.CREATED:
                child.parents[parent.uuid] = parent.state
                self.settle(child)

    def _note(self, entry: Entry, before: State | None, reason: str) -> None:
        self.effects.transitions.append(
            {
                "id": self.next_transition_id,
                "uuid": entry.uuid,
                "owner_id": entry.owner_id,
                "from_state": before,
                "to_state": entry.state,
                "time": self.now,
                "claim": entry.claim,
                "worker_id": entry.worker_id,
                "reason": reason,
            }
        )
        self.next_transition_id += 1

    def drop_contents(self, entry: Entry) -> None:
        """What was uploaded for a run that is not to be counts no more."""
        if entry.location is not None:
            self.effects.discards.append(entry.location)
            entry.location = entry.is_directory = entry.size_bytes = None

    # Assignments

    def assign(self, entry: Entry, worker: Worker) -> None:
        """Give a staged bundle to a worker: a new claim, and a letter that says so."""
        entry.claim += 1
        entry.worker_id, entry.session = worker.id, worker.session
        entry.is_acknowledged, entry.kill_sent = False, 0.0
        entry.start_by = None if worker.has_claims else self.instant + START_SECONDS
        if worker.facts.get("shared_file_system"):
            entry.location, entry.is_directory = location_of_run(entry.uuid, entry.claim), True
        worker.assigned.add(entry.uuid)
        self.scheduler.occupy(worker.id, entry.uuid, entry.need())
        self.move(entry, State.STARTING)
        self.send_run(entry)

    def lose(self, entry: Entry, reason: str) -> None:
        """Its worker was lost while at work on it: stage it again, unless that was once too often.
        One that its worker cannot have begun, or whose worker was leaving, is staged again."""
        worker = self.workers.get(entry.worker_id or "")
        if entry.is_begun and worker is not None and not worker.is_leaving:
            entry.metadata = {**entry.metadata, LOST_WITH: [*entry.lost_with, worker.id]}
            if len(entry.lost_with) >= self.max_losses and entry.kill_message is None:
                self.drop_contents(entry)
                self.end(entry, State.FAILED, losses_message(entry.lost_with, reason))
                return
        self.restage(entry, reason)

    def restage(self, entry: Entry, reason: str) -> None:
        """Take a bundle from its worker and stage it again; one that was to be killed is killed."""
        self._leave_worker(entry)
        self.live.pop(entry.uuid, None)
        self.drop_contents(entry)
        if entry.kill_message is not None:
            self.end(entry, State.KILLED, entry.kill_message)
            return
        entry.metadata = {
            key: value
            for key, value in entry.metadata.items()
            if key not in GENERATED_METADATA or key in LASTING_METADATA
        }
        self.move(entry, State.STAGED, reason)
        entry.worker_id = entry.session = None

    def take_offline(self, entry: Entry) -> None:
        """Its worker is gone, and may come back with it."""
        entry.start_by = None
        if entry.kill_message is not None:
            self.end(entry, State.KILLED, entry.kill_message)
        elif entry.state is not State.WORKER_OFFLINE:
            self.move(entry, State.WORKER_OFFLINE, f"worker {entry.worker_id} was not heard of")

    def _leave_worker(self, entry: Entry) -> None:
        entry.start_by = None
        if entry.worker_id is None:
            return
        worker = self.workers.get(entry.worker_id)
        if worker is not None and entry.uuid in worker.assigned:
            worker.assigned.discard(entry.uuid)
            self.scheduler.release(worker.id, entry.uuid)
            self.forget_worker_if_done(worker)
        for kind in ("run", "kill"):
            self.effects.recalls.append((entry.worker_id, f"{kind}-{entry.uuid}-{entry.claim}"))

    # Letters

    def send(self, kind: str, worker_id: str, uuid: str, claim: int | None, **rest: Any) -> None:
        """A letter about a bundle; the same kind about the same claim is the same letter."""
        letter_id = f"{kind}-{uuid}-{claim}"
        message = {"type": kind, "id": letter_id, "uuid": uuid, "claim": claim, **rest}
        self.effects.letters.append(Letter(worker_id, letter_id, message))

    def send_run(self, entry: Entry) -> None:
        """The bundle as its worker has to know it."""
        assert entry.worker_id is not None
        metadata = {**entry.metadata}
        dependencies = entry.dependencies
        if entry.location is not None:
            found = self.find_all(dependency.parent_uuid for dependency in dependencies)
            locations = {uuid: past.location for uuid, past in found.items()}
            dependencies = tuple(
                replace(dependency, location=locations.get(dependency.parent_uuid))
                for dependency in dependencies
            )
        bundle = {
            "uuid": entry.uuid,
            "bundle_type": entry.bundle_type,
            "owner_id": entry.owner_id,
            "command": entry.command,
            "state": str(entry.state),
            "frozen": None,
            "is_anonymous": False,
            "metadata": metadata,
            "args": entry.args,
            "dependencies": [dependency.to_document() for dependency in dependencies],
            "location": entry.location,
        }
        self.send(
            "run",
            entry.worker_id,
            entry.uuid,
            entry.claim,
            bundle=bundle,
            resources=entry.resources.to_run_message(),
        )

    def send_kill(self, entry: Entry) -> None:
        """Its worker is to end it."""
        assert entry.worker_id is not None
        assert entry.kill_message is not None
        entry.kill_sent = self.instant
        self.send("kill", entry.worker_id, entry.uuid, entry.claim, kill_message=entry.kill_message)

    def send_write(self, entry: Entry, subpath: str, string: str) -> None:
        """Its worker is to write into a file of it; every letter anew, so each has its own id."""
        assert entry.worker_id is not None
        letter_id = self._unlike_any(f"write-{entry.uuid}-{entry.claim}")
        message = {"type": "write", "id": letter_id, "uuid": entry.uuid, "claim": entry.claim,
                   "subpath": subpath, "string": string}  # fmt: skip
        self.effects.letters.append(Letter(entry.worker_id, letter_id, message))

    def send_drain(self, worker: Worker) -> None:
        """The worker is to take nothing more, or may again."""
        self.recall_drain(worker)
        letter_id = self._unlike_any("drain")
        message = {"type": "drain", "id": letter_id, "is_draining": worker.is_draining,
                   "reason": worker.drain_reason or ""}  # fmt: skip
        worker.drain_letter = letter_id
        self.effects.letters.append(Letter(worker.id, letter_id, message))

    def recall_drain(self, worker: Worker) -> None:
        """What the last such letter said is known, or true no more."""
        letter_id, worker.drain_letter = worker.drain_letter, None
        if letter_id is not None:
            self.effects.recalls.append((worker.id, letter_id))
            # Letters of this very batch are posted after its recalls.
            letters = self.effects.letters
            letters[:] = [letter for letter in letters if letter.id != letter_id]

    def _unlike_any(self, start: str) -> str:
        """An id for a letter that says something anew, also after a restart of the server."""
        self._letters += 1
        return f"{start}-{int(self.now * 1000)}-{self._letters}"

    # Workers

    def keep_worker(self, worker: Worker) -> None:
        """Write the worker with this batch."""
        self.changed_workers[worker.id] = worker

    def retire(self, worker_id: str, session: str) -> None:
        """A session has left for good: what is still on its way from it must not bring it back."""
        self._retired[worker_id, session] = None
        if len(self._retired) > RETIRED_SESSIONS:
            del self._retired[next(iter(self._retired))]

    def is_retired(self, worker_id: str, session: str) -> bool:
        """Whether this session of the worker has left."""
        return (worker_id, session) in self._retired

    def forget_worker_if_done(self, worker: Worker) -> None:
        """A worker that is gone and holds nothing is of no interest any more."""
        if not worker.is_live and not worker.assigned:
            self.recall_drain(worker)
            self.workers.pop(worker.id, None)
            self.changed_workers[worker.id] = None

    def release_worker(self, worker: Worker, reason: str) -> Taken:
        """The worker leaves and says so."""
        return self._end_worker(worker, lambda entry: self.restage(entry, reason))

    def lose_worker(self, worker: Worker, *, for_good: bool, reason: str) -> Taken:
        """The worker is gone. What it ran is lost when that is ``for_good``, or it is preemptible;
        else it may come back with what it can have begun."""

        def lose(entry: Entry) -> None:
            if for_good or worker.is_preemptible or not entry.is_begun:
                self.lose(entry, reason)
            else:
                self.take_offline(entry)

        return self._end_worker(worker, lose)

    def _end_worker(self, worker: Worker, take: Callable[[Entry], None]) -> Taken:
        worker.is_live = False
        self.keep_worker(worker)
        self.scheduler.withdraw(worker.id)
        entries = [self.entries[uuid] for uuid in sorted(worker.assigned)]
        for entry in entries:
            take(entry)
        self.forget_worker_if_done(worker)
        return Taken(
            [entry.uuid for entry in entries if entry.state is State.STAGED],
            [entry.uuid for entry in entries if entry.state in FINAL_STATES],
        )

    def make_offer(self, worker: Worker) -> None:
        """Tell the scheduler what the worker has and takes, once it has said so."""
        if not worker.is_heard:
            return
        runs_left = worker.runs_left
        if runs_left is not None:
            runs_left = max(0, runs_left - len(worker.assigned - worker.listed))
        accepting = not worker.is_terminating and not worker.is_draining
        if not worker.has_claims:
            # It can be given one message a reply: one run at a time, and only while it asks.
            unstarted = any(self.entries[uuid].start_by for uuid in worker.assigned)
            accepting = accepting and not unstarted and self.instant < worker.polling_until
            runs_left = min(1, 1 if runs_left is None else runs_left)
        facts = worker.facts
        self.scheduler.offer(
            Offer(
                worker_id=worker.id,
                cpus=facts.get("cpus") or 0,
                gpus=facts.get("gpus") or 0,
                memory_bytes=facts.get("memory_bytes") or 0,
                # In steps: a figure that changes with every check-in would be news every time.
                disk_bytes=worker.free_disk_bytes - worker.free_disk_bytes % DISK_STEP_BYTES,
                tag=facts.get("tag") or "",
                tag_exclusive=bool(facts.get("tag_exclusive")),
                serves=self.serves(worker),
                cached=worker.cached,
                runs_left=runs_left,
                accepting=accepting,
                end=worker.end,
            )
        )
        for uuid in worker.assigned:
            self.scheduler.occupy(worker.id, uuid, self.entries[uuid].need())

    def serves(self, worker: Worker) -> frozenset[str] | None:
        """Whose bundles a worker takes: its user's and its group's; everyone's if it is root's."""
        user = self.accounts.users.get(worker.user_id)
        group = self.accounts.groups.get(worker.facts.get("group_name") or "")
        if group is not None:
            return group.members | {worker.user_id}
        if user is not None and user.is_root:
            return None
        return frozenset({worker.user_id})

    # The end of a batch

    def tend(self) -> None:
        """What follows from the operations of the batch and from the time: before it is written."""
        self._expire()
        for match in self.scheduler.match(self.instant):
            self.assign(self.entries[match.uuid], self.workers[match.worker_id])
        if all(worker.is_heard or not worker.is_live for worker in self.workers.values()):
            for uuid, sentence in self.scheduler.judge(self.instant):
                self._verdicts[uuid] = sentence
        self._write_verdicts()

    def _expire(self) -> None:
        for entry in list(self._deferred.values()):
            if entry.deferred_until is not None and entry.deferred_until <= self.instant:
                del self._deferred[entry.uuid]
                entry.deferred_until = None
                self.scheduler.remove(entry.uuid)
                self.scheduler.add(entry.waiting())
        for worker in list(self.workers.values()):
            if not worker.is_live:
                continue
            if worker.lease_end <= self.instant:
                log.warning("worker %s has not been heard of: it counts as gone", worker.id)
                reason = f"worker {worker.id} was not heard of"
                self.lose_worker(worker, for_good=False, reason=reason)
            elif not worker.has_claims:
                for uuid in sorted(worker.assigned):
                    entry = self.entries[uuid]
                    if entry.start_by is not None and entry.start_by <= self.instant:
                        self.restage(entry, f"worker {worker.id} did not start it")

    def _write_verdicts(self) -> None:
        for uuid in list(self._verdicts)[:VERDICTS_A_BATCH]:
            sentence = self._verdicts.pop(uuid)
            entry = self.entries.get(uuid)
            if entry is None or entry.state is not State.STAGED:
                continue
            if (entry.staged_status is None) != (sentence is None):
                entry.staged_status = sentence
                self.touch(entry)

    def seconds_to_deadline(self) -> float | None:
        """How long until something is due without anyone asking; None: nothing ever is."""
        if self._verdicts:
            return 0.0
        deadlines = [worker.lease_end for worker in self.workers.values() if worker.is_live]
        for worker in self.workers.values():
            if worker.is_live and not worker.has_claims:
                for uuid in worker.assigned:
                    start_by = self.entries[uuid].start_by
                    if start_by is not None:
                        deadlines.append(start_by)
        for entry in self._deferred.values():
            if entry.deferred_until is not None:
                deadlines.append(entry.deferred_until)
        if not deadlines:
            return None
        return max(0.0, min(deadlines) - self.clock.monotonic())

    def renew_leases(self) -> None:
        """Everyone gets a full lease: nobody could renew one while the server was away."""
        for worker in self.workers.values():
            worker.lease_end = self.instant + self.worker_timeout_seconds
        for lease in self.leases.values():
            lease.end = self.instant + lease.ttl_seconds

    def close_batch(self) -> Effects:
        """The batch is in the database: let go of what ended, and hand out what is to be told."""
        for entry in self.ended:
            self.entries.pop(entry.uuid, None)
        for uuid in self.deleted:
            self.entries.pop(uuid, None)
        effects = self.effects
        self.start_batch()
        return effects


def losses_message(lost_with: Sequence[str], reason: str) -> str:
    """Why a bundle failed that was lost so often, and what to do. ``reason``: of the last time."""
    return (
        f"Lost {len(lost_with)} times while it ran, which is as often as the server allows "
        f"(--max-losses): its workers {', '.join(lost_with)} went silent or came back without it "
        f"(the last time: {reason}). It may be what ends them, by the memory or the disk that it "
        "uses: let it run where that is bounded (--runtime docker, podman or apptainer), or ask "
        "for more, and queue it again."
    )
