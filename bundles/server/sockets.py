"""Questions to workers about what they run (`read`, `netcat`), and the answers on their way back.

Lives in the event loop. A socket is a number: the letter carries it, the worker answers to it, by
a document (`reply`) or by bytes (`reply_data`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundles.errors import BundlesError, NotFound, NotPermitted, ServerFault, error_for_status
from bundles.server.entries import Letter
from bundles.server.mailroom import Mailroom

ANSWER_SECONDS = 10.0
"""How long a worker may take until the first byte, and from one to the next."""
CHUNKS_AHEAD = 8


class NoAnswer(ServerFault):
    """The worker did not answer in time."""

    status = 504


@dataclass(slots=True)
class Answer:
    """A document, or bytes in ``chunks`` that end with None."""

    document: Mapping[str, Any] | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    chunks: asyncio.Queue[bytes | None] = field(
        default_factory=lambda: asyncio.Queue(maxsize=CHUNKS_AHEAD)
    )

    async def put(self, chunk: bytes | None) -> None:
        """The next bytes; None after the last. Raises ServerFault when nobody reads them."""
        try:
            await asyncio.wait_for(self.chunks.put(chunk), ANSWER_SECONDS)
        except TimeoutError:
            raise NoAnswer("nobody reads the answer any more") from None

    def cut(self) -> None:
        """The worker was cut off: whoever reads is told."""
        while self.chunks.full():
            self.chunks.get_nowait()
        self.chunks.put_nowait(b"")

    async def read(self) -> AsyncIterator[bytes]:
        """The bytes. Raises ServerFault when the worker stops sending them."""
        while True:
            try:
                chunk = await asyncio.wait_for(self.chunks.get(), ANSWER_SECONDS)
            except TimeoutError:
                raise NoAnswer("the worker stopped sending in the middle: try again") from None
            if chunk is None:
                return
            if chunk == b"":
                raise ServerFault("the worker was cut off in the middle: try again")
            yield chunk


@dataclass(slots=True)
class Socket:
    user_id: str
    worker_id: str
    answer: asyncio.Future[Answer]


class Sockets:
    """The questions that are open."""

    def __init__(self, mailroom: Mailroom, first_number: int) -> None:
        self._mailroom = mailroom
        self._next_number = first_number
        self._open: dict[int, Socket] = {}

    async def ask(self, worker_id: str, user_id: str, message: Mapping[str, Any]) -> Answer:
        """Send a question about a bundle to a worker and wait until its answer begins.

        Raises NoAnswer (504) after ``ANSWER_SECONDS``, and what the worker says went wrong.
        """
        number = self._next_number
        self._next_number += 1
        letter_id = f"{message['type']}-{message['uuid']}-{number}"
        socket = Socket(user_id, worker_id, asyncio.get_running_loop().create_future())
        self._open[number] = socket
        letter = Letter(worker_id, letter_id, {**message, "id": letter_id, "socket_id": number})
        self._mailroom.post(letter)
        try:
            answer = await asyncio.wait_for(socket.answer, ANSWER_SECONDS)
        except TimeoutError:
            raise NoAnswer(
                f"worker {worker_id} did not answer within {ANSWER_SECONDS:.0f} s: try again"
            ) from None
        finally:
            self._open.pop(number, None)
            self._mailroom.recall(worker_id, letter_id)
        if answer.document is not None and "error_code" in answer.document:
            raise _worker_error(answer.document)
        return answer

    def find(self, number: int, worker_id: str, user_id: str) -> Socket:
        """The open question that a worker answers. Raises NotFound, NotPermitted."""
        socket = self._open.get(number)
        if socket is None:
            raise NotFound(f"nobody waits for an answer on socket {number} any more")
        if socket.worker_id != worker_id or socket.user_id != user_id:
            raise NotPermitted(f"socket {number} is not this worker's")
        return socket

    def close(self) -> None:
        """Answer every question that is open: the server ends."""
        for socket in self._open.values():
            if not socket.answer.done():
                socket.answer.set_exception(ServerFault("the server is ending: try again"))


def _worker_error(document: Mapping[str, Any]) -> BundlesError:
    code = document.get("error_code")
    sentence = str(document.get("error_message") or "the worker could not answer")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    if status == 500:  # CodaLab's worker says so of a run that it no longer has
        return NotFound(sentence)
    return error_for_status(status, sentence)
