"""What a worker says and what follows from it: check-in, check-out, `start_bundle`.

Two kinds of workers: those that speak docs/protocol.md (claims, acknowledged letters, one session
a worker id) and CodaLab's own, which are held to "the bundle is assigned to you now".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bundles.errors import Conflict, NotFound, NotPermitted, UsageError
from bundles.model import FINAL_STATES, State
from bundles.server.accounts import Caller
from bundles.server.books import FORMER_SESSIONS, POLL_SECONDS, Books
from bundles.server.entries import Entry, Taken, Worker
from bundles.server.lifecycle import KILL_MESSAGE, advances, judge_end
from bundles.server.requests import Checkin, CheckinRun, Checkout, Drain, StartBundle, explain

log = logging.getLogger(__name__)

DRAIN = "drain"
"""The feature of a worker that understands when it is told to take no more."""
RESEND_KILL_SECONDS = 10.0
"""A worker that acknowledges nothing is told again this long after."""
END_STEP_SECONDS = 30.0
"""The end of a worker's life that differs less from what it said before is the same."""

_STAGES = {
    "PREPARING": "time_preparing",
    "RUNNING": "time_running",
    "CLEANING_UP": "time_cleaning_up",
    "UPLOADING_RESULTS": "time_uploading_results",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the check-in came to: whether its messages are a batch or one by one."""

    is_batch: bool
    session: str


def written_in_place(books: Books, worker_id: str, said: Checkin) -> dict[str, str]:
    """Where the results lie, by uuid, of those runs that the check-in ends and whose worker wrote
    them into the store itself: nobody has counted their bytes."""
    found = {}
    for run in said.runs:
        entry = books.entries.get(str(run.get("uuid")))
        if (
            entry is not None
            and entry.worker_id == worker_id
            and entry.location is not None
            and entry.size_bytes is None
            and run.get("state") == State.FINALIZING
        ):
            found[entry.uuid] = entry.location
    return found


def check_in(
    books: Books,
    caller: Caller,
    worker_id: str,
    said: Checkin,
    sizes_bytes: Mapping[str, int] | None = None,
) -> Receipt:
    """Take a check-in: the worker is there, its runs are as it says, letters are acknowledged.

    ``sizes_bytes``: what was counted of ``written_in_place``, by uuid.
    Raises NotPermitted for another user's worker id, Conflict for a session that was taken over.
    """
    worker, is_new_session = _find_worker(books, caller, worker_id, said)
    is_stale = not is_new_session and said.session is not None and said.sequence < worker.sequence
    _acknowledge(books, worker, said)
    if is_stale:
        return Receipt(worker.has_claims, worker.session or "")
    worker.sequence = said.sequence
    was_leaving = worker.is_leaving
    _take_facts(books, caller, worker, said, is_new_session)
    _tell_drain(books, worker, said)
    _take_runs(books, worker, said, is_new_session, was_leaving, sizes_bytes or {})
    books.make_offer(worker)
    return Receipt(worker.has_claims, worker.session or "")


def check_out(books: Books, caller: Caller, worker_id: str, said: Checkout) -> Taken:
    """The worker leaves: its bundles are staged again.

    Without a session its owner says so of it, who knows that it will not come back: what it ran
    is lost.
    Raises Conflict when the session is not the worker's present one, NotPermitted when a worker
    says it of another.
    """
    worker = _known_worker(books, worker_id)
    if worker is None:
        return Taken()  # gone already: the reply to the first check-out was lost
    _check_owner(caller, worker)
    if said.session is None and caller.is_worker:
        raise NotPermitted("a worker checks itself out, by its session")
    if said.session is not None and worker.session != said.session:
        raise Conflict(f"worker {worker_id} was taken over by another session")
    reason = f"worker {worker_id} left" + (f" ({said.reason})" if said.reason else "")
    if worker.session is not None:
        books.retire(worker_id, worker.session)
        if said.session is None:  # should it live and wait here, it is told at once
            books.effects.superseded.append((worker_id, worker.session))
    if said.session is not None:
        return books.release_worker(worker, reason)
    return books.lose_worker(worker, for_good=True, reason=reason)


def drain(books: Books, caller: Caller, worker_id: str, said: Drain) -> None:
    """The worker is to finish what it has and leave, or may take more again.

    Raises NotFound for a worker that is not there any more, NotPermitted for another user's.
    """
    worker = _known_worker(books, worker_id)
    if worker is None:
        raise NotFound(f"there is no worker {worker_id}: it has left, or not come yet")
    _check_owner(caller, worker)
    if worker.is_draining == said.is_draining:
        return
    worker.drain_reason = said.reason if said.is_draining else None
    books.keep_worker(worker)
    if DRAIN in (worker.facts.get("features") or ()):
        books.send_drain(worker)
    books.make_offer(worker)


def start_bundle(
    books: Books, caller: Caller, worker_id: str, uuid: str, said: StartBundle
) -> bool:
    """Whether the bundle is this worker's to start; if so it is preparing from now on."""
    worker = _known_worker(books, worker_id)
    if worker is None:
        raise NotFound(f"there is no worker {worker_id}: it has to check in first")
    _check_owner(caller, worker)
    entry = books.entries.get(uuid)
    if entry is None or entry.worker_id != worker_id or entry.state is not State.STARTING:
        return False
    entry.start_by = None
    entry.is_acknowledged = True
    worker.listed |= {uuid}  # it will be in the next check-in, which may be on its way already
    _begin(books, worker, entry, said.start_time)
    books.move(entry, State.PREPARING)
    return True


# The worker itself


def _known_worker(books: Books, worker_id: str) -> Worker | None:
    return books.workers.get(worker_id)


def _check_owner(caller: Caller, worker: Worker) -> None:
    if worker.user_id != caller.id:
        raise NotPermitted(f"the worker id {worker.id!r} is another user's: choose another --id")


def _find_worker(
    books: Books, caller: Caller, worker_id: str, said: Checkin
) -> tuple[Worker, bool]:
    if said.group_name:
        group = books.accounts.groups.get(said.group_name)
        if group is None:
            raise UsageError(f"there is no group {said.group_name!r}")
        if caller.id not in group.members and not caller.user.is_root:
            raise NotPermitted(f"you are not a member of the group {said.group_name!r}")
    if said.session is not None and books.is_retired(worker_id, said.session):
        raise Conflict(f"worker {worker_id} was taken over by another session, or has left")
    worker = books.workers.get(worker_id)
    if worker is None:
        worker = Worker(id=worker_id, user_id=caller.id, session=said.session)
        books.workers[worker_id] = worker
        return worker, True
    _check_owner(caller, worker)
    if said.session == worker.session:
        return worker, False
    if said.session is not None and said.session in worker.former_sessions:
        raise Conflict(f"worker {worker_id} was taken over by another session")
    if worker.session is not None:
        worker.former_sessions = [*worker.former_sessions, worker.session][-FORMER_SESSIONS:]
        books.effects.superseded.append((worker_id, worker.session))
    worker.session = said.session
    worker.sequence = -1
    return worker, True


def _take_facts(
    books: Books, caller: Caller, worker: Worker, said: Checkin, is_new_session: bool
) -> None:
    facts: dict[str, Any] = {
        "tag": said.tag or "",
        "group_name": said.group_name or "",
        "cpus": said.cpus,
        "gpus": said.gpus,
        "memory_bytes": said.memory_bytes,
        "hostname": said.hostname,
        "shared_file_system": said.shared_file_system,
        "tag_exclusive": said.tag_exclusive,
        "preemptible": said.preemptible,
        "features": said.features,
    }
    token_digest = caller.digest if caller.is_worker else None
    if (
        is_new_session
        or not worker.is_live
        or facts != worker.facts
        or worker.token_digest != token_digest
    ):
        worker.facts, worker.is_live, worker.token_digest = facts, True, token_digest
        books.keep_worker(worker)
    worker.seen = books.now
    worker.lease_end = books.instant + books.worker_timeout_seconds
    worker.free_disk_bytes = 2**62 if said.free_disk_bytes is None else said.free_disk_bytes
    worker.cached = frozenset(said.dependencies)
    worker.is_terminating = said.is_terminating
    worker.runs_left = None
    if said.exit_after_num_runs is not None:
        worker.runs_left = max(0, said.exit_after_num_runs)
    end = math.inf if said.seconds_left is None else books.instant + said.seconds_left
    # A check-in that was on its way for a while is not news.
    if is_new_session or not abs(end - worker.end) <= END_STEP_SECONDS:
        worker.end = end
    if not worker.has_claims:
        worker.polling_until = books.instant + POLL_SECONDS


def _tell_drain(books: Books, worker: Worker, said: Checkin) -> None:
    """Until the worker says itself that it knows."""
    if said.is_draining == worker.is_draining:
        books.recall_drain(worker)
    elif worker.drain_letter is None and DRAIN in said.features:
        books.send_drain(worker)


def _acknowledge(books: Books, worker: Worker, said: Checkin) -> None:
    for letter_id in said.acknowledged:
        books.effects.recalls.append((worker.id, letter_id))
        if letter_id == worker.drain_letter:
            worker.drain_letter = None
        kind, _, rest = letter_id.partition("-")
        uuid, _, claim = rest.partition("-")
        entry = books.entries.get(uuid)
        if kind == "run" and entry is not None and str(entry.claim) == claim:
            entry.is_acknowledged = entry.worker_id == worker.id


# Its runs


def _take_runs(
    books: Books,
    worker: Worker,
    said: Checkin,
    is_new_session: bool,
    was_leaving: bool,
    sizes_bytes: Mapping[str, int],
) -> None:
    listed: set[str] = set()
    for document in said.runs:
        try:
            run = CheckinRun.model_validate(document)
            state = State(run.state)
        except ValidationError as error:
            log.warning("worker %s reports a run wrongly: %s", worker.id, explain(error))
            _list_anyway(listed, document)
            continue
        except ValueError:
            log.warning("worker %s reports the unknown state %r", worker.id, document["state"])
            _list_anyway(listed, document)
            continue
        listed.add(run.uuid)
        _take_run(books, worker, run, state, sizes_bytes.get(run.uuid))
    for uuid in sorted(worker.assigned - listed):
        entry = books.entries[uuid]
        if worker.has_claims:
            is_lost = entry.is_acknowledged or is_new_session
        else:
            # It may have composed this check-in before it was given the run: twice is lost.
            is_lost = entry.is_acknowledged and uuid not in worker.listed
        reason = f"worker {worker.id} lost it"
        if is_lost and was_leaving:
            books.restage(entry, reason)
        elif is_lost:
            books.lose(entry, reason)
    worker.listed = frozenset(listed)


def _list_anyway(listed: set[str], document: dict[str, Any]) -> None:
    uuid = document.get("uuid")
    if isinstance(uuid, str):
        listed.add(uuid)


def _take_run(
    books: Books, worker: Worker, run: CheckinRun, state: State, size_bytes: int | None
) -> None:
    entry = books.entries.get(run.uuid)
    if entry is None or not _is_current(worker, entry, run):
        _answer_other(books, worker, run, state)
        return
    if entry.state is State.STARTING:
        books.effects.recalls.append((worker.id, f"run-{entry.uuid}-{entry.claim}"))
    entry.is_acknowledged = True
    entry.start_by = None
    entry.session = worker.session
    books.live[entry.uuid] = _figures(books, entry, run)
    if state is State.STAGED:
        books.restage(entry, f"worker {worker.id} gave it back")
        if worker.has_claims:
            books.send("revoke", worker.id, run.uuid, run.claim)
        return
    if entry.state in (State.STARTING, State.WORKER_OFFLINE) and advances(entry.state, state):
        _begin(books, worker, entry, run.bundle_start_time)
    if state is State.FINALIZING or state in FINAL_STATES:
        if entry.location is not None and entry.size_bytes is None:
            entry.size_bytes = run.disk_utilization or 0 if size_bytes is None else size_bytes
            entry.metadata = {**entry.metadata, "data_size": entry.size_bytes}
            books.live[entry.uuid].pop("data_size", None)
        _finish(books, worker, entry, run)
    elif advances(entry.state, state):
        books.move(entry, state)
    if (
        entry.kill_message is not None
        and not worker.has_claims
        and books.instant - entry.kill_sent > RESEND_KILL_SECONDS
    ):
        books.send_kill(entry)


def _is_current(worker: Worker, entry: Entry, run: CheckinRun) -> bool:
    if not entry.is_assigned or entry.worker_id != worker.id:
        return False
    return run.claim == entry.claim if worker.has_claims else True


def _answer_other(books: Books, worker: Worker, run: CheckinRun, state: State) -> None:
    """A run that is not the worker's now: its own result again, or one that it must give up."""
    past = books.find(run.uuid)
    is_result = (
        past is not None
        and past.state in FINAL_STATES
        and past.worker_id == worker.id
        and (run.claim == past.claim or not worker.has_claims)
    )
    if not worker.has_claims:
        if state is State.FINALIZING or state in FINAL_STATES:
            books.send("mark_finalized", worker.id, run.uuid, run.claim)
        else:
            books.send("kill", worker.id, run.uuid, run.claim, kill_message=KILL_MESSAGE)
    elif is_result and state is State.FINALIZING:
        books.send("mark_finalized", worker.id, run.uuid, run.claim)
    else:
        books.send("revoke", worker.id, run.uuid, run.claim)


def _begin(books: Books, worker: Worker, entry: Entry, start_time: float | None) -> None:
    history = entry.metadata.get("remote_history") or []
    entry.metadata = {
        **entry.metadata,
        "started": int(start_time or books.now),
        "last_updated": int(books.now),
        "remote": worker.facts.get("hostname") or worker.id,
        "remote_history": [*history, worker.id],
        "on_preemptible_worker": worker.is_preemptible,
    }


def _finish(books: Books, worker: Worker, entry: Entry, run: CheckinRun) -> None:
    message = run.failure_message.replace("\0", "") if run.failure_message else None
    state, message = judge_end(run.exitcode, message, entry.kill_message)
    claim = entry.claim
    books.end(entry, state, message)
    books.send("mark_finalized", worker.id, entry.uuid, claim)


def _figures(books: Books, entry: Entry, run: CheckinRun) -> dict[str, Any]:
    """The figures of a run as metadata, under CodaLab's names; a new value each time, since
    others read the old one."""
    figures: dict[str, Any] = {
        "run_status": run.run_status.replace("\0", ""),
        "last_updated": int(books.now),
        "time": run.container_time_total,
        "time_user": run.container_time_user,
        "time_system": run.container_time_system,
    }
    if run.docker_image:
        figures["docker_image"] = run.docker_image
    if run.exitcode is not None:
        figures["exitcode"] = run.exitcode
    if run.cpu_usage is not None:
        figures["cpu_usage"] = run.cpu_usage
    if run.memory_usage is not None:
        used = int(run.memory_usage * entry.resources.memory_bytes)
        before = (books.live.get(entry.uuid) or entry.metadata).get("memory_max") or 0
        figures |= {
            "memory_usage": run.memory_usage,
            "memory": used,
            "memory_max": max(used, before),
        }
    if run.disk_utilization is not None and entry.size_bytes is None:
        figures["data_size"] = run.disk_utilization
    for stage, key in _STAGES.items():
        elapsed = (run.bundle_profile_stats.get(f"RUN_STAGE.{stage}") or {}).get("elapsed")
        if isinstance(elapsed, (int, float)):
            figures[key] = elapsed
    return figures
