"""What is registered and submitted: a job definition for what cannot be said at a submission, and
the submission of a row of workers. Pure; no secret is in any of it, only where secrets are.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from backends.aws_batch.job_queue import Platform, Queue
from backends.aws_batch.mark import SET_TAG, job_tags, owner_tags
from backends.aws_batch.options import AwsSettings
from backends.base import Context, JobResources, LaunchRequest
from backends.shell import keyed_command

LONGEST_ARRAY = 10_000
INDEX_VARIABLE = "AWS_BATCH_JOB_ARRAY_INDEX"
DOCKER_SOCKET = "/var/run/docker.sock"


def definition(
    context: Context,
    settings: AwsSettings,
    platform: Platform,
    name: str,
    work_directory_root: str,
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """The request of RegisterJobDefinition. ``secrets``: where each variable's value is (ARNs).

    Its tag SET_TAG is the digest of all that makes one definition different from another. What a
    submission can say is not part of it: the resources here are there because they must be.
    """
    container: dict[str, Any] = {
        "image": settings.image,
        "user": settings.user,
        "readonlyRootFilesystem": False,
        "resourceRequirements": _requirements(JobResources(1, 0, 2048 * 1024**2)),
    }
    if settings.job_role:
        container["jobRoleArn"] = settings.job_role
    if settings.execution_role:
        container["executionRoleArn"] = settings.execution_role
    if secrets:
        container["secrets"] = [
            {"name": variable, "valueFrom": place} for variable, place in sorted(secrets.items())
        ]
    if settings.log_group:
        container["logConfiguration"] = {
            "logDriver": "awslogs",
            "options": {"awslogs-group": settings.log_group},
        }
    if platform is Platform.EC2:
        places = {"docker_socket": DOCKER_SOCKET, "work_directory": work_directory_root}
        container["volumes"] = [
            {"name": volume, "host": {"sourcePath": path}} for volume, path in places.items()
        ]
        # The same path inside as outside: the engine mounts what the worker names.
        container["mountPoints"] = [
            {"sourceVolume": volume, "containerPath": path, "readOnly": False}
            for volume, path in places.items()
        ]
    asked: dict[str, Any] = {
        "jobDefinitionName": name,
        "type": "container",
        "platformCapabilities": [platform.value],
        "containerProperties": container,
    }
    return {**asked, "tags": {**owner_tags(context), SET_TAG: _digest(asked)}}


def submission(
    context: Context,
    settings: AwsSettings,
    queue: Queue | None,
    definition: str,
    row: Sequence[LaunchRequest],
) -> dict[str, Any]:
    """The request of SubmitJob for a row: an array job, or a plain job for one."""
    first = row[0]
    command: Sequence[str]
    if len(row) > 1:
        key = first.key
        text = keyed_command(first.argv, key.sequence, key.random, key.pool, INDEX_VARIABLE)
        command = ("/bin/sh", "-c", text)
    elif all(first.command):
        command = first.command
    else:  # Batch takes no empty word
        command = ("/bin/sh", "-c", f"exec {shlex.join(first.command)}")
    overrides: dict[str, Any] = {
        "command": list(command),
        "resourceRequirements": _requirements(first.resources),
    }
    if first.environment:
        overrides["environment"] = [
            {"name": name, "value": value} for name, value in sorted(first.environment.items())
        ]
    asked: dict[str, Any] = {
        "jobName": str(first.key),
        "jobQueue": queue.arn if queue else settings.job_queue,
        "jobDefinition": definition,
        "containerOverrides": overrides,
        "retryStrategy": _retries(settings.attempts),
        "tags": job_tags(context, first.key),
        "propagateTags": True,
    }
    if len(row) > 1:
        asked["arrayProperties"] = {"size": len(row)}
    if settings.timeout is not None:
        asked["timeout"] = {"attemptDurationSeconds": settings.timeout}
    if settings.share_identifier is not None:
        asked["shareIdentifier"] = settings.share_identifier
    if settings.scheduling_priority is not None:
        asked["schedulingPriorityOverride"] = settings.scheduling_priority
    return asked


def preview(definition: Mapping[str, Any], submission: Mapping[str, Any]) -> str:
    """Both as the command line of AWS takes them."""
    return "\n".join(
        f"aws batch {verb} --cli-input-json {shlex.quote(json.dumps(asked, ensure_ascii=False))}"
        for verb, asked in (("register-job-definition", definition), ("submit-job", submission))
    )


def _requirements(resources: JobResources) -> list[dict[str, str]]:
    requirements = [
        {"type": "VCPU", "value": str(resources.cpus)},
        {"type": "MEMORY", "value": str(resources.memory_bytes // 1024**2)},
    ]
    if resources.gpus:
        requirements.append({"type": "GPU", "value": str(resources.gpus)})
    return requirements


def _retries(attempts: int) -> dict[str, Any]:
    """Only a lost machine is tried again: a worker that leaves has its reasons, and the manager
    decides whether another comes."""
    if attempts == 1:
        return {"attempts": 1}
    return {
        "attempts": attempts,
        "evaluateOnExit": [
            {"onStatusReason": "Host EC2*", "action": "RETRY"},
            {"onStatusReason": "Your Spot Task was interrupted*", "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    }


def _digest(asked: Mapping[str, Any]) -> str:
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
