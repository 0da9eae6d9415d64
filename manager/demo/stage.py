"""Where the demo plays: a temporary home, a server and a manager over it; and its clearing away.

Whatever was started here descends from this process, which adopts orphans (PR_SET_CHILD_SUBREAPER,
prctl(2)); so it can all be found and ended, workers and the processes of their bundles included.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bundles.errors import BundlesError
from bundles.home import HOME_VARIABLE, SERVER_VARIABLE, TOKEN_VARIABLE, Home
from bundles.home import PASSWORD_VARIABLE as PASSWORD
from bundles.home import USER_VARIABLE as USER

POOL = "demo"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36
_LOG_LINES = 8


@dataclass(frozen=True, slots=True)
class Containers:
    """The workers are containers of this image, and what they run is in it, too."""

    image: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--image", self.image, "--runtime", "process")

    def remove(self, home: Home) -> None:
        """Leave none of the demo's, ended ones included. Raises BackendError."""
        from backends.local_docker.backend import LocalDocker
        from backends.local_docker.options import Settings
        from manager.installation import Installation

        installation = Installation(home)
        if installation.owner():
            context = installation.context(POOL, os.environ)
            LocalDocker(context, Settings(self.image, "process")).remove_all()


class Broken(BundlesError):
    """A process of the demo failed; the message says which, and how its log ends."""


class Stage:
    """The processes of one demo. ``close`` leaves no process and no file, whatever happened."""

    def __init__(self, containers: Containers | None = None) -> None:
        self.containers = containers
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.directory = Path(tempfile.mkdtemp(prefix="worker-manager-demo-"))
        self.home = Home(self.directory / "home")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> str:
        """Start it on a free port; returns its address once it listens. Raises Broken."""
        process = self._start("server", "bundles", "serve", "--port", "0")
        line = self._first_line(process)
        if not line.startswith("Serving on "):
            raise Broken(f"the server did not start: {self._end_of_log('server') or line!r}")
        return line.removeprefix("Serving on ").strip()

    def start_manager(self, *options: str) -> None:
        backend = (
            ("local-docker", *self.containers.options) if self.containers else ("local-process",)
        )
        self._start("manager", "manager", *backend, "--pool", POOL, *options)

    def check(self) -> None:
        """Raises Broken when the server or the manager is gone."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                raise Broken(
                    f"the {name} left with exit code {code}: {self._end_of_log(name) or 'no word'}"
                )

    def stop(self, name: str) -> None:
        """Let a process end by itself. Raises Broken when it does not."""
        process = self._processes.pop(name)
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken(f"the {name} did not end within {STOP_SECONDS:g} s") from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        if code != 0:
            raise Broken(f"the {name} ended with exit code {code}: {self._end_of_log(name)}")

    def left(self) -> list[psutil.Process]:
        """Every living process that descends from this one."""
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if _status(process) not in (psutil.STATUS_ZOMBIE, None)
        ]

    def close(self) -> None:
        """End every process by force, and remove every file."""
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            left = self.left()
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            self._reap()
            if not left:
                break
            psutil.wait_procs(left, timeout=0.5)
        for started in self._processes.values():
            if started.stdout is not None:
                started.stdout.close()
        try:
            if self.containers is not None:
                self.containers.remove(self.home)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of ours, in a session of its own: Ctrl-C reaches this process alone."""
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        ours = (SERVER_VARIABLE, TOKEN_VARIABLE, USER, PASSWORD)
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {HOME_VARIABLE: str(self.home.path), "TMPDIR": str(temporary)}
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if name == "server" else log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def _first_line(self, process: subprocess.Popen[bytes]) -> str:
        """What a process first prints; "" when it ends, or time does, before it prints."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        return process.stdout.readline().decode(errors="replace") if ready else ""

    def _end_of_log(self, name: str) -> str:
        with suppress(OSError):
            lines = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
            return " / ".join(line.strip() for line in lines[-_LOG_LINES:])
        return ""

    @staticmethod
    def _reap() -> None:
        """Let go of every ended child, adopted ones included."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _status(process: psutil.Process) -> str | None:
    try:
        return str(process.status())
    except psutil.Error:
        return None


def ignore_signals() -> None:
    """From here on the clearing away is not interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
