from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bundles.client import Client
from worker.held import Held
from worker.loop import Loop
from worker.messages import NetcatMessage
from worker.runtimes.base import Address
from worker.visits import Visits

UUID = "0x" + "1" * 32


class Ended:
    """A loop that calls at once what is posted, and tells when that has ended."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.error: Exception | None = None

    def post(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self.error = error
        self.event.set()


@pytest.mark.parametrize("fault", [None, TypeError("it cannot be sent")])
def test_what_cannot_be_answered_is_refused_and_harms_no_run(
    tmp_path: Path, fault: Exception | None
) -> None:
    replies: list[Any] = []

    def reply(worker_id: str, socket_id: int, document: Any) -> None:
        replies.append((socket_id, document["error_code"]))
        if fault is not None:
            raise fault

    def address(key: str) -> Address:
        raise RuntimeError("not foreseen")

    loop = Ended()
    client = cast(Client, SimpleNamespace(reply=reply))
    held = cast(Held, SimpleNamespace(directory=tmp_path, run=SimpleNamespace(key=UUID)))
    visits = Visits(client, cast(Loop, loop), "w1", address)
    visits.answer(held, NetcatMessage(None, None, UUID, socket_id=7, port=80, text="hello"))
    assert loop.event.wait(60)
    assert replies == [(7, 500)]
    assert loop.error is None
