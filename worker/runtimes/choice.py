"""Which runtime a worker has: what `--runtime` says, or what is there."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from worker import records
from worker.backoff import Backoff
from worker.loop import Loop
from worker.runs import RuntimeFactory
from worker.runtimes.base import Ended, Runtime
from worker.settings import Settings

log = logging.getLogger(__name__)

APPTAINERS = ("apptainer", "singularity")
"""The same program: the second name is the elder one."""
DOCKER_SOCKET = Path("/var/run/docker.sock")
ENGINE_PATIENCE_SECONDS = 300.0
"""How long a worker that has runs in an engine waits for it at its start."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0

Found = TypeVar("Found")


class NoRuntime(Exception):
    """The runtime that was asked for cannot be had; the message says why."""


def choose_runtime(
    kind: str,
    settings: Settings,
    *,
    network_prefix: str,
    shared_memory_bytes: int,
    max_image_bytes: int | None,
    max_image_cache_bytes: int | None,
    sandbox: str,
    hidden: Sequence[Path],
) -> RuntimeFactory:
    """What makes the runtime of ``kind``: auto, docker, podman, apptainer, singularity or process.
    auto is the first of docker, apptainer and process that is there. Raises NoRuntime.

    ``sandbox`` confines processes: auto, bubblewrap or none. ``hidden``: what holds secrets of
    the worker, besides its work directory.
    """
    carries_on = _has_containers(settings.runs_directory)
    if carries_on and kind == "auto":
        kind = "docker"
    if kind == "process":
        if carries_on:
            raise NoRuntime(
                "--runtime process: this worker has runs in containers; let it carry on with them, "
                "by --runtime auto, or give another --id"
            )
        return _processes(sandbox, [settings.work_directory, *hidden])
    limits = (max_image_bytes, max_image_cache_bytes)
    if kind in APPTAINERS:
        program = shutil.which(kind)
        if program is None:
            raise NoRuntime(f"--runtime {kind}: there is no {kind} on PATH")
        return _apptainer(program, settings, limits)

    def without_engine(reason: str) -> RuntimeFactory:
        for name in APPTAINERS:
            if program := shutil.which(name):
                log.info("bundles run in containers of %s: %s", name, reason)
                return _apptainer(program, settings, limits)
        log.info("bundles run as processes: %s", reason)
        return _processes(sandbox, [settings.work_directory, *hidden])

    if kind == "auto" and not os.environ.get("DOCKER_HOST") and not DOCKER_SOCKET.exists():
        return without_engine("there is no Docker engine here")
    try:
        from worker.runtimes.docker import DockerRuntime
        from worker.runtimes.engine import NoEngine, find_engine
    except ImportError as error:
        reason = f"Docker's SDK is not installed: pip install 'worker-manager[docker]' ({error})"
    else:
        try:
            engine = _find_patiently(
                partial(find_engine, "podman" if kind == "podman" else "docker"),
                NoEngine,
                ENGINE_PATIENCE_SECONDS if carries_on else 0.0,
            )
        except NoEngine as error:
            reason = str(error)
        else:

            def make_containers(loop: Loop, ended: Ended) -> Runtime:
                return DockerRuntime(
                    loop,
                    ended,
                    engine,
                    worker_id=settings.worker_id,
                    owner=settings.own_directory,
                    network_prefix=network_prefix,
                    shared_memory_bytes=shared_memory_bytes,
                    max_image_bytes=max_image_bytes,
                    max_image_cache_bytes=max_image_cache_bytes,
                )

            log.info("bundles run in containers of %s", "podman" if engine.is_podman else "docker")
            return make_containers
    if kind == "auto":
        return without_engine(reason)
    raise NoRuntime(f"--runtime {kind}: {reason}")


def _has_containers(runs: Path) -> bool:
    """Whether an earlier process of this worker has left runs in containers."""
    for place in runs.iterdir() if runs.exists() else ():
        with suppress(records.TornRecord):
            if "container" in (records.load(place).process or {}):
                return True
    return False


def _find_patiently(
    find: Callable[[], Found], failure: type[Exception], patience_seconds: float
) -> Found:
    """What ``find`` finds. Nobody tells when an engine comes back: it is asked for."""
    backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
    deadline = time.monotonic() + patience_seconds
    pause = threading.Event()
    while True:
        try:
            return find()
        except failure as error:
            if time.monotonic() >= deadline:
                raise
            log.warning("waiting for the engine that runs of this worker are in: %s", error)
        pause.wait(backoff.next_seconds())


def _apptainer(
    program: str, settings: Settings, limits: tuple[int | None, int | None]
) -> RuntimeFactory:
    from worker.runtimes.apptainer import ApptainerRuntime
    from worker.sifs import Sifs

    def make(loop: Loop, ended: Ended) -> Runtime:
        largest, all_together = limits
        sifs = Sifs(
            loop,
            program,
            settings.work_directory / "images",
            max_image_bytes=largest,
            max_cache_bytes=all_together,
        )
        return ApptainerRuntime(loop, ended, program, sifs)

    return make


def _processes(sandbox: str, hidden: Sequence[Path]) -> RuntimeFactory:
    from worker.runtimes.process import ProcessRuntime, Wrapper
    from worker.runtimes.sandbox import NoSandbox, find_sandbox

    wrapper: Wrapper | None = None
    if sandbox != "none":
        try:
            wrapper = find_sandbox(hidden)
        except NoSandbox as error:
            if sandbox == "bubblewrap":
                raise NoRuntime(f"--sandbox bubblewrap: {error}") from error
            log.warning("bundles can do what this user can: they are not confined (%s)", error)
        else:
            log.info("bundles are confined by bubblewrap")

    def make(loop: Loop, ended: Ended) -> Runtime:
        return ProcessRuntime(loop, ended, wrapper)

    return make
