"""`bundle-worker --once`: one bundle run by hand, beside the server that it belongs to."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import COMMAND_SECONDS, Server
from worker_process import Gate

from bundles.exits import WorkerExit


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def start(server: Server, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "worker", "--runtime", "process", "--sandbox", "none"),
            *("--work-dir", str(directory / "work"), *arguments),
        ],
        env=server.env,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def once(server: Server, directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(server, directory, *arguments)
    try:
        stdout, stderr = process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def state(server: Server, uuid: str) -> str:
    return server.output("info", uuid, "-f", "state").strip()


def left(directory: Path) -> list[str]:
    return [str(path) for path in (directory / "work" / "workers").rglob("*")]


def test_a_copy_runs_with_its_dependencies_and_the_server_is_told_nothing(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("from a dependency\n")
    data = server.output("upload", str(tmp_path / "data")).strip()
    uuid = server.output("run", f"in:{data}", "cat in; echo to stderr >&2; echo x > result").strip()
    for _ in range(2):
        code, stdout, stderr = once(server, tmp_path, "--once", uuid)
        assert (code, stdout) == (WorkerExit.FINISHED, "from a dependency\n")
        assert "to stderr\n" in stderr
        for stage in ("Preparing", "Running", "Exit code 0"):
            assert stage in stderr
        assert left(tmp_path) == []
    assert state(server, uuid) == "staged"


def test_how_it_fails_is_said_and_is_the_exit_code(server: Server, tmp_path: Path) -> None:
    uuid = server.output("run", "echo before; exit 3").strip()
    code, stdout, stderr = once(server, tmp_path, "--once", uuid)
    assert (code, stdout) == (WorkerExit.FAILED, "before\n")
    assert "Exit code 3" in stderr
    uuid = server.output("run", "--request-time", "1", "sleep 1000").strip()
    code, _, stderr = once(server, tmp_path, "--once", uuid)
    assert code == WorkerExit.FAILED
    assert "Failed: Time limit exceeded." in stderr


def test_what_cannot_be_run_is_one_sentence(server: Server, tmp_path: Path) -> None:
    nobody = "0x" + "1" * 32
    code, _, stderr = once(server, tmp_path, "--once", nobody)
    assert (code, stderr.count("\n")) == (WorkerExit.FAILED, 1)
    assert f"there is no bundle {nobody}" in stderr
    (tmp_path / "data").write_text("")
    data = server.output("upload", str(tmp_path / "data")).strip()
    assert once(server, tmp_path, "--once", data)[0] == WorkerExit.USAGE
    big = server.output("run", "--request-cpus", "1000", "true").strip()
    code, _, stderr = once(server, tmp_path, "--once", big)
    assert code == WorkerExit.USAGE
    assert "asks for 1000 cpus" in stderr
    assert left(tmp_path) == []


def test_a_signal_ends_the_command_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    uuid = server.output("run", f"echo up > {gate.path}; sleep 1000").strip()
    process = start(server, tmp_path, "--once", uuid)
    try:
        assert gate.path.read_text() == "up\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    assert process.returncode == WorkerExit.TERMINATED
    assert "Failed: Kill requested" in stderr
    assert left(tmp_path) == []


def test_a_second_signal_leaves_nothing_either(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    uuid = server.output("run", f"trap '' TERM INT; echo up > {gate.path}; sleep 1000").strip()
    process = start(server, tmp_path, "--once", uuid)
    try:
        assert gate.path.read_text() == "up\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    assert process.returncode == WorkerExit.TERMINATED
    assert left(tmp_path) == []


def test_the_command_ends_when_nobody_reads_what_it_writes(server: Server, tmp_path: Path) -> None:
    uuid = server.output("run", "while true; do echo line; sleep 0.1; done").strip()
    process = start(server, tmp_path, "--once", uuid)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
        process.stderr.close()
    assert process.returncode == WorkerExit.TERMINATED
    assert "Traceback" not in stderr
    assert left(tmp_path) == []


def test_what_a_killed_one_left_is_removed_by_the_next(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    uuid = server.output("run", f"echo up > {gate.path}; echo $$; sleep 1000").strip()
    process = start(server, tmp_path, "--once", uuid)
    try:
        assert gate.path.read_text() == "up\n"
    finally:
        process.kill()
        process.communicate()
    assert left(tmp_path) != []
    process = start(server, tmp_path, "--once", uuid)
    try:
        assert gate.path.read_text() == "up\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    assert left(tmp_path) == []
