"""Runs jobs of the fake as processes of this machine: their command, environment and secrets."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from fakes.aws.batch import Batch, FakeJob, Runner

if TYPE_CHECKING:
    from collections.abc import Mapping

STOP_SECONDS = 30.0
"""From SIGTERM to SIGKILL: the default of ECS."""


class Processes(Runner):
    """``secret``: the value that a `valueFrom` stands for. ``environment``: of every job."""

    def __init__(self, secret: Callable[[str], str], environment: Mapping[str, str]) -> None:
        self._secret = secret
        self._environment = dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._timers: list[threading.Timer] = []
        self.batch: Batch | None = None
        self.logs: dict[str, list[str]] = {}

    def start(self, job: FakeJob) -> None:
        container = job.container
        overrides = job.asked.get("containerOverrides", {})
        environment = dict(self._environment)
        for variable in [*container.get("environment", []), *overrides.get("environment", [])]:
            environment[variable["name"]] = variable["value"]
        for secret in container.get("secrets", []):
            environment[secret["name"]] = self._secret(secret["valueFrom"])
        environment["AWS_BATCH_JOB_ID"] = job.id
        environment["AWS_BATCH_JOB_ATTEMPT"] = str(len(job.attempts) + 1)
        if job.index is not None:
            environment["AWS_BATCH_JOB_ARRAY_INDEX"] = str(job.index)
        process = subprocess.Popen(
            job.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._running[job.id] = process
        lines = self.logs.setdefault(str(job.stream), [])
        watch = threading.Thread(target=self._watch, args=(job.id, process, lines))
        self._threads.append(watch)
        watch.start()

    def end(self, job: FakeJob, *, by_force: bool) -> bool:
        process = self._running.get(job.id)
        if process is None or process.poll() is not None:
            return False
        if by_force:
            self._kill(process)
            return True
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        timer = threading.Timer(STOP_SECONDS, self._kill, [process])
        timer.start()
        self._timers.append(timer)
        return True

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        for process in list(self._running.values()):
            self._kill(process)
        for thread in self._threads:
            thread.join(timeout=60)

    @property
    def running(self) -> dict[str, int]:
        """The process ids by job id."""
        return {job_id: process.pid for job_id, process in self._running.items()}

    def _watch(self, job_id: str, process: subprocess.Popen[bytes], lines: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.append(line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        assert self.batch is not None
        if self._running.get(job_id) is process:
            del self._running[job_id]
        # A container's exit code for a signal is that of a shell.
        self.batch.exited(job_id, code if code >= 0 else 128 - code)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        """With all that it started, in whatever session: the end of a container spares none."""
        import psutil

        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in family:
            with suppress(psutil.Error):
                one.kill()
