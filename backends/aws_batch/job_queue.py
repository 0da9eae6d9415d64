"""A job queue as DescribeJobQueues and DescribeComputeEnvironments describe it, and what follows.

Pure: what is asked of AWS to get there is in `backend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from backends.base import Invalid


class Platform(StrEnum):
    """What runs containers, and so what a worker can do there."""

    EC2 = "EC2"
    """Machines with a Docker engine, whose socket a worker can have."""
    FARGATE = "FARGATE"
    """Containers alone: bundles run as processes inside the worker's."""


_FARGATE_TYPES = ("FARGATE", "FARGATE_SPOT")
_SPOT_TYPES = ("SPOT", "FARGATE_SPOT")
_MANAGED = "ECS_MANAGED_INSTANCES"
"""It takes job definitions of another kind (RegisterJobDefinition, `platformCapabilities`)."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What a launch must know of its queue. ``arn``: arn:PARTITION:batch:REGION:ACCOUNT:…"""

    arn: str
    platform: Platform
    preemptible: bool
    fair_share: bool

    @property
    def parameters_arn(self) -> str:
        """Where the parameters of this account and region are: a name follows."""
        _, partition, _, region, account, _ = self.arn.split(":", 5)
        return f"arn:{partition}:ssm:{region}:{account}:parameter"


def read_queue(
    detail: Mapping[str, Any], environments: Sequence[Mapping[str, Any]], platform: str
) -> Queue:
    """``platform``: auto, ec2 or fargate. Raises Invalid for a queue that cannot run workers."""
    name = detail["jobQueueName"]
    types = {
        str((environment.get("computeResources") or {}).get("type") or "EC2")
        for environment in environments
    }
    for environment in environments:
        if environment.get("containerOrchestrationType") == "EKS":
            raise Invalid(f"--job-queue {name!r} is of EKS: give one of EC2 or Fargate")
    if _MANAGED in types:
        raise Invalid(f"--job-queue {name!r} is of {_MANAGED}: give one of EC2 or Fargate")
    found = Platform.FARGATE if types & set(_FARGATE_TYPES) else Platform.EC2
    if platform != "auto":
        wanted = Platform(platform.upper())
        if environments and wanted is not found:
            raise Invalid(
                f"--platform {platform} is not what --job-queue {name!r} has: its compute "
                f"environments are of the type {', '.join(sorted(types))}"
            )
        found = wanted
    return Queue(
        arn=detail["jobQueueArn"],
        platform=found,
        preemptible=bool(types & set(_SPOT_TYPES)),
        fair_share=bool(detail.get("schedulingPolicyArn")),
    )
