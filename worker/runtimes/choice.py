"""Which runtime a worker has: what `--runtime` says, or what is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from worker.loop import Loop
from worker.runs import RuntimeFactory
from worker.runtimes.base import Ended, Runtime
from worker.settings import Settings

log = logging.getLogger(__name__)

DOCKER_SOCKET = Path("/var/run/docker.sock")


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
    """What makes the runtime of ``kind``: auto, docker, podman or process. Raises NoRuntime.

    ``sandbox`` confines processes: auto, bubblewrap or none. ``hidden``: what holds secrets of
    the worker, besides its work directory.
    """
    if kind == "process":
        return _processes(sandbox, [settings.work_directory, *hidden])
    if kind == "auto" and not os.environ.get("DOCKER_HOST") and not DOCKER_SOCKET.exists():
        log.info("bundles run as processes: there is no Docker engine here")
        return _processes(sandbox, [settings.work_directory, *hidden])
    try:
        from worker.runtimes.docker import DockerRuntime
        from worker.runtimes.engine import NoEngine, find_engine
    except ImportError as error:
        reason = f"Docker's SDK is not installed: pip install 'worker-manager[docker]' ({error})"
    else:
        try:
            engine = find_engine("podman" if kind == "podman" else "docker")
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
        log.info("bundles run as processes: %s", reason)
        return _processes(sandbox, [settings.work_directory, *hidden])
    raise NoRuntime(f"--runtime {kind}: {reason}")


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

    def make(loop: Loop, ended: Ended) -> Runtime:
        return ProcessRuntime(loop, ended, wrapper)

    return make
