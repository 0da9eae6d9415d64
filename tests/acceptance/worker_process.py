"""`bundle-worker` as a process of a test, with a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

EXIT_SECONDS = 30.0
OWN_FILES = ("lock", "clock", "taken")


class Gate:
    """A fifo: a command that does `read line < FIFO` stays there until ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def open(self) -> None:
        with self.path.open("w") as fifo:
            fifo.write("go\n")


class WorkerProcess:
    """Starts, kills and starts again one worker. ``close`` leaves no process of it behind. An
    empty ``worker_id``: it is given none."""

    def __init__(self, directory: Path, url: str, *, worker_id: str = "w1") -> None:
        self.directory = directory
        self.work_directory = directory / "work"
        self.url = url
        self.worker_id = worker_id
        self.log_path = directory / f"{worker_id}.log"
        self.env: dict[str, str] = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WORKER_MANAGER_", "CODALAB_"))
        } | {"WORKER_MANAGER_TOKEN": "secret-token", "WORKER_MANAGER_HOME": str(directory / "none")}
        # Runs of most tests meet the test in its directory, which no sandbox would let them.
        self.sandbox = "none"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, env: Mapping[str, str] | None = None) -> WorkerProcess:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "worker", "--server", self.url, "--verbose"),
                    *("--runtime", "process", "--sandbox", self.sandbox),
                    *("--work-dir", str(self.work_directory)),
                    *(("--id", self.worker_id) if self.worker_id else ()),
                    *options,
                ],
                env={**self.env, **(env or {})},
                cwd=self.directory,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        return self

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(timeout=EXIT_SECONDS)

    @property
    def has_left(self) -> bool:
        """It was started, and has ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def left_files(self) -> list[str]:
        """Everything in the work directory but empty directories and locks, and what a worker that
        lives knows of itself."""
        return sorted(
            str(path.relative_to(self.work_directory))
            for path in self.work_directory.rglob("*")
            if not path.is_dir() and path.parent.name != "locks" and path.name not in OWN_FILES
        )

    def strays(self) -> list[psutil.Process]:
        """Live processes that have to do with the directory, other than the worker."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if self.process is not None and process.pid == self.process.pid:
                    continue
                said = [*process.cmdline(), process.cwd(), *process.environ().values()]
                if any(str(self.directory) in text for text in said):
                    found.append(process)
        return found

    def stray_commands(self) -> list[str]:
        found = []
        for process in self.strays():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return found

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for stray in self.strays():
            with contextlib.suppress(psutil.Error):
                stray.kill()
