"""`worker-manager local-process` as a process, beside a server, and stand-ins for its workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from serving import Server

from bundles.model import new_uuid

PATIENCE_SECONDS = 60.0

STAND_IN = """#!/bin/sh
# Takes no bundle and never leaves by itself; says how it was started.
printf '%s\\n' "$*" > arguments
printf '%s\\n' "$WORKER_MANAGER_TOKEN" > token
trap 'exit 7' TERM
while :; do sleep 0.1; done
"""


def eventually(condition: Callable[[], Any], what: str = "it") -> Any:
    """Look until it holds, and return what it gave."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} never came about"
        time.sleep(0.02)


class Managers:
    """The managers of one server's home. ``close`` ends them and every worker of the home."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.directory = server.directory
        self.jobs_directory = server.home.path / "jobs"
        self._running: list[subprocess.Popen[bytes]] = []
        self._number = 0

    def start(self, *options: str, stand_ins: bool = True) -> subprocess.Popen[bytes]:
        """The manager of one pool; its words go to `log(process)`."""
        if stand_ins:
            options = (*options, "--worker-executable", str(self.stand_in()))
        return self.run("local-process", *options)

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """`worker-manager WORDS…`; what it says goes to `log(process)`."""
        self._number += 1
        with (self.directory / f"manager-{self._number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "manager", *words],
                env=self.server.env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process.args = str(self._number)
        self._running.append(process)
        return process

    def stand_in(self) -> Path:
        path = self.directory / "stand-in"
        if not path.exists():
            path.write_text(STAND_IN)
            path.chmod(0o755)
        return path

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.directory / f"manager-{process.args!s}.log").read_text()

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> int:
        process.send_signal(number)
        return process.wait(timeout=PATIENCE_SECONDS)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`worker-manager ARGUMENTS…`, ended."""
        return subprocess.run(
            [sys.executable, "-m", "manager", *arguments],
            env=self.server.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        done = self.command(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def workers(self) -> list[psutil.Process]:
        """The living worker processes of this home, scripts not counted, nor a fork of one
        that is about to become something else."""
        found = []
        for process in psutil.process_iter(["cmdline", "ppid", "status"]):
            words = process.info["cmdline"] or []
            if process.info["status"] == psutil.STATUS_ZOMBIE or "--work-dir" not in words:
                continue
            is_script = len(words) > 1 and words[1].endswith("/script")
            place = words[words.index("--work-dir") + 1]
            if not is_script and place.startswith(str(self.jobs_directory)):
                found.append(process)
        pids = {process.pid for process in found}
        return [process for process in found if process.info["ppid"] not in pids]

    def stage(self, number: int = 1, command: str = "echo hi", **metadata: Any) -> list[str]:
        """Queue runs; returns their uuids."""
        uuids = [new_uuid() for _ in range(number)]
        with self.server.client() as client:
            client.create(
                [
                    {
                        "uuid": uuid,
                        "bundle_type": "run",
                        "command": command,
                        "dependencies": [],
                        "metadata": {
                            "name": "run",
                            "request_cpus": 1,
                            "request_memory": "512m",
                            "request_priority": 0,
                            **metadata,
                        },
                    }
                    for uuid in uuids
                ]
            )
        return uuids

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        kill_jobs(self.jobs_directory)


@contextmanager
def kept_pool(
    server: Server, *words: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """`worker-manager WORDS…`, which must end well when it is asked to."""
    log = server.directory / "manager.log"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-m", "manager", *words],
            env={**server.env, **(environment or {})},
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
        finally:
            process.kill()


def kill_jobs(directory: Path) -> None:
    """End every process of the jobs under a directory, whatever it is about to do."""
    while left := _jobs_processes(directory):
        for process in left:  # scripts come first, which would start their worker again
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=PATIENCE_SECONDS)


def _jobs_processes(directory: Path) -> list[psutil.Process]:
    """Every living process that names the directory, and what descends from it, eldest first."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and any(word.startswith(f"{directory}/") for word in words):
            with suppress(psutil.Error):
                found += [process, *process.children(recursive=True)]
    return found
