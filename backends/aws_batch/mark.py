"""Whose a job is: its tags say so, and its name is the launch key of its first worker.

Tags are compared to the letter here, whatever the service's filters make of upper and lower case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.base import Context, LaunchKey

OWNER_TAG = "worker-manager-owner"
POOL_TAG = "worker-manager-pool"
KEY_TAG = "worker-manager-key"
SET_TAG = "worker-manager-set"
"""On a job definition: what it is made of, as a digest."""


def owner_tags(context: Context) -> dict[str, str]:
    """On all that is ours."""
    return {OWNER_TAG: context.owner, POOL_TAG: context.pool}


def job_tags(context: Context, first: LaunchKey) -> dict[str, str]:
    """On a job, or on an array of jobs, which has the key of its first child."""
    return {**owner_tags(context), KEY_TAG: str(first)}


def first_key(context: Context, detail: Mapping[str, Any]) -> LaunchKey | None:
    """The key of a job that DescribeJobs describes; None when it is not of our owner and pool."""
    key = LaunchKey.parse(detail.get("jobName", ""))
    if key is None or key.pool != context.pool:
        return None
    tags = detail.get("tags") or {}
    expected = job_tags(context, key)
    return key if {name: tags.get(name) for name in expected} == expected else None


def definition_name(context: Context, prefix: str) -> str:
    """The name of our job definitions, whose revisions differ in what they are made of.

    By it ListJobs finds our jobs, in every state, without looking at anybody else's.
    """
    return f"{prefix}-{context.owner}-{context.pool}"


def ending_reason(context: Context) -> str:
    """What a job that we end keeps as the reason of its end."""
    return f"ended by worker-manager {context.owner}"
