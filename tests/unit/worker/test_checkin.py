from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bundles.errors import BundlesError, Conflict, Unreachable
from worker.checkin import Reporter, Trouble
from worker.loop import Loop

PATIENCE_SECONDS = 20.0


class Wire:
    """A client whose check-ins stay under way until the test answers them."""

    def __init__(self, *features: str) -> None:
        self.features = frozenset(features)
        self.sent: list[dict[str, Any]] = []
        self._answers: dict[int, Any] = {}
        self._changed = threading.Condition()

    def checkin(self, worker_id: str, document: dict[str, Any]) -> list[dict[str, Any]]:
        with self._changed:
            number = len(self.sent)
            self.sent.append(document)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: number in self._answers, PATIENCE_SECONDS)
            answer = self._answers[number]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def answer(self, number: int, answer: Any) -> None:
        with self._changed:
            self._answers[number] = answer
            self._changed.notify_all()

    def until_sent(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, PATIENCE_SECONDS)


class Listener:
    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.troubles: list[Trouble] = []
        self.refuses = 0
        self.state = "preparing"
        self.dependencies: list[list[str]] = []

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        document = {"runs": [], "dependencies": self.dependencies, "state": self.state}
        return document, {"k": self.state}

    def receive(self, document: Any) -> None:
        if self.refuses:
            self.refuses -= 1
            raise OSError("the disk is full")
        self.heard.append(document)

    def stumbled(self, error: Exception) -> None:
        raise error

    def confirmed(self, states: dict[str, str]) -> None:
        pass

    def listened(self) -> None:
        pass

    def troubled(self, trouble: Trouble, error: BundlesError) -> None:
        self.troubles.append(trouble)


class Conversation:
    """The loop in a thread; ``do`` is done in there."""

    def __init__(self, *features: str) -> None:
        self.wire = Wire(*features)
        self.listener = Listener()
        self.loop = Loop()
        self.reporter = Reporter(
            self.wire,  # type: ignore[arg-type]
            self.loop,
            "w",
            self.listener,
            frequency_seconds=0.05,
        )
        self.faults: list[Exception] = []
        self._thread = threading.Thread(target=self.loop.run, args=(self.faults.append,))
        self._thread.start()

    def do(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self.loop.post(lambda: (what(), done.set()))
        assert done.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self.do(self.reporter.close)
        for number in range(len(self.wire.sent) + 2):
            self.wire.answer(number, [])
        self.loop.stop()
        self._thread.join()
        self.loop.close()
        assert self.faults == []


@pytest.fixture
def talk() -> Iterator[Conversation]:
    conversation = Conversation("batch", "claims")
    yield conversation
    conversation.close()


def test_the_first_is_not_held_and_the_next_waits_there(talk: Conversation) -> None:
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    assert talk.wire.sent[0]["wait_seconds"] == 0.0
    talk.wire.answer(0, [])
    talk.wire.until_sent(2)
    assert talk.wire.sent[1]["wait_seconds"] == 25.0
    assert [document["sequence"] for document in talk.wire.sent] == [1, 2]
    assert talk.wire.sent[0]["session"] == talk.wire.sent[1]["session"]


def test_news_overtake_the_one_that_waits_and_more_news_wait_for_company(
    talk: Conversation,
) -> None:
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.do(talk.reporter.now)
    talk.wire.until_sent(2)
    for state in ("running", "finalizing"):
        talk.listener.state = state
        talk.do(talk.reporter.now)
    assert len(talk.wire.sent) == 2  # both lanes are taken
    talk.wire.answer(0, [])
    talk.wire.until_sent(3)
    assert talk.wire.sent[2]["state"] == "finalizing"


def test_a_message_is_handled_once_and_acknowledged_until_that_is_confirmed(
    talk: Conversation,
) -> None:
    message = {"id": "m1", "type": "kill"}
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.wire.answer(0, [message])
    talk.wire.until_sent(2)
    assert talk.wire.sent[1]["acknowledged"] == ("m1",)
    talk.wire.answer(1, Unreachable("the reply was lost"))
    talk.wire.until_sent(3)
    assert talk.wire.sent[2]["acknowledged"] == ("m1",)
    talk.wire.answer(2, [message, {"id": "m2", "type": "kill"}])
    talk.wire.until_sent(4)
    assert set(talk.wire.sent[3]["acknowledged"]) == {"m1", "m2"}
    talk.wire.answer(3, [])
    talk.wire.until_sent(5)
    assert talk.wire.sent[4]["acknowledged"] == ()
    assert [heard["id"] for heard in talk.listener.heard] == ["m1", "m2"]


def test_a_message_that_could_not_be_written_down_is_not_acknowledged(
    talk: Conversation,
) -> None:
    talk.listener.refuses = 1
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.wire.answer(0, [{"id": "m1", "type": "run"}, {"id": "m2", "type": "kill"}])
    talk.wire.until_sent(2)
    assert talk.wire.sent[1]["acknowledged"] == ("m2",)
    talk.wire.answer(1, [{"id": "m1", "type": "run"}])
    talk.wire.until_sent(3)
    assert talk.wire.sent[2]["acknowledged"] == ("m1",)


def test_a_failed_report_is_sent_again_as_it_is_by_then(talk: Conversation) -> None:
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.listener.state = "finalizing"
    talk.wire.answer(0, Unreachable("no answer"))
    talk.wire.until_sent(2)
    assert talk.wire.sent[1]["state"] == "finalizing"
    assert talk.listener.troubles == [Trouble.AWAY]


def test_a_session_that_was_taken_over_is_told_so(talk: Conversation) -> None:
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.wire.answer(0, Conflict("another session took over"))
    talk.wire.until_sent(2)
    assert talk.listener.troubles == [Trouble.REPLACED]


def test_a_codalab_server_gets_one_at_a_time() -> None:
    talk = Conversation()
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.do(talk.reporter.now)
    assert len(talk.wire.sent) == 1
    talk.wire.answer(0, [])
    talk.wire.until_sent(2)
    talk.close()


def test_a_codalab_server_is_told_the_end_of_a_short_run_with_its_beginning() -> None:
    talk = Conversation()
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.wire.answer(0, [{"type": "run"}])
    while not talk.listener.heard:
        talk.do(lambda: None)
    talk.do(talk.reporter.soon)
    talk.listener.state = "finalizing"
    talk.do(talk.reporter.now)
    talk.wire.until_sent(2)
    assert talk.wire.sent[1]["state"] == "finalizing"
    talk.close()


@pytest.mark.parametrize("features", [(), ("batch",)])
def test_a_codalab_server_is_told_of_as_many_dependencies_as_its_database_takes(
    features: tuple[str, ...],
) -> None:
    talk = Conversation(*features)
    talk.listener.dependencies = [[f"0x{number:032x}", "päth"] for number in range(5000)]
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    told = talk.wire.sent[0]["dependencies"]
    talk.close()
    if features:
        assert told == talk.listener.dependencies
    else:
        # As CodaLab's WorkerModel writes it down.
        assert 50_000 < len(json.dumps(told, separators=(",", ":"))) <= 60_000
        assert told == talk.listener.dependencies[: len(told)]


def test_an_answer_that_nobody_foresaw_does_not_silence_the_worker(talk: Conversation) -> None:
    talk.do(talk.reporter.now)
    talk.wire.until_sent(1)
    talk.wire.answer(0, TypeError("not foreseen"))
    talk.wire.until_sent(2)
    assert talk.listener.troubles == [Trouble.AWAY]
