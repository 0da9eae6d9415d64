"""Which runtime a worker has: what `--runtime` says, or what is there."""

from __future__ import annotations

import logging
import os
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
) -> RuntimeFactory:
    """What makes the runtime of ``kind``: auto, docker, podman or process. Raises NoRuntime."""

    def make_process(loop: Loop, ended: Ended) -> Runtime:
        from worker.runtimes.process import ProcessRuntime

        return ProcessRuntime(loop, ended)

    if kind == "process":
        return make_process
    if kind == "auto" and not os.environ.get("DOCKER_HOST") and not DOCKER_SOCKET.exists():
        log.info("bundles run as processes: there is no Docker engine here")
        return make_process
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
        return make_process
    raise NoRuntime(f"--runtime {kind}: {reason}")
