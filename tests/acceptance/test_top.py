"""`worker-manager top` as its reader sees it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from managing import PATIENCE_SECONDS, Managers, eventually


class Terminal:
    """A terminal of 80×24 with `top` in it."""

    def __init__(self, managers: Managers, *options: str) -> None:
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (24, 80))
        self.attributes = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manager", "top", "--refresh-seconds", "0.1", *options],
            env={**managers.server.env, "TERM": "xterm"},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
        )
        self.text = ""

    def shows(self, wanted: str) -> None:
        """Read until it has come."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted not in self.text:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.ours], [], [], max(0.0, left))
            assert ready, f"{wanted!r} never came: {self.text[-2000:]}"
            self.text += os.read(self.ours, 65536).decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.ours, key)

    def left(self) -> int:
        """Its exit code, once it has ended."""
        while self.process.poll() is None:
            ready, _, _ = select.select([self.ours], [], [], 0.1)
            if ready:
                with suppress(OSError):
                    self.text += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.returncode


@contextmanager
def terminal(managers: Managers) -> Iterator[Terminal]:
    made = Terminal(managers)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.ours)
        os.close(made.theirs)


def test_three_pools_are_shown_live_and_q_leaves_the_terminal_as_it_was(
    managers: Managers,
) -> None:
    for name in ("campus", "cloud", "idle"):
        number = "0" if name == "idle" else "1"
        managers.start("--pool", name, "--min", number, "--max", "2", "--sleep-time", "0.2")
    eventually(lambda: len(managers.workers()) == 2, "two workers")
    with terminal(managers) as top:
        top.shows("pools 3   managers 3")
        for name in ("campus", "cloud", "idle"):
            top.shows(f"{name} ")
        managers.stage(40, request_cpus=64)
        top.shows("40 staged bundles would not fit")
        top.press(b"x")
        top.press(b"q")
        assert top.left() == 0
        assert "\x1b[?1049l" in top.text  # back from the alternate screen
        assert "\x1b[3" not in top.text  # NO_COLOR
        assert termios.tcgetattr(top.theirs) == top.attributes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    managers: Managers, number: signal.Signals
) -> None:
    with terminal(managers) as top:
        top.shows("No pool yet")
        top.process.send_signal(number)
        assert top.left() == 0
        assert "\x1b[?1049l" in top.text
        assert termios.tcgetattr(top.theirs) == top.attributes


def test_where_it_cannot_draw_it_prints_one_picture(managers: Managers) -> None:
    managers.start("--pool", "campus", "--min", "1", "--max", "2", "--sleep-time", "0.2")
    eventually(lambda: "1-2" in managers.command("top").stdout, "a pool")
    done = managers.command("top")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("campus ")]) == 1


def test_as_json_it_is_an_object_a_line_until_nobody_reads(managers: Managers) -> None:
    managers.start("--pool", "campus", "--min", "1", "--max", "2", "--sleep-time", "0.2")
    eventually(managers.workers)
    with subprocess.Popen(
        [sys.executable, "-m", "manager", "top", "-o", "json", "--refresh-seconds", "0.1"],
        env=managers.server.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as top:
        assert top.stdout is not None
        assert top.stderr is not None
        documents = [json.loads(top.stdout.readline()) for _ in range(3)]
        top.stdout.close()
        try:
            assert top.wait(PATIENCE_SECONDS) == 1
            assert top.stderr.read() == b""
        finally:
            top.kill()
    assert documents[0]["time"] < documents[1]["time"] < documents[2]["time"]
    (pool,) = documents[-1]["pools"]
    assert (pool["pool"], pool["backend"], pool["max_workers"]) == ("campus", "local-process", 2)


def test_status_tells_of_each_pool_what_failed_and_until_when_it_is_held(
    managers: Managers,
) -> None:
    managers.start("--pool", "good", "--min", "1", "--max", "1", "--sleep-time", "0.2")
    managers.start(
        *("--pool", "bad", "--min", "1", "--max", "1", "--sleep-time", "0.2"),
        *("--worker-executable", "/bin/false"),
        stand_ins=False,
    )

    def held() -> bool:
        pools = managers.json("status", "-o", "json")["pools"]
        return [pool["pool"] for pool in pools if pool["until"]] == ["bad"]

    eventually(held, "a hold")
    shown = managers.command("status").stdout
    assert "failed in the last hour" in shown
    assert " more: " in shown
    assert "good for" in shown
