from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pool_fakes import GIB, FakeServer

from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import SIGNALS, Alarm
from manager.lease import LeaseLost
from manager.operation import Operation
from manager.pulse import MISSED_TICKS, TICK_SECONDS, Pulse
from manager.queue import QueueConfig
from manager.staged import StagedBundles
from manager.systemd import ALIVE, READY, Systemd
from manager.watchdog import Watchdog, at_most


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(clock: Clock) -> Pulse:
    return Pulse(clock)


def test_nothing_is_due_before_the_first_sign_of_life(pulse: Pulse, clock: Clock) -> None:
    clock.now += 1e6
    assert pulse.is_alive
    assert not pulse.is_stuck


def test_a_tick_that_waits_as_long_as_it_said_is_no_missed_one(pulse: Pulse, clock: Clock) -> None:
    pulse.ticked(0.1, None, 3600.0)
    clock.now += 3600 + TICK_SECONDS
    assert pulse.is_alive


def test_one_missed_tick_is_not_alive_and_three_are_stuck(pulse: Pulse, clock: Clock) -> None:
    pulse.ticked(0.1, None, 5.0)
    clock.now += 5 + TICK_SECONDS + 1
    assert not pulse.is_alive
    assert not pulse.is_stuck
    clock.now += (MISSED_TICKS - 1) * TICK_SECONDS
    assert pulse.is_stuck


def test_a_call_that_comes_back_is_a_sign_of_life(pulse: Pulse, clock: Clock) -> None:
    pulse.ticked(0.1, None, 5.0)
    clock.now += 2 * TICK_SECONDS
    pulse.beat()
    assert pulse.is_alive


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.setblocking(False)
        listener.bind("notify")
        yield listener


def heard(listener: socket.socket) -> list[str]:
    words = []
    while True:
        try:
            words.append(listener.recv(4096).decode())
        except BlockingIOError:
            return words


@pytest.fixture
def systemd(listener: socket.socket) -> Systemd:
    # The paths of pytest are longer than a socket's may be; ours begin with a / all the same.
    return Systemd({"NOTIFY_SOCKET": f"/proc/self/cwd/{listener.getsockname()}"})


def test_systemd_hears_that_all_is_well_as_long_as_it_is(
    pulse: Pulse, clock: Clock, listener: socket.socket, systemd: Systemd
) -> None:
    ends: list[int] = []
    watchdog = Watchdog(pulse, systemd, end=ends.append)
    pulse.beat(5.0)
    watchdog.look(watchdog.look_seconds)
    assert heard(listener) == [ALIVE]
    clock.now += 6 + MISSED_TICKS * TICK_SECONDS
    watchdog.look(watchdog.look_seconds)
    assert heard(listener) == []
    assert ends == [1]


def test_a_manager_that_is_stuck_says_where_and_ends(
    pulse: Pulse, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[int] = []
    pulse.beat()
    clock.now += MISSED_TICKS * TICK_SECONDS + 10
    Watchdog(pulse, Systemd({}), end=ends.append).look(5.0)
    assert ends == [1]
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage().startswith("stuck for 370 s in ")
    assert "the workers go on" in record.getMessage()


def test_a_manager_that_is_stuck_in_its_log_ends_all_the_same(
    pulse: Pulse, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(logging.Handler):
        released = threading.Event()

        def emit(self, record: logging.LogRecord) -> None:
            assert self.released.wait(60)

    monkeypatch.setattr("manager.watchdog.LAST_WORDS_SECONDS", 0.05)
    full = Full()
    logger = logging.getLogger("manager")
    logger.addHandler(full)
    try:
        ends: list[int] = []
        pulse.beat()
        clock.now += MISSED_TICKS * TICK_SECONDS + 10
        Watchdog(pulse, Systemd({}), end=ends.append).look(5.0)
        assert ends == [1]
    finally:
        full.released.set()
        logger.removeHandler(full)


def test_a_process_that_stood_still_as_a_whole_is_not_stuck(pulse: Pulse, clock: Clock) -> None:
    ends: list[int] = []
    watchdog = Watchdog(pulse, Systemd({}), end=ends.append)
    pulse.beat()
    clock.now += 7200
    watchdog.look(7200)
    assert ends == []
    clock.now += MISSED_TICKS * TICK_SECONDS + 10
    watchdog.look(watchdog.look_seconds)
    assert ends == [1]


def test_the_thread_watches_until_it_is_closed(pulse: Pulse, clock: Clock) -> None:
    ended = threading.Event()
    watchdog = Watchdog(pulse, Systemd({}), end=lambda code: ended.set())
    watchdog.look_seconds = 0.01
    pulse.beat()
    clock.now += MISSED_TICKS * TICK_SECONDS + 10
    with watchdog:
        assert ended.wait(60)
    watchdog.join(60)
    assert not watchdog.is_alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_systemd_wants_to_hear(environ: dict[str, str], seconds: float | None) -> None:
    assert Systemd(environ).watchdog_seconds == seconds
    look_seconds = Watchdog(Pulse(), Systemd(environ)).look_seconds
    assert look_seconds == (1.5 if seconds else 5.0)


def test_systemd_is_told_lines_also_at_an_abstract_address(
    listener: socket.socket, systemd: Systemd
) -> None:
    systemd.tell(READY, "STATUS=well")
    assert heard(listener) == ["READY=1\nSTATUS=well"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.setblocking(False)
        abstract.bind("")  # the kernel chooses a name
        name = abstract.getsockname().decode().replace("\0", "@", 1)
        Systemd({"NOTIFY_SOCKET": name}).tell(READY)
        assert heard(abstract) == ["READY=1"]


def test_systemd_is_told_why_nothing_can_be_done_and_when_it_can_again(
    listener: socket.socket,
) -> None:
    address = f"/proc/self/cwd/{listener.getsockname()}"
    with Operation({"NOTIFY_SOCKET": address}, Alarm()) as operation:
        operation.kept = ["one", "two"]
        operation.say()
        for error in (None, LeaseLost("another manager\nkeeps a pool"), LeaseLost("another"), None):
            operation.ticked(0.1, error, 5.0)
    said = [line for words in heard(listener) for line in words.split("\n") if "STATUS" in line]
    assert said == [
        "STATUS=keeping the pools one, two",
        "STATUS=another manager keeps a pool",
        "STATUS=another",
        "STATUS=keeping the pools one, two",
    ]


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:2:1234"])
def test_nobody_who_listens_is_no_error(address: str) -> None:
    Systemd({"NOTIFY_SOCKET": address}).tell(READY)


def test_what_takes_longer_than_it_may_is_ended_and_what_does_not_is_not() -> None:
    ended = threading.Event()
    with at_most(0.01, end=lambda code: ended.set()):
        assert ended.wait(60)
    never: list[int] = []
    with at_most(60, end=never.append):
        pass
    assert never == []


def test_after_the_first_signal_the_next_may_end_the_process_at_once() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        alarm = Alarm()
        alarm.listen()
        alarm.let_go()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup was said"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_long_queue_that_is_read_page_by_page_gives_signs_of_life() -> None:
    server = FakeServer(root=True)
    server.stage(2500)
    pages: list[None] = []
    with Client(
        "http://s", Credentials(token="t"), transport=httpx.MockTransport(server)
    ) as client:
        staged = StagedBundles(client, each_page=lambda: pages.append(None))
        assert len(staged.read([QueueConfig(cpus=1, gpus=0, memory_bytes=GIB)])) == 2500
    assert len(pages) == 3
