"""What the engine is asked to make of a launch request. Pure; holds no secret."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import Context, LaunchRequest
from backends.local_docker.engine import DEFAULT_SOCKET
from backends.local_docker.options import Settings

OWNER_LABEL = "worker-manager.owner"
POOL_LABEL = "worker-manager.pool"
KEY_LABEL = "worker-manager.key"

OVERHEAD_BYTES = 256 * 1024**2
"""What a worker itself may use beside the memory that it offers to bundles."""
LOG_BYTES = 5 * 1024**2
"""The engine keeps the last one or two times this of what a worker prints."""

SCRIPT = r"""#!/bin/sh
# Runs one worker in its container, with its secrets in its environment.
# usage: script DIRECTORY COMMAND…
directory=$1
shift
worker=
ending=
trap 'ending=yes; [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null' TERM INT HUP
[ ! -e "$directory/secrets" ] || . "$directory/secrets"
deaths=0
code=143
while [ -z "$ending" ] && [ "$deaths" -lt 10 ]; do
    "$@" &
    worker=$!
    [ -z "$ending" ] || kill -TERM "$worker" 2>/dev/null
    wait "$worker"
    code=$?
    # A signal to this shell ends the wait before it ends the worker.
    while [ "$code" -gt 128 ] && kill -0 "$worker" 2>/dev/null; do
        wait "$worker"
        code=$?
    done
    worker=
    # Killed, and not by us: started again over its directory it carries on with its runs.
    [ "$code" -gt 128 ] || break
    deaths=$((deaths + 1))
done
if [ "$code" -eq 0 ]; then rm -rf "$directory/work"; fi
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A job's directories on this machine, which have the same names in its container."""

    directory: Path
    work: Path

    @property
    def script(self) -> Path:
        return self.directory / "script"

    @property
    def secrets(self) -> Path:
        """What the script reads its secrets from, mode 0600."""
        return self.directory / "secrets"

    @property
    def ending(self) -> Path:
        """When the job was asked to end, in seconds since the epoch."""
        return self.directory / "ending"

    @property
    def swept(self) -> Path:
        """There once nothing is left of a worker that did not leave in good order."""
        return self.directory / "swept"

    @property
    def mounted(self) -> list[Path]:
        inside = self.work.is_relative_to(self.directory)
        return [self.directory] if inside else [self.directory, self.work]


def secrets_text(secrets: Mapping[str, str]) -> str:
    """A piece of sh that exports them."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in secrets.items())


def labels(context: Context) -> dict[str, str]:
    """What all our containers of the pool carry."""
    return {OWNER_LABEL: context.owner, POOL_LABEL: context.pool}


def definition(
    request: LaunchRequest, place: Place, context: Context, settings: Settings, socket: str | None
) -> dict[str, Any]:
    """The body of `POST /containers/create` (Docker Engine API, 1.41)."""
    host: dict[str, Any] = {
        "Init": True,
        "NetworkMode": settings.network,
        "NanoCpus": request.resources.cpus * 10**9,
        "Memory": request.resources.memory_bytes + OVERHEAD_BYTES,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(LOG_BYTES), "max-file": "2"},
        },
        "Mounts": [_bind(str(path), str(path)) for path in place.mounted],
    }
    if request.resources.gpus:
        host["DeviceRequests"] = [{"Count": request.resources.gpus, "Capabilities": [["gpu"]]}]
    if settings.runtime == "docker" and socket is not None:
        host["Mounts"].append(_bind(socket, DEFAULT_SOCKET))
        host["GroupAdd"] = [str(_group(socket))]
    environment = {"HOME": str(place.directory), **request.environment}
    return {
        "Image": settings.image,
        "Entrypoint": ["/bin/sh", str(place.script), str(place.directory)],
        "Cmd": list(request.command),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        # Its files are this user's, who removes them.
        "User": f"{os.getuid()}:{os.getgid()}",
        "WorkingDir": str(place.directory),
        "Labels": {**labels(context), KEY_LABEL: str(request.key)},
        "HostConfig": host,
    }


def _bind(source: str, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target}


def _group(socket: str) -> int:
    try:
        return os.stat(socket).st_gid
    except OSError:
        return os.getgid()
