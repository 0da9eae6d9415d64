from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bundles.errors import Conflict
from bundles.server import mailroom as mailroom_module
from bundles.server.entries import Letter
from bundles.server.mailroom import Mailroom


def letter(name: str, worker_id: str = "w") -> Letter:
    return Letter(worker_id, name, {"id": name})


def names(messages: object) -> list[str]:
    assert isinstance(messages, list)
    return [message["id"] for message in messages]


def play(scene: Callable[[Mailroom], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(_scene(), 20)

    async def _scene() -> None:
        await scene(Mailroom())

    asyncio.run(run())


def test_letters_are_collected_at_once_in_order_and_stay_until_recalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailroom_module, "RESEND_SECONDS", 0.0)

    async def scene(room: Mailroom) -> None:
        for name in "abab":
            room.post(letter(name))
        assert names(await room.collect("w", "s", 60)) == ["a", "b"]
        room.recall("w", "a")
        assert names(await room.collect("w", "s", 60)) == ["b"]
        room.recall("w", "b")
        assert await room.collect("w", "s", 0) == []

    play(scene)


def test_a_letter_is_not_sent_with_every_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailroom_module, "RESEND_SECONDS", 0.2)

    async def scene(room: Mailroom) -> None:
        room.post(letter("a"))
        assert names(await room.collect("w", "s", 60)) == ["a"]
        assert await room.collect("w", "s", 0) == []
        assert names(await room.collect("w", "s", 60)) == ["a"]
        room.post(letter("b"))
        assert names(await room.collect("w", "s", 60)) == ["b"]

    play(scene)


def test_who_waits_is_woken_by_a_letter() -> None:
    async def scene(room: Mailroom) -> None:
        waiting = asyncio.ensure_future(room.collect("w", "s", 60))
        await asyncio.sleep(0)
        room.post(letter("x", worker_id="other"))
        room.post(letter("a"))
        assert names(await waiting) == ["a"]

    play(scene)


def test_a_later_check_in_ends_the_wait_of_an_earlier_one() -> None:
    async def scene(room: Mailroom) -> None:
        earlier = asyncio.ensure_future(room.collect("w", "s", 60))
        await asyncio.sleep(0)
        later = asyncio.ensure_future(room.collect("w", "s", 60))
        assert await earlier == []
        room.post(letter("a"))
        assert names(await later) == ["a"]

    play(scene)


def test_a_session_that_was_taken_over_gets_nothing_whenever_it_asks() -> None:
    async def scene(room: Mailroom) -> None:
        waiting = asyncio.ensure_future(room.collect("w", "old", 60))
        await asyncio.sleep(0)
        room.supersede("w", "old")
        room.post(letter("a"))
        with pytest.raises(Conflict):
            await waiting
        with pytest.raises(Conflict):
            await room.collect("w", "old", 60)
        assert names(await room.collect("w", "new", 60)) == ["a"]

    play(scene)


def test_a_worker_that_acknowledges_nothing_gets_one_letter_a_time() -> None:
    async def scene(room: Mailroom) -> None:
        room.post(letter("a"))
        room.post(letter("b"))
        assert await room.collect_one("w", 60) == {"id": "a"}
        assert await room.collect_one("w", 60) == {"id": "b"}
        assert await room.collect_one("w", 0) is None

    play(scene)


def test_everyone_is_answered_when_the_server_ends() -> None:
    async def scene(room: Mailroom) -> None:
        waiting = asyncio.ensure_future(room.collect("w", "s", 60))
        await asyncio.sleep(0)
        room.close()
        assert await waiting == []
        assert await room.collect("w", "s", 60) == []

    play(scene)


def test_a_bell_rings_for_letters_that_lie_there_and_that_come() -> None:
    async def scene(room: Mailroom) -> None:
        rung: list[str] = []
        room.post(letter("a"))
        ring = lambda: rung.append("ring")  # noqa: E731
        room.add_bell("w", ring)
        assert len(rung) == 1
        room.post(letter("b"))
        assert len(rung) == 2
        room.remove_bell("w", ring)
        room.post(letter("c"))
        assert len(rung) == 2

    play(scene)


def test_boxes_of_workers_that_are_gone_are_not_kept() -> None:
    async def scene(room: Mailroom) -> None:
        for number in range(100):
            assert await room.collect(f"w{number}", "s", 0) == []
            room.post(letter("a", f"w{number}"))
            room.recall(f"w{number}", "a")
        assert room._boxes == {}

    play(scene)
