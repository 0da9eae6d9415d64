"""`worker-manager demo`, as a user runs it and as a user stops it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

DEMO = [sys.executable, "-m", "manager", "demo"]
PATIENCE_SECONDS = 110.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its temporary home; must be empty, and without processes, after it."""
    directory = tmp_path / "t"
    directory.mkdir()
    yield directory
    left = processes_of(directory)
    for process in left:
        process.kill()
    assert left == []
    assert list(directory.iterdir()) == []


def processes_of(directory: Path) -> list[psutil.Process]:
    """Every living process that names the directory anywhere."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            said = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if any(str(directory) in text for text in said):
                found.append(process)
    return found


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(place)}


def test_the_demo_does_the_main_job_and_every_expectation_holds(place: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--json"],
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {
        *("bundles", "ready", "failed", "workers_launched", "workers_left", "seconds"),
        "matches_direct_count",
    }
    assert (told["bundles"], told["ready"], told["failed"]) == (20, 18, 2)
    assert told["workers_launched"] >= 1
    assert told["workers_left"] == 0
    assert told["matches_direct_count"] is True


def test_the_demo_tells_what_happens_in_plain_lines_where_there_is_no_terminal(
    place: Path,
) -> None:
    done = subprocess.run(
        DEMO,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "decided: launch 2" in done.stdout
    assert "20: 18 ready, 2 failed" in done.stdout
    assert "  self " in done.stdout
    assert "everything went as it must" in done.stdout


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("starting a server", signal.SIGINT),
        ("copying", signal.SIGINT),
        ("queued", signal.SIGINT),
        ("active", signal.SIGINT),
        ("running", signal.SIGINT),
        ("running", signal.SIGTERM),
        ("running", signal.SIGHUP),
        ("merge        running", signal.SIGINT),
        ("every bundle has ended", signal.SIGINT),
    ],
)
def test_the_demo_stopped_at_any_moment_leaves_no_process_and_no_file(
    place: Path, moment: str, number: int
) -> None:
    with subprocess.Popen(
        DEMO,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if moment in line:
                break
        demo.send_signal(number)
        _, error = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 130
    assert error == "worker-manager: stopped; nothing is left\n"


def test_control_c_typed_twice_at_a_terminal_leaves_no_process_and_no_file(place: Path) -> None:
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *DEMO[2:]],
        env={**environment(place), "TERM": "xterm-256color"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as demo:
        os.close(terminal)
        seen = b""
        while b"active" not in seen or "▶".encode() not in seen:
            seen += os.read(control, 65536)
        os.write(control, b"\x03")
        os.write(control, b"\x03")
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while os.read(control, 65536):
                pass
        assert demo.wait(timeout=PATIENCE_SECONDS) == 130
    os.close(control)


TERMINAL = """
import fcntl, os, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
