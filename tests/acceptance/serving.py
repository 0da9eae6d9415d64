"""A real server, as its users start it, and their commands as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bundles.client import Client
from bundles.home import Home, find_credentials

COMMAND_SECONDS = 60.0


@contextmanager
def serving(server: Server, *options: str) -> Iterator[Server]:
    """Started, and it must end by itself when it is asked to."""
    server.start(*options)
    try:
        yield server
    finally:
        if server.running:
            assert server.stop() == 0


class Server:
    """`bundles serve` over a home of its own. ``env`` makes every command find it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = Home(directory / "home")
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WORKER_MANAGER_", "CODALAB_"))
        } | {"WORKER_MANAGER_HOME": str(self.home.path), "NO_COLOR": "1", "COLUMNS": "80"}
        self.url = ""
        self.log = directory / "server.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """At any free port the first time, at the same one after that."""
        port = self.url.rpartition(":")[2] or "0"
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bundles", "serve", "--port", port, *options],
                env=self.env,
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("Serving on "), f"it said {line!r}; {self.log.read_text()}"
        self.url = line.removeprefix("Serving on ").strip()

    def stop(self, number: int = signal.SIGTERM, *, patience_seconds: float = 15.0) -> int:
        """Send a signal; the exit code. Fails when it does not exit."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(timeout=patience_seconds)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @property
    def running(self) -> bool:
        return self._process is not None

    def client(self, *, patience_seconds: float = 0.0) -> Client:
        """A client of the administrator."""
        return Client(
            self.url, find_credentials(self.url, self.home, {}), patience_seconds=patience_seconds
        )

    def start_command(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """`bundles ARGUMENTS…`, under way."""
        return subprocess.Popen(
            [sys.executable, "-m", "bundles", *arguments],
            env={**self.env, **(env or {})},
            cwd=cwd or self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(
        self,
        *arguments: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`bundles ARGUMENTS…`, ended."""
        return subprocess.run(
            [sys.executable, "-m", "bundles", *arguments],
            env={**self.env, **(env or {})},
            cwd=cwd or self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def output(self, *arguments: str, cwd: Path | None = None) -> str:
        """What `bundles ARGUMENTS…` writes to stdout, when it exits with 0."""
        done = self.command(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout
