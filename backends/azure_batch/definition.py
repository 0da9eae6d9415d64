"""What Azure Batch is given: a worker as a task. Pure; nothing in it is secret.

The worker's command line travels in an environment setting, because how Azure splits a command
line with quotes in it is not written down; its credentials travel as a file (see `storage`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from backends.azure_batch.mark import mark_of
from backends.azure_batch.options import AzureSettings
from backends.base import KEY, Context, LaunchRequest

COMMAND_VARIABLE = "WORKER_MANAGER_COMMAND"
CREDENTIALS_FILE = "worker-credentials"
RETENTION = "P1D"
"""How long a node keeps an ended task's files (ISO 8601): so long `logs` can show them."""

TASK_DIRECTORY = "$AZ_BATCH_TASK_DIR"
"""Of each task its own, at the same path on the node and in the container, removed by Azure."""
SOCKET = "/var/run/docker.sock"

COLLECTION_TASKS = 100
COLLECTION_BYTES = 900_000
"""Azure takes 100 tasks and less than 1 MB a call."""


def work_directory(context: Context) -> str:
    """Where a worker keeps its files: on the node's task disk, unless the user wants otherwise.

    Containers that the worker starts by the node's engine see that path, too.
    """
    prefix = context.work_directory_prefix
    return f"{prefix.rstrip('/')}/{KEY}" if prefix else f"{TASK_DIRECTORY}/work"


def script(request: LaunchRequest, *, has_credentials: bool) -> str:
    """The text for `sh` that becomes the worker.

    The credentials' file is removed before the worker starts: Azure shows the files of a task to
    whoever may read the account.
    """
    command = " ".join(_quote(word) for word in request.command)
    if not has_credentials:
        return f"exec {command}"
    path = f'"$AZ_BATCH_TASK_WORKING_DIR/{CREDENTIALS_FILE}"'
    return f". {path} && rm -f {path} && exec {command}"


def task(
    request: LaunchRequest,
    context: Context,
    settings: AzureSettings,
    credentials: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A BatchTaskCreateOptions of the REST API. ``credentials``: the resource file, if any."""
    environment = {
        **request.environment,
        COMMAND_VARIABLE: script(request, has_credentials=credentials is not None),
    }
    defined: dict[str, Any] = {
        "id": str(request.key),
        "displayName": mark_of(context, request.key),
        "commandLine": f"/bin/sh -c 'eval \"${COMMAND_VARIABLE}\"'",
        "containerSettings": {
            "imageName": settings.image,
            "containerRunOptions": shlex.join(_run_options(request, context, settings)),
            "workingDirectory": "taskWorkingDirectory",
        },
        "environmentSettings": [
            {"name": name, "value": value} for name, value in environment.items()
        ],
        "requiredSlots": settings.slots,
        "constraints": {"maxTaskRetryCount": 0, "retentionTime": RETENTION},
    }
    if credentials is not None:
        defined["resourceFiles"] = [dict(credentials)]
    if settings.log_container_url:
        destination: dict[str, Any] = {
            "containerUrl": settings.log_container_url,
            "path": str(request.key),
        }
        if settings.identity:
            destination["identityReference"] = {"resourceId": settings.identity}
        defined["outputFiles"] = [
            {
                "filePattern": "../std*.txt",
                "destination": {"container": destination},
                "uploadOptions": {"uploadCondition": "taskcompletion"},
            }
        ]
    return defined


def job(settings: AzureSettings, pool_id: str) -> dict[str, Any]:
    """A BatchJobCreateOptions: a job that stays when all of its tasks have ended."""
    return {
        "id": settings.job_id,
        "displayName": "workers of worker-manager",
        "poolInfo": {"poolId": pool_id},
        "onAllTasksComplete": "noaction",
        "metadata": [{"name": "made-by", "value": "worker-manager"}],
    }


def collections(tasks: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tasks in order, cut into what one call takes."""
    cut: list[list[dict[str, Any]]] = []
    size = 0
    for each in tasks:
        bytes_of_it = len(json.dumps(each)) + 2
        if not cut or len(cut[-1]) >= COLLECTION_TASKS or size + bytes_of_it > COLLECTION_BYTES:
            cut.append([])
            size = 0
        cut[-1].append(each)
        size += bytes_of_it
    return cut


def _run_options(request: LaunchRequest, context: Context, settings: AzureSettings) -> list[str]:
    """The options of `docker run`. The entry point is set aside, whatever the image's is."""
    resources = request.resources
    words = ["--rm", "--init", "--entrypoint", "/usr/bin/env", "--user", settings.user]
    words += ["--cpus", str(resources.cpus), "--memory", f"{resources.memory_bytes // 1024**2}m"]
    if resources.gpus:
        words += ["--gpus", str(resources.gpus)]
    words += ["--volume", f"{SOCKET}:{SOCKET}"]
    if context.work_directory_prefix:
        place = work_directory(context).replace(KEY, str(request.key))
        words += ["--volume", f"{place}:{place}"]
    return words


def _quote(word: str) -> str:
    """A word for `sh`, in which the task's directory alone is still looked up."""
    before, variable, after = word.partition(TASK_DIRECTORY)
    if not variable:
        return shlex.quote(word)
    return f'{shlex.quote(before) if before else ""}"{TASK_DIRECTORY}"{shlex.quote(after)}'
