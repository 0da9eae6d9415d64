"""Letters for workers, kept until they are acknowledged, and the check-ins that wait for them.

Lives in the event loop; the desk posts, check-ins collect. Not written anywhere: what must survive
a restart of the server is made again from the books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundles.errors import Conflict
from bundles.server.entries import Letter

RESEND_SECONDS = 1.0
"""A letter that is not acknowledged is sent again this long after: not with every reply, since a
worker may well check in again while it is still about it."""

REMEMBERED_SESSIONS = 1000
_LOOK = "look again"
_DISPLACED = "a later check-in waits now"
_SUPERSEDED = "another session took over"


@dataclass(slots=True)
class _Slot:
    letter: Letter
    sent: float | None = None


@dataclass(slots=True)
class _Box:
    slots: dict[str, _Slot] = field(default_factory=dict)
    waiter: asyncio.Future[str] | None = None
    session: str | None = None
    bells: set[Callable[[], None]] = field(default_factory=set)


class Mailroom:
    """One box a worker."""

    def __init__(self) -> None:
        self._boxes: dict[str, _Box] = {}
        self._superseded: dict[tuple[str, str], None] = {}
        self._is_closed = False

    def post(self, letter: Letter) -> None:
        """Put a letter in its box, unless the same one lies there, and wake who waits for it."""
        box = self._boxes.setdefault(letter.worker_id, _Box())
        if letter.id not in box.slots:
            box.slots[letter.id] = _Slot(letter)
            _end_wait(box.waiter, _LOOK)
            for bell in box.bells:
                bell()

    def recall(self, worker_id: str, letter_id: str) -> None:
        """Take a letter out: acknowledged, or no longer true."""
        box = self._boxes.get(worker_id)
        if box is not None:
            box.slots.pop(letter_id, None)
            self._tidy(worker_id, box)

    def supersede(self, worker_id: str, session: str) -> None:
        """Another session took over: this one's check-in that waits, or is about to, is refused,
        so that it is never handed what is meant for the other."""
        self._superseded[worker_id, session] = None
        if len(self._superseded) > REMEMBERED_SESSIONS:
            del self._superseded[next(iter(self._superseded))]
        box = self._boxes.get(worker_id)
        if box is not None and box.session == session:
            _end_wait(box.waiter, _SUPERSEDED)

    def close(self) -> None:
        """Answer every check-in that waits, now and from now on, with what there is."""
        self._is_closed = True
        for box in self._boxes.values():
            _end_wait(box.waiter, _LOOK)

    async def collect(
        self, worker_id: str, session: str, wait_seconds: float
    ) -> list[Mapping[str, Any]]:
        """The letters of the worker, oldest first, as soon as there is one; none after the wait.

        They stay in the box until they are recalled. Raises Conflict when the session is taken
        over meanwhile. A later check-in of the same worker ends the wait of an earlier one.
        """
        if (worker_id, session) in self._superseded:
            raise _taken_over(worker_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        box = self._boxes.setdefault(worker_id, _Box())
        _end_wait(box.waiter, _DISPLACED)
        box.session = session
        while True:
            due, next_due = _due(box, loop.time())
            if due:
                for slot in due:
                    slot.sent = loop.time()
                return [slot.letter.message for slot in due]
            remaining = min(deadline, next_due) - loop.time()
            if deadline <= loop.time() or self._is_closed:
                self._tidy(worker_id, box)
                return []
            waiter = box.waiter = loop.create_future()
            handle = loop.call_later(max(0.0, remaining), _end_wait, waiter, _LOOK)
            try:
                why = await waiter
            finally:
                handle.cancel()
                if box.waiter is waiter:
                    box.waiter = None
                    self._tidy(worker_id, box)
            if why == _DISPLACED:
                return []
            if why == _SUPERSEDED:
                raise _taken_over(worker_id)
            box = self._boxes.setdefault(worker_id, box)

    async def collect_one(self, worker_id: str, wait_seconds: float) -> Mapping[str, Any] | None:
        """For a worker that acknowledges nothing: its next letter, which leaves the box."""
        found = await self.collect(worker_id, "", wait_seconds)
        if not found:
            return None
        box = self._boxes[worker_id]
        for message in found[1:]:
            box.slots[message["id"]].sent = None
        del box.slots[found[0]["id"]]
        if box.slots:  # however many came since the last check-in, the bell may have rung once
            for bell in box.bells:
                bell()
        self._tidy(worker_id, box)
        return found[0]

    def add_bell(self, worker_id: str, bell: Callable[[], None]) -> None:
        """Call ``bell`` whenever a letter for the worker comes; at once if one lies there."""
        box = self._boxes.setdefault(worker_id, _Box())
        box.bells.add(bell)
        if box.slots:
            bell()

    def has_bell(self, worker_id: str) -> bool:
        """Whether the worker listens to a bell, so that it need not wait for its letters."""
        box = self._boxes.get(worker_id)
        return box is not None and bool(box.bells)

    def remove_bell(self, worker_id: str, bell: Callable[[], None]) -> None:
        box = self._boxes.get(worker_id)
        if box is not None:
            box.bells.discard(bell)
            self._tidy(worker_id, box)

    def _tidy(self, worker_id: str, box: _Box) -> None:
        if not box.slots and not box.bells and box.waiter is None:
            self._boxes.pop(worker_id, None)


def _taken_over(worker_id: str) -> Conflict:
    return Conflict(f"worker {worker_id} was taken over by another session")


def _due(box: _Box, now: float) -> tuple[list[_Slot], float]:
    due: list[_Slot] = []
    next_due = float("inf")
    for slot in box.slots.values():
        when = 0.0 if slot.sent is None else slot.sent + RESEND_SECONDS
        if when <= now:
            due.append(slot)
        else:
            next_due = min(next_due, when)
    return due, next_due


def _end_wait(waiter: asyncio.Future[str] | None, why: str) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(why)
