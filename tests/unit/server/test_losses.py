"""How often a bundle was lost with its worker, and what follows: over the books and a database in
memory, whatever the workers do and however often the server is started anew."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.pool import StaticPool

from bundles.model import State
from bundles.server import schema
from bundles.server.accounts import ROOT_ID, Caller, User
from bundles.server.books import DEFERRED_SECONDS, SUSPICIOUS_LOSSES, Books, Clock
from bundles.server.checkin import check_in, check_out, drain
from bundles.server.creation import create, draft_bundles
from bundles.server.entries import LOST_WITH, Entry, Taken
from bundles.server.records import read_books, write_batch
from bundles.server.requests import Checkin, Checkout, Drain

MAX_LOSSES = 5
TIMEOUT_SECONDS = 60.0
ROOT = Caller(User(ROOT_ID, "admin", is_root=True), is_worker=False, digest="")


@dataclass
class HeldRun:
    """What a worker has of a bundle. ``is_begun``: the server knows that it has it."""

    claim: int
    is_begun: bool = False


@dataclass
class StandIn:
    """A worker, as the test has it do things."""

    id: str
    cpus: int = 2
    is_preemptible: bool = False
    is_terminating: bool = False
    session: str = ""
    sequence: int = 0
    runs: dict[str, HeldRun] = field(default_factory=dict)

    def begin(self) -> None:
        """A new process."""
        self.session, self.sequence, self.is_terminating = uuid.uuid4().hex, 0, False


class Stand:
    """A server without its sockets. Every operation is a batch of its own."""

    def __init__(self) -> None:
        self.instant = 1000.0
        self._clock = Clock(wall=lambda: 1e9 + self.instant, monotonic=lambda: self.instant)
        self._engine = create_engine("sqlite://", poolclass=StaticPool)
        self._connection: Connection = self._engine.connect()
        with self._connection.begin():
            schema.migrate(self._connection)
        self.workers: dict[str, StandIn] = {}
        self.restart()

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def restart(self) -> None:
        """The server is killed and started again."""
        self.books: Books = read_books(
            self._connection, self._clock, TIMEOUT_SECONDS, max_losses=MAX_LOSSES
        )
        self._connection.rollback()
        self.commit()

    def commit(self) -> None:
        """Let the time do what it does, write everything, and hand out the letters."""
        self.books.tick()
        self.books.tend()
        write_batch(self._connection, self.books)
        self._connection.commit()
        for letter in self.books.close_batch().letters:
            worker = self.workers.get(letter.worker_id)
            if worker is not None and letter.message["type"] == "run":
                claim = letter.message["claim"]
                worker.runs.setdefault(letter.message["uuid"], HeldRun(claim)).claim = claim
            elif worker is not None and letter.message["type"] in ("revoke", "mark_finalized"):
                worker.runs.pop(letter.message["uuid"], None)

    def add(self, **metadata: Any) -> str:
        self.books.tick()
        drafts = draft_bundles([{"command": "true", "metadata": metadata}])
        [found] = create(self.books, ROOT, drafts, wait_for_upload=False)
        self.commit()
        return found

    def worker(self, worker_id: str, **facts: Any) -> StandIn:
        """One that has checked in."""
        worker = self.workers[worker_id] = StandIn(worker_id, **facts)
        worker.begin()
        self.say(worker)
        return worker

    def say(self, worker: StandIn, state: str = "running", but: str | None = None) -> None:
        """A check-in that lists all that the worker has, ``but`` one; those in ``state``."""
        worker.sequence += 1
        listed = {name: run for name, run in worker.runs.items() if name != but}
        said = Checkin(
            dependencies=[],
            runs=[
                {"uuid": name, "claim": run.claim, "state": state, "exitcode": 0}
                for name, run in listed.items()
            ],
            cpus=worker.cpus,
            memory_bytes=2**40,
            is_terminating=worker.is_terminating,
            preemptible=worker.is_preemptible,
            features=["claims", "drain"],
            session=worker.session,
            sequence=worker.sequence,
            acknowledged=[f"run-{name}-{run.claim}" for name, run in listed.items()],
        )
        self.books.tick()
        for run in listed.values():
            run.is_begun = True
        if but is not None:
            worker.runs.pop(but, None)
        check_in(self.books, ROOT, worker.id, said)
        self.commit()

    def take(self, worker: StandIn) -> str:
        """Have the worker begin the one bundle that it has been given."""
        [name] = worker.runs
        self.say(worker)
        return name

    def owner_says_gone(self, worker: StandIn) -> Taken:
        worker.runs.clear()
        self.books.tick()
        taken = check_out(self.books, ROOT, worker.id, Checkout(reason="its job has ended"))
        self.commit()
        return taken

    def leave(self, worker: StandIn) -> None:
        worker.runs.clear()
        self.books.tick()
        check_out(self.books, ROOT, worker.id, Checkout(session=worker.session))
        self.commit()

    def drain(self, worker: StandIn) -> None:
        self.books.tick()
        drain(self.books, ROOT, worker.id, Drain(reason="enough"))
        self.commit()

    def wait(self, seconds: float) -> None:
        """Time passes; nobody says anything."""
        self.instant += seconds
        self.commit()

    def row(self, name: str) -> tuple[State, dict[str, Any]]:
        """State and metadata, as they are in the database."""
        table = schema.bundle.c
        found = self._connection.execute(
            select(table.state, table.metadata).where(table.uuid == name)
        ).one()
        self._connection.rollback()
        return State(found.state), orjson.loads(found.metadata)

    def lost_with(self, name: str) -> list[str]:
        return list(self.row(name)[1].get(LOST_WITH, ()))

    def entry(self, name: str) -> Entry:
        return self.books.entries[name]


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def lose(stand: Stand, name: str, times: int) -> None:
    """Workers that have nothing else begin it, and are gone."""
    for number in range(times):
        worker = stand.worker(f"doomed-{len(stand.lost_with(name))}-{number}")
        assert stand.take(worker) == name
        stand.owner_says_gone(worker)


def test_a_bundle_that_is_lost_too_often_fails_and_says_with_whom(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, MAX_LOSSES - 1)
    assert stand.row(name)[0] is State.STAGED
    worker = stand.worker("the-last")
    stand.take(worker)
    taken = stand.owner_says_gone(worker)
    assert (taken.restaged, taken.ended) == ([], [name])
    state, metadata = stand.row(name)
    assert state is State.FAILED
    message = metadata["failure_message"]
    assert "Lost 5 times" in message
    assert all(worker_id in message for worker_id in metadata[LOST_WITH])
    assert "its job has ended" in message
    assert "\n" not in message


def test_one_loss_less_than_too_many_and_a_success_is_ready(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, MAX_LOSSES - 1)
    worker = stand.worker("good")
    stand.take(worker)
    stand.say(worker, state="finalizing")
    assert stand.row(name)[0] is State.READY
    assert len(stand.lost_with(name)) == MAX_LOSSES - 1


def test_one_that_was_to_be_killed_is_killed_however_often_it_was_lost(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, MAX_LOSSES - 1)
    worker = stand.worker("w")
    stand.take(worker)
    stand.entry(name).kill_message = "Kill requested"
    stand.owner_says_gone(worker)
    assert stand.row(name)[0] is State.KILLED


def test_one_that_was_lost_goes_behind_others_once_it_was_lost_three_times(stand: Stand) -> None:
    name = stand.add(request_priority=9)
    lose(stand, name, SUSPICIOUS_LOSSES - 1)
    other = stand.add()
    worker = stand.worker("w", cpus=1)
    assert list(worker.runs) == [name], "twice is not noticed"
    stand.take(worker)
    stand.owner_says_gone(worker)
    worker = stand.worker("v", cpus=1)
    assert list(worker.runs) == [other]


def test_it_goes_by_its_priority_again_after_a_while(stand: Stand) -> None:
    name = stand.add(request_priority=9)
    lose(stand, name, SUSPICIOUS_LOSSES)
    stand.add()
    deadline = stand.books.seconds_to_deadline()
    assert deadline == DEFERRED_SECONDS
    stand.wait(DEFERRED_SECONDS)
    assert stand.books.seconds_to_deadline() is None
    assert list(stand.worker("w", cpus=1).runs) == [name]


def test_it_does_not_wait_when_nothing_else_does(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, SUSPICIOUS_LOSSES)
    assert list(stand.worker("w").runs) == [name]


def test_it_is_deferred_longer_each_time_and_anew_by_a_restart(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, SUSPICIOUS_LOSSES + 1)
    stand.wait(DEFERRED_SECONDS)
    stand.restart()
    assert stand.books.seconds_to_deadline() == 2 * DEFERRED_SECONDS


def test_a_bundle_that_is_edited_or_killed_while_it_is_deferred_stays_so_or_goes(
    stand: Stand,
) -> None:
    from bundles.server import actions

    name = stand.add()
    lose(stand, name, SUSPICIOUS_LOSSES)
    actions.edit(stand.books, ROOT, [(name, {"request_priority": 9})])
    other = stand.add()
    worker = stand.worker("w", cpus=1)
    assert list(worker.runs) == [other]
    stand.books.end(stand.entry(name), State.KILLED, "enough")
    stand.commit()
    stand.leave(worker)
    stand.wait(0)
    stand.wait(DEFERRED_SECONDS)
    assert stand.row(name)[0] is State.KILLED


def test_a_bundle_that_may_end_its_worker_has_it_alone(stand: Stand) -> None:
    name = stand.add()
    lose(stand, name, SUSPICIOUS_LOSSES)
    worker = stand.worker("w", cpus=4)
    assert list(worker.runs) == [name]
    other = stand.add()
    assert list(worker.runs) == [name]
    stand.say(worker, state="finalizing")
    assert list(worker.runs) == [other]


def test_others_that_shared_its_workers_are_not_blamed_for_it(stand: Stand) -> None:
    """Sixteen bundles, one of which ends every worker that has it."""
    poison = stand.add()
    others = [stand.add() for _ in range(15)]
    for number in range(200):
        worker = stand.worker(f"w{number}", cpus=16)
        stand.say(worker)
        if poison in worker.runs:
            stand.owner_says_gone(worker)
        elif not worker.runs:
            break
        else:
            stand.say(worker, state="finalizing")
            stand.leave(worker)
        stand.wait(1)
    assert stand.row(poison)[0] is State.FAILED
    assert {stand.row(name)[0] for name in others} == {State.READY}
    assert max(len(stand.lost_with(name)) for name in others) <= SUSPICIOUS_LOSSES


def test_a_worker_that_had_notice_and_comes_anew_without_a_bundle_has_not_lost_it(
    stand: Stand,
) -> None:
    name = stand.add()
    worker = stand.worker("w")
    stand.take(worker)
    worker.is_terminating = True
    stand.say(worker)
    worker.runs.clear()
    worker.begin()
    stand.say(worker)
    assert worker.runs[name].claim == 2
    assert stand.lost_with(name) == []


def test_a_worker_that_drains_or_has_notice_may_vanish(stand: Stand) -> None:
    name = stand.add()
    drained, noticed = stand.worker("drained"), stand.worker("noticed")
    stand.take(drained)
    stand.drain(drained)
    stand.owner_says_gone(drained)
    stand.take(noticed)
    noticed.is_terminating = True
    stand.say(noticed)
    stand.owner_says_gone(noticed)
    assert stand.row(name)[0] is State.STAGED
    assert stand.lost_with(name) == []


def test_what_is_not_known_to_have_begun_when_the_server_dies_was_not_lost(stand: Stand) -> None:
    name = stand.add()
    worker = stand.worker("w")
    assert list(worker.runs) == [name]
    stand.restart()
    stand.owner_says_gone(worker)
    assert stand.lost_with(name) == []


names = st.sampled_from(["a", "b"])


class Losses(RuleBasedStateMachine):
    """Everything that workers do, and how often each bundle was lost by a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stand = Stand()
        self.losses: dict[str, int] = {}
        self.draining: set[str] = set()
        self.was_terminating: set[str] = set()
        """Those that the server has heard say so, since it was started."""
        self.offline: dict[str, dict[str, HeldRun]] = {}
        self.ready: set[str] = set()

    def teardown(self) -> None:
        self.stand.close()

    def _live(self, name: str) -> StandIn | None:
        worker = self.stand.workers.get(name)
        return worker if worker is not None and worker.session else None

    def _is_leaving(self, worker: StandIn) -> bool:
        return worker.id in self.draining or worker.id in self.was_terminating

    def _lost(self, worker: StandIn, runs: dict[str, HeldRun]) -> None:
        if not self._is_leaving(worker):
            for name, run in runs.items():
                if run.is_begun and name in self.losses:
                    self.losses[name] += 1

    def _say(self, worker: StandIn, **more: Any) -> None:
        self.stand.say(worker, **more)
        if worker.is_terminating:
            self.was_terminating.add(worker.id)
        else:
            self.was_terminating.discard(worker.id)

    def _is_gone(self, worker: StandIn) -> None:
        worker.runs = {}
        worker.session = ""
        self.draining.discard(worker.id)
        self.was_terminating.discard(worker.id)
        self.offline.pop(worker.id, None)

    @precondition(lambda self: len(self.losses) < 3)
    @rule()
    def queue(self) -> None:
        self.losses[self.stand.add()] = 0

    @rule(name=names, cpus=st.integers(1, 3), is_preemptible=st.booleans())
    def come(self, name: str, cpus: int, is_preemptible: bool) -> None:
        if self._live(name) is None and name not in self.offline:
            self.stand.worker(name, cpus=cpus, is_preemptible=is_preemptible)

    @rule(name=names)
    def work(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self._say(worker)

    @rule(name=names)
    def finish(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self.ready |= worker.runs.keys()
            self._say(worker, state="finalizing")

    @rule(name=names)
    def give_back(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            worker.is_terminating = True
            self._say(worker, state="staged")

    @rule(name=names)
    def lose_one(self, name: str) -> None:
        worker = self._live(name)
        begun = [n for n, run in worker.runs.items() if run.is_begun] if worker else []
        if worker is not None and begun:
            lost = begun[0]
            if worker.is_terminating:
                self.was_terminating.add(worker.id)
            self._lost(worker, {lost: worker.runs[lost]})
            self._say(worker, but=lost)

    @rule(name=names)
    def be_told_to_end(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            worker.is_terminating = True
            self._say(worker)

    @rule(name=names)
    def drain(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self.stand.drain(worker)
            self.draining.add(name)

    @rule(name=names)
    def check_out(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self.stand.leave(worker)
            self._is_gone(worker)

    @rule(name=names)
    def die_and_be_known_to(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self._lost(worker, dict(worker.runs))
            self.stand.owner_says_gone(worker)
            self._is_gone(worker)

    @rule(name=names)
    def die_and_be_started_again_without_anything(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            self._lost(worker, dict(worker.runs))
            worker.runs = {}
            worker.begin()
            self._say(worker)

    @rule(name=names)
    def die_and_be_started_again_with_everything(self, name: str) -> None:
        worker = self._live(name)
        if worker is not None:
            worker.runs = {n: run for n, run in worker.runs.items() if run.is_begun}
            worker.begin()
            self._say(worker)

    @rule(name=names)
    def be_silent(self, name: str) -> None:
        worker = self._live(name)
        if worker is None:
            return
        for _ in range(2):
            self.stand.wait(TIMEOUT_SECONDS * 0.6)
            for other in list(self.stand.workers.values()):
                if other is not worker and other.session:
                    self._say(other)
        begun = {n: run for n, run in worker.runs.items() if run.is_begun}
        if worker.is_preemptible:
            self._lost(worker, begun)
        elif begun:
            worker.runs, worker.session = {}, ""
            self.offline[worker.id] = begun
            return
        self._is_gone(worker)

    @rule(name=names, has_it=st.booleans())
    def come_back(self, name: str, has_it: bool) -> None:
        runs = self.offline.pop(name, None)
        if runs is None:
            return
        worker = self.stand.workers[name]
        if not has_it:
            self._lost(worker, runs)
        worker.begin()
        worker.runs = runs if has_it else {}
        self._say(worker)

    @rule()
    def restart(self) -> None:
        self.was_terminating.clear()
        self.stand.restart()
        for worker in list(self.stand.workers.values()):
            if worker.session:
                self._say(worker)

    @invariant()
    def every_loss_is_counted_and_nothing_else(self) -> None:
        for name, losses in self.losses.items():
            state, metadata = self.stand.row(name)
            assert len(metadata.get(LOST_WITH, ())) == losses, metadata
            assert (state is State.FAILED) == (losses >= MAX_LOSSES)
            if state is State.READY:
                assert name in self.ready

    @invariant()
    def what_may_end_its_worker_has_it_alone(self) -> None:
        for worker in self.stand.books.workers.values():
            entries = [self.stand.entry(name) for name in worker.assigned]
            assert len(entries) < 2 or not any(entry.runs_alone for entry in entries)


TestLosses = Losses.TestCase
TestLosses.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
