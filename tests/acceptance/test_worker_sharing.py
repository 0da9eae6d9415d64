"""Workers that share a directory, a machine or a port with others; and one with a real server."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scripted_server import Content, Fault, ScriptedServer
from serving import Server
from worker_process import WorkerProcess

from bundles.exits import WorkerExit
from bundles.model import new_uuid


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as script:
        yield script


def test_two_workers_of_one_directory_share_a_download(
    script: ScriptedServer, tmp_path: Path
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    fault = script.fault("download", Fault(hold=threading.Event()))
    with ScriptedServer() as other_script:
        other_script.contents[(file, "")] = Content(b"G")
        one = WorkerProcess(tmp_path, script.url, worker_id="one")
        two = WorkerProcess(tmp_path, other_script.url, worker_id="two")
        with contextlib.closing(one), contextlib.closing(two):
            one.start()
            first = script.run("cat f", dependencies=[("f", file, "")])
            script.until(fault.met.is_set)
            two.start("--delete-work-dir-on-exit")
            second = other_script.run("cat f", dependencies=[("f", file, "")])
            other_script.until_state(second, "preparing")
            assert fault.hold is not None
            fault.hold.set()
            script.until_over(first)
            other_script.until_over(second)
            assert other_script.files(second)["stdout"] == b"F"
            assert other_script.downloads == []
            assert two.stop() == WorkerExit.FINISHED
            assert one.work_directory.exists()
            again = script.run("cat f", dependencies=[("f", file, "")])
            script.until_over(again)
            assert script.files(again)["stdout"] == b"F"
            assert len(script.downloads) == 1


def test_a_run_can_be_talked_to_at_a_port(script: ScriptedServer, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = (
        f"import socket; s = socket.create_server(('127.0.0.1', {port})); "
        "print('up', flush=True); c, _ = s.accept(); c.sendall(c.recv(9).upper()); c.close()"
    )
    worker = WorkerProcess(tmp_path, script.url)
    with contextlib.closing(worker):
        worker.start()
        uuid = script.run(f'exec {sys.executable} -c "{program}"')
        script.until_state(uuid, "running")

        def printed(number: int) -> bytes:
            """What it has written so far: nothing, too, while there is no such file yet."""
            script.send(
                {
                    "type": "read",
                    "uuid": uuid,
                    "socket_id": number,
                    "path": "stdout",
                    "read_args": {"type": "read_file_section", "offset": 0, "length": 9},
                }
            )
            script.until(lambda: number in script.replies)
            said = script.replies[number]
            return gzip.decompress(said) if isinstance(said, bytes) else b""

        number = 1
        while printed(number) != b"up\n":
            number += 1
        number += 1
        script.send(
            {"type": "netcat", "uuid": uuid, "socket_id": number, "port": port, "message": "hello"}
        )
        script.until(lambda: number in script.replies)
        assert script.replies[number] == b"HELLO"
        script.until_over(uuid)


def test_what_was_running_before_the_worker_is_not_ended_with_a_run(
    script: ScriptedServer, tmp_path: Path
) -> None:
    """A job script starts its watchdog and then becomes the worker."""
    command = (
        f"sleep 4000 & echo $! > {tmp_path}/watchdog; exec {sys.executable} -m worker "
        f"--server {script.url} --work-dir {tmp_path}/work --exit-after-num-runs 1"
    )
    environment = {**os.environ, "WORKER_MANAGER_TOKEN": "t"}
    with subprocess.Popen(["sh", "-c", command], env=environment, cwd=tmp_path) as process:
        uuid = script.run("env -i setsid sleep 5000 > /dev/null 2>&1 & echo $!; sleep 0.2")
        script.until_state(uuid, "finalizing")
        assert process.wait(timeout=30) == WorkerExit.FINISHED
    watchdog = psutil.Process(int((tmp_path / "watchdog").read_text()))
    assert watchdog.cmdline() == ["sleep", "4000"]
    watchdog.kill()
    daemon = int(script.files(uuid)["stdout"])
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(daemon).cmdline() != ["sleep", "5000"]


def test_the_whole_way_with_a_real_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    worker = WorkerProcess(tmp_path / "worker", server.url)
    worker.env = dict(server.env)
    with contextlib.closing(worker):
        worker.start("--preemptible")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "x").write_text("from afar\n")
        data = server.output("upload", str(tmp_path / "data")).strip()
        good = server.output("run", f"d:{data}", "cat d/x; echo new > y").strip()
        after = server.output("run", f"y:{good}/y", "cat y; exit 3").strip()
        waited = server.command("wait", good, after)
        assert waited.returncode == 1
        assert server.output("cat", f"{good}/stdout") == "from afar\n"
        assert server.output("cat", f"{after}/stdout") == "new\n"
        long = server.output("run", "echo begun; sleep 1000").strip()
        with server.client() as client:
            cursor = 0
            while client.bundle(long).state != "running":
                cursor = client.changes(cursor, wait_seconds=10).cursor
            assert server.output("cat", f"{long}/stdout") == "begun\n"
            server.output("kill", long)
            server.command("wait", long)
            assert client.bundle(long).state == "killed"
            # The server is killed, and comes back, under a run that goes on.
            last = server.output("run", "sleep 1; echo done").strip()
            while client.bundle(last).state != "running":
                cursor = client.changes(cursor, wait_seconds=10).cursor
        server.stop(signal.SIGKILL)
        server.start()
        assert server.command("wait", last).returncode == 0
        assert server.output("cat", f"{last}/stdout") == "done\n"
        assert worker.stop() == WorkerExit.FINISHED
        assert worker.stray_commands() == []
        with server.client() as client:
            assert client.workers() == []
