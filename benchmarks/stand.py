"""A server, workers and a manager of their own, in a temporary home, for one measurement.

Starts the installed commands as a user would, and ends them. Measures nothing itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bundles.client import Client
from bundles.home import Home, find_credentials
from bundles.model import FINAL_STATES, Bundle, new_uuid


class Stand:
    """`with Stand() as stand:` a server is listening; what else is started ends with it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="worker-manager-benchmark-"))
        self.home = Home(self.path / "home")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WORKER_MANAGER_", "CODALAB_"))
        } | {"WORKER_MANAGER_HOME": str(self.home.path)}
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Stand:
        self.server = self.start("bundles", "serve", "--port", "0", stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line.startswith("Serving on "):
            raise RuntimeError(f"the server did not start: {line!r}")
        self.url = line.split()[-1]
        self.client = Client(self.url, find_credentials(self.url, self.home, {}))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        for process in reversed(self._processes):
            self.stop(process)
        shutil.rmtree(self.path, ignore_errors=True)

    def start(self, module: str, *arguments: str, stdout: Any = None) -> subprocess.Popen[str]:
        """One of our commands, by its package; its log goes to a file in the stand."""
        with open(self.path / f"{module}-{len(self._processes)}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self.environment,
                stdout=stdout if stdout is not None else log,
                stderr=log,
                text=True,
            )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def start_worker(self, *arguments: str, runtime: str = "process") -> subprocess.Popen[str]:
        """A worker with two slots, and return when the server knows it."""
        before = len(self.client.workers())
        work_directory = self.path / f"worker-{len(self._processes)}"
        worker = self.start(
            "worker",
            *("--server", self.url, "--work-dir", str(work_directory), "--runtime", runtime),
            *("--cpus", "2", "--id", work_directory.name, *arguments),
        )
        cursor = self.client.changes(None).cursor
        while len(self.client.workers()) == before:
            # No change says that a worker came; this only paces the asking.
            self.client.changes(cursor, wait_seconds=0.05)
        return worker

    def submit(
        self,
        commands: Sequence[str],
        *,
        dependencies: Sequence[Mapping[str, str]] = (),
        **metadata: Any,
    ) -> list[str]:
        """One request for all; returns the uuids."""
        created = self.client.create(
            [
                {
                    "uuid": new_uuid(),
                    "bundle_type": "run",
                    "command": command,
                    "dependencies": list(dependencies),
                    "metadata": {
                        "name": "benchmark",
                        "request_memory": "64m",
                        "request_priority": 0,
                        **metadata,
                    },
                }
                for command in commands
            ]
        )
        return [bundle.uuid for bundle in created]

    def wait_for(self, uuids: Sequence[str], after: int, states: frozenset[str]) -> None:
        """Return when each uuid has reached one of the states after the cursor."""
        waiting, cursor = set(uuids), after
        while waiting:
            page = self.client.changes(cursor, wait_seconds=30, states=sorted(states))
            cursor = page.cursor
            waiting.difference_update(change.uuid for change in page.changes)

    def drain(self, commands: Sequence[str], **metadata: Any) -> list[Bundle]:
        """Submit, wait for all ends, insist that all are ready."""
        after = self.client.changes(None).cursor
        uuids = self.submit(commands, **metadata)
        self.wait_for(uuids, after, frozenset(FINAL_STATES))
        bundles = self.client.bundles(uuids)
        bad = [bundle for bundle in bundles if bundle.state != "ready"]
        if bad:
            raise RuntimeError(f"{bad[0].uuid} is {bad[0].state}: {bad[0].metadata}")
        return bundles


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Processor time of a process and its children that have ended."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
