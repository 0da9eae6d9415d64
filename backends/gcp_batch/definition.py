"""What GCP Batch is given: a row of workers as a job. Pure; nothing in it is secret."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from backends.base import KEY, Context, LaunchRequest
from backends.gcp_batch.mark import LAUNCH_VARIABLE, OWNER_VARIABLE, labels
from backends.gcp_batch.options import GcpSettings
from backends.shell import keyed_command

CREDENTIALS_VARIABLE = "WORKER_MANAGER_CREDENTIALS"
"""Filled from Secret Manager by Batch's agent: text for `sh` that exports the credentials."""
INDEX_VARIABLE = "BATCH_TASK_INDEX"
SOCKET = "/var/run/docker.sock"
DIRECTORY = "/var/lib/google/worker-manager"
"""Writable on every image of Batch, and what is in it may be executed: on Container-Optimized OS
that cannot be said of /var (cloud.google.com/container-optimized-os/docs/concepts/
disks-and-filesystem)."""

PREEMPTED = 50001
"""Exit code of a task whose spot machine was taken back (cloud.google.com/batch/docs/
troubleshooting#reserved-exit-codes)."""
RETRIES = 10
"""How often a worker is started again after that: as often as GCP Batch can."""

GPU_IMAGE = "batch-debian"
"""Of machines with gpus: the engine of Container-Optimized OS, which Batch would take, cannot give
them to the containers that a worker starts."""

_PROVISIONING = {"standard": "STANDARD", "spot": "SPOT", "flex-start": "FLEX_START"}


def work_directory(context: Context) -> str:
    """Where a worker keeps its files: at the same path on the machine and in the container."""
    prefix = context.work_directory_prefix or DIRECTORY
    return f"{prefix.rstrip('/')}/{KEY}"


def job(row: Sequence[LaunchRequest], context: Context, settings: GcpSettings) -> dict[str, Any]:
    """A Job of the API (google.cloud.batch_v1.types.Job), for requests alike but for their keys."""
    first, resources = row[0], row[0].resources
    directory = work_directory(context).replace(f"/{KEY}", "")
    environment: dict[str, Any] = {
        "variables": {
            **first.environment,
            OWNER_VARIABLE: context.owner,
            LAUNCH_VARIABLE: str(first.key),
        }
    }
    if first.secrets:
        environment["secret_variables"] = {
            CREDENTIALS_VARIABLE: f"{settings.secret}/versions/latest"
        }
    task: dict[str, Any] = {
        "runnables": [
            {
                "container": {
                    "image_uri": settings.image,
                    "entrypoint": "/bin/sh",
                    "commands": ["-c", script(row[0], has_credentials=bool(first.secrets))],
                    "volumes": [f"{SOCKET}:{SOCKET}", f"{directory}:{directory}"],
                    "options": "--init",
                }
            }
        ],
        "environment": environment,
        "compute_resource": {
            "cpu_milli": resources.cpus * 1000,
            "memory_mib": resources.memory_bytes // 1024**2,
        },
        "max_retry_count": 0,
    }
    if settings.provisioning == "spot":
        task["max_retry_count"] = RETRIES
        task["lifecycle_policies"] = [
            {"action": "RETRY_TASK", "action_condition": {"exit_codes": [PREEMPTED]}}
        ]
    if settings.max_run_hours:
        task["max_run_duration"] = {"seconds": round(settings.max_run_hours * 3600)}
    return {
        "labels": labels(context),
        "task_groups": [{"task_spec": task, "task_count": len(row), "parallelism": len(row)}],
        "allocation_policy": _allocation(resources.gpus, context, settings),
        "logs_policy": {"destination": "CLOUD_LOGGING"},
    }


def script(first: LaunchRequest, *, has_credentials: bool) -> str:
    """The text for `sh` that becomes the worker of a task."""
    key = first.key
    command = keyed_command(first.argv, key.sequence, key.random, key.pool, INDEX_VARIABLE)
    if not has_credentials:
        return command
    credentials = f'eval "${CREDENTIALS_VARIABLE}" && unset {CREDENTIALS_VARIABLE} || exit 1'
    return f"{credentials}; {command}"


def credentials(request: LaunchRequest) -> str:
    """What the secret holds: text for `sh`, in one line, as not every way into a container's
    environment takes more (`docker run --env-file`)."""
    return "; ".join(
        f"export {name}={shlex.quote(value)}" for name, value in sorted(request.secrets.items())
    )


def _allocation(gpus: int, context: Context, settings: GcpSettings) -> dict[str, Any]:
    policy: dict[str, Any] = {"provisioning_model": _PROVISIONING[settings.provisioning]}
    if settings.machine_type:
        policy["machine_type"] = settings.machine_type
    if gpus:
        policy["boot_disk"] = {"image": GPU_IMAGE}
    if gpus and settings.gpu_type:
        policy["accelerators"] = [{"type_": settings.gpu_type, "count": gpus}]
    allocation: dict[str, Any] = {
        "instances": [{"policy": policy, "install_gpu_drivers": bool(gpus)}],
        "labels": labels(context),
    }
    locations = [f"zones/{zone}" for zone in settings.zones] or [f"regions/{settings.region}"]
    allocation["location"] = {"allowed_locations": locations}
    if settings.service_account:
        allocation["service_account"] = {"email": settings.service_account}
    if settings.network or settings.no_external_ip:
        interface: dict[str, Any] = {"no_external_ip_address": settings.no_external_ip}
        if settings.network:
            interface["network"] = _of_project(settings.network, settings, "global/networks")
        if settings.subnetwork:
            kind = f"regions/{settings.region}/subnetworks"
            interface["subnetwork"] = _of_project(settings.subnetwork, settings, kind)
        allocation["network"] = {"network_interfaces": [interface]}
    return allocation


def _of_project(name: str, settings: GcpSettings, kind: str) -> str:
    """The name of something of the project as Batch takes it, which takes no bare one."""
    return name if "/" in name else f"projects/{settings.project}/{kind}/{name}"
