from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from cli_desk import uuid_of

from bundles.cli import logs, watch
from bundles.cli.wait import _until_ended
from bundles.cli.watch import LONG_POLL_SECONDS, PATIENCE_SECONDS, Watch
from bundles.client import Client
from bundles.errors import NotFound, RangeNotSatisfiable, ServerFault, Unreachable
from bundles.model import Bundle
from bundles.replies import Change, Changes

A, B = uuid_of("a"), uuid_of("b")


@dataclass
class FakeClient:
    """A server by script: ``now`` moves when somebody waits, and events happen on the way."""

    states: dict[str, str]
    features: frozenset[str] = frozenset({"changes"})
    now: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    history: list[Change] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    fault: Exception | None = None
    reset: bool = False
    content: bytes | None = b""

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        assert seconds >= 0
        self.asked.append(f"pause {seconds}")
        self._pass(self.now + seconds)

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.events.append((time, event))
        self.events.sort(key=lambda pair: pair[0])

    def move(self, uuid: str, state: str) -> None:
        self.history.append(Change(uuid, self.states.get(uuid, ""), state, self.now))
        self.states[uuid] = state

    def _pass(self, until: float, *, woken: Callable[[], bool] = lambda: False) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, event = self.events.pop(0)
            event()
            if woken():
                return
        self.now = until

    def bundles(self, uuids: Sequence[str]) -> list[Bundle]:
        self.asked.append(f"bundles {len(uuids)}")
        self._maybe_fail()
        return [Bundle(uuid=u, bundle_type="run", state=self.states[u]) for u in uuids]

    def changes(
        self, after: int | None, *, wait_seconds: float = 0.0, states: Sequence[str] = ()
    ) -> Changes:
        self.asked.append(f"changes {after}")
        self._maybe_fail()
        if self.reset and after is not None:
            self.reset = False
            return Changes(cursor=len(self.history), reset=True)

        def news() -> list[Change]:
            start = len(self.history) if after is None else after
            return [c for c in self.history[start:] if not states or c.to_state in states]

        if not news():
            self._pass(self.now + wait_seconds, woken=lambda: bool(news()) or bool(self.fault))
            self._maybe_fail()
        return Changes(cursor=len(self.history), changes=tuple(news()))

    def _maybe_fail(self) -> None:
        if self.fault:
            raise self.fault

    @contextmanager
    def download(
        self, uuid: str, path: str = "", *, byte_range: tuple[int, int] | None = None
    ) -> Iterator[Any]:
        self._maybe_fail()
        if self.content is None:
            raise NotFound("no such file")
        content = self.content
        if byte_range is not None:
            first, last = byte_range
            if first >= len(content):
                raise RangeNotSatisfiable("it ends before")
            content = content[first : last + 1]

        class Contents:
            def chunks(self) -> Iterator[bytes]:
                yield content

        yield Contents()


def watching(client: FakeClient, *uuids: str, **options: Any) -> Watch:
    """A watch that has found its place in the change feed, if there is one."""
    watch = Watch(
        cast("Client", client),
        uuids or (A, B),
        clock=client.clock,
        pause=client.pause,
        **options,
    )
    if client.features and not watch.ended:
        watch.step(0.0)
    return watch


def test_a_change_is_noticed_when_it_happens_and_nothing_is_asked_meanwhile() -> None:
    client = FakeClient({A: "staged", B: "staged"})
    watch = watching(client)
    client.asked.clear()
    client.at(7.0, lambda: client.move(A, "ready"))
    assert watch.step(20.0)
    assert (client.now, watch.states) == (7.0, {A: "ready", B: "staged"})
    assert client.asked == ["changes 0"]


def test_a_change_between_the_first_look_and_the_cursor_is_not_lost() -> None:
    client = FakeClient({A: "staged"})
    original = client.changes

    def changes(after: int | None, **options: Any) -> Changes:
        if after is None:
            client.move(A, "ready")
        return original(after, **options)

    client.changes = changes  # type: ignore[method-assign]
    assert watching(client, A).ended


def test_what_has_ended_is_not_asked_about_any_more() -> None:
    client = FakeClient({A: "ready", B: "failed"})
    watch = watching(client)
    assert watch.ended
    assert client.asked == ["bundles 2"]


def test_changes_of_other_bundles_do_not_end_a_step() -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A)
    client.at(1.0, lambda: client.move(B, "ready"))
    client.at(2.0, lambda: client.move(A, "running"))
    assert watch.step(20.0)
    assert (client.now, watch.states) == (2.0, {A: "running"})


def test_a_step_ends_after_its_limit() -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A)
    client.at(1.0, lambda: client.move(B, "ready"))
    assert not watch.step(3.0)
    assert client.now == pytest.approx(3.0)


def test_a_server_that_cannot_tell_is_asked_in_intervals_about_what_has_not_ended() -> None:
    client = FakeClient({A: "ready", B: "staged"}, features=frozenset())
    watch = watching(client, interval_seconds=0.5)
    client.asked.clear()
    client.at(0.7, lambda: client.move(B, "failed"))
    assert not watch.step(10.0)
    assert watch.step(10.0)
    assert watch.ended
    assert client.asked == ["pause 0.5", "bundles 1", "pause 0.5", "bundles 1"]


def test_a_history_that_is_another_one_makes_it_read_anew() -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A)
    client.reset = True
    client.states[A] = "ready"
    assert watch.step(5.0)
    assert watch.ended


def test_states_are_read_once_more_after_a_long_silence() -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A, only=["ready"])
    client.move(A, "running")
    assert not watch.step(LONG_POLL_SECONDS)
    assert watch.step(1.0)
    assert watch.states == {A: "running"}


def test_a_server_that_is_away_is_waited_for_and_asked_anew() -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A)

    def away() -> None:
        client.fault = Unreachable("no answer")

    def back() -> None:
        client.fault = None
        client.states[A] = "ready"

    client.at(1.0, away)
    client.at(5.0, back)
    while not watch.ended:
        watch.step(10.0)
    assert 5.0 <= client.now <= 6.0


@pytest.mark.parametrize("fault", [Unreachable("no answer"), ServerFault("try again")])
def test_a_server_that_stays_away_is_given_up(fault: Exception) -> None:
    client = FakeClient({A: "staged"})
    watch = watching(client, A)
    client.fault = fault
    with pytest.raises(type(fault)):
        _until_ended(watch, None, lambda: None)
    assert PATIENCE_SECONDS <= client.now <= PATIENCE_SECONDS + 2


def test_a_server_that_is_away_from_the_start_is_not_waited_for() -> None:
    client = FakeClient({A: "staged"}, fault=Unreachable("no answer"))
    with pytest.raises(Unreachable):
        watching(client, A)
    assert client.now == 0.0


def test_a_deleted_bundle_is_an_error() -> None:
    client = FakeClient({A: "staged"}, features=frozenset())
    watch = watching(client, A)
    client.fault = NotFound("there is no such bundle")
    with pytest.raises(NotFound):
        watch.step(1.0)


def test_waiting_ends_with_the_last_bundle_or_the_limit() -> None:
    client = FakeClient({A: "staged", B: "ready"})
    watch = watching(client)
    client.at(3.0, lambda: client.move(A, "killed"))
    assert _until_ended(watch, None, lambda: None)
    client = FakeClient({A: "staged"})
    assert not _until_ended(watching(client, A), 0.0, lambda: None)


# logs


def following(client: FakeClient) -> tuple[bytes, list[str], bool]:
    output = io.BytesIO()
    notes: list[str] = []
    written = logs._follow(
        cast("Client", client),
        A,
        "stdout",
        watching(client, A),
        output,
        0.5,
        notes.append,
    )
    return output.getvalue(), notes, written


def test_logs_follow_what_is_written_until_the_bundle_ends() -> None:
    client = FakeClient({A: "staged"}, content=None)

    def write(text: bytes) -> Callable[[], None]:
        def event() -> None:
            client.content = (client.content or b"") + text

        return event

    def end() -> None:
        client.content = (client.content or b"") + b"last"
        client.move(A, "ready")

    client.at(1.0, lambda: client.move(A, "running"))
    client.at(2.0, write(b"one\n"))
    client.at(4.0, write(b"two\n"))
    client.at(4.1, end)
    assert following(client) == (b"one\ntwo\nlast", [], True)
    assert client.now <= 5.0


def test_logs_of_a_run_that_is_started_again_begin_anew() -> None:
    client = FakeClient({A: "running"}, content=b"first try, long")

    def again() -> None:
        client.move(A, "staged")
        client.content = None

    def rerun() -> None:
        client.content = b"second"
        client.move(A, "running")

    client.at(1.0, again)
    client.at(3.0, rerun)
    client.at(4.0, lambda: client.move(A, "ready"))
    output, notes, _ = following(client)
    assert output == b"first try, longsecond"
    assert len(notes) == 1


def test_logs_outlive_a_server_that_is_away_and_read_to_the_end_after_it() -> None:
    client = FakeClient({A: "running"}, content=b"one")

    def away() -> None:
        client.fault = ServerFault("try again")

    def back() -> None:
        client.fault = None
        client.content = b"one and the rest"
        client.states[A] = "ready"

    client.at(1.0, away)
    client.at(9.0, back)
    assert following(client)[0] == b"one and the rest"


def test_logs_read_more_than_one_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SECTION_BYTES", 4)
    client = FakeClient({A: "ready"}, content=b"0123456789ab")
    output = io.BytesIO()
    assert logs._copy(cast("Client", client), A, "stdout", 2, output) == 12
    assert output.getvalue() == b"23456789ab"


def test_the_long_poll_is_shorter_than_what_servers_hold() -> None:
    assert watch.LONG_POLL_SECONDS <= 60
