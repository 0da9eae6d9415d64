from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from bundles.client import Client
from bundles.home import Credentials
from worker import transfers
from worker.transfers import Cancelled, CutOff, Transfer

CONTENT = bytes(range(256)) * 4
UUID = f"0x{1:032x}"


class Shaky:
    """A server that sends at most ``most`` bytes a connection, of one file."""

    def __init__(self, *, most: int = 300, directory: bool = False) -> None:
        self.most = most
        self.is_directory = directory
        self.tag = '"one"'
        self.asked: list[tuple[str | None, str | None]] = []
        self.refusals: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        part, skip = request.headers.get("Range"), request.url.params.get("skip")
        self.asked.append((part, skip))
        if self.refusals:
            return httpx.Response(self.refusals.pop(), text="broken on purpose")
        headers = {"Target-Type": "directory" if self.is_directory else "file", "ETag": self.tag}
        headers["Bundles-Features"] = "resume"
        start, status = 0, 200
        if part is not None and request.headers["If-Range"] == self.tag:
            start = int(part.removeprefix("bytes=").removesuffix("-"))
            if self.is_directory:
                assert skip == str(start)
                headers["Bundles-Skipped"] = str(start)
            else:
                headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
                status = 206
        return httpx.Response(status, content=self._send(start), headers=headers)

    def _send(self, start: int) -> Iterator[bytes]:
        yield CONTENT[start : start + self.most]
        if start + self.most < len(CONTENT):
            raise httpx.ReadError("cut on purpose")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(transfers, "LONGEST_WAIT_SECONDS", 0.0)


def receive(server: Shaky, cancelled: threading.Event | None = None) -> bytes:
    with Client(
        "http://server", Credentials(token="t"), transport=httpx.MockTransport(server)
    ) as client:
        transfer = Transfer(client, UUID, "", cancelled or threading.Event())
        with transfer.opened():
            content = b"".join(transfer.chunks())
        assert transfer.received_bytes == len(content)
        return content


@pytest.mark.parametrize("directory", [False, True])
def test_what_is_cut_goes_on_where_it_was_cut(directory: bool) -> None:
    server = Shaky(directory=directory)
    assert receive(server) == CONTENT
    assert [part for part, _ in server.asked] == [None, "bytes=300-", "bytes=600-", "bytes=900-"]


def test_a_server_that_is_away_meanwhile_is_waited_for() -> None:
    server = Shaky(most=600)
    chunks = server._send

    def send_and_go(start: int) -> Iterator[bytes]:
        if start == 0:
            server.refusals = [503, 502, 503]
        yield from chunks(start)

    server._send = send_and_go  # type: ignore[method-assign]
    assert receive(server) == CONTENT
    assert len(server.asked) == 5


def test_a_server_that_cannot_go_on_is_asked_for_all_of_it_by_who_wants_it() -> None:
    server = Shaky()
    chunks = server._send

    def send_and_change(start: int) -> Iterator[bytes]:
        server.tag = '"two"'
        yield from chunks(start)

    server._send = send_and_change  # type: ignore[method-assign]
    with pytest.raises(CutOff, match="cannot go on"):
        receive(server)


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_a_server_without_a_tag_is_not_asked_to_go_on(tag: str) -> None:
    server = Shaky()
    server.tag = tag
    with pytest.raises(CutOff, match="cut on purpose"):
        receive(server)
    assert len(server.asked) == 1


def test_a_server_that_sends_nothing_any_more_is_given_up_on() -> None:
    server = Shaky()
    server._send = lambda start: Shaky(most=0)._send(start)  # type: ignore[method-assign]
    with pytest.raises(CutOff):
        receive(server)
    assert len(server.asked) == 1 + transfers.FRUITLESS_CUTS


def test_what_nobody_needs_any_more_is_not_gone_on_with() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        receive(Shaky(), cancelled)
