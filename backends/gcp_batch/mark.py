"""Whose a job is, and which workers it holds: labels to search by, and a variable to be sure.

Labels of Google Cloud are lower-case (`[a-z0-9_-]`, 63 at most), and pools are not: a label finds
candidates, and the exact text is in an environment variable of the job's tasks. Neither can be
changed once the job is made.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import TYPE_CHECKING

from backends.base import Context, LaunchKey

if TYPE_CHECKING:
    from google.cloud.batch_v1.types import Job as GcpJob

OWNER_LABEL = "worker-manager-owner"
POOL_LABEL = "worker-manager-pool"
LAUNCH_VARIABLE = "WORKER_MANAGER_LAUNCH"
"""The first key of a job; the others follow it."""
OWNER_VARIABLE = "WORKER_MANAGER_OWNER"

_SLUG_LENGTH = 24
_REQUESTS = uuid.UUID("3b8a5c56-7a3f-4f5e-9f0c-6f5c3f6f8d11")


def pool_label(pool: str) -> str:
    """A pool as a label may say it; two pools never come to the same."""
    slug = re.sub(r"[^a-z0-9]+", "-", pool.lower())[:_SLUG_LENGTH].strip("-")
    if slug == pool:
        return slug
    return f"{slug}-{hashlib.sha256(pool.encode()).hexdigest()[:8]}"


def labels(context: Context) -> dict[str, str]:
    return {OWNER_LABEL: context.owner, POOL_LABEL: pool_label(context.pool)}


def job_id(first: LaunchKey) -> str:
    """The id of the job whose first worker has this key: `[a-z]([a-z0-9-]*[a-z0-9])?`, ≤ 63."""
    return f"w-{pool_label(first.pool)}-{first.sequence}-{first.random}"


def request_id(context: Context, first: LaunchKey, number: int) -> str:
    """Google takes a request that is repeated with the same one, within an hour, for one."""
    return str(uuid.uuid5(_REQUESTS, f"{context.owner} {first} {number}"))


def keys_of(context: Context, job: GcpJob) -> list[LaunchKey]:
    """The keys of a job's workers in the order of its tasks; none when it is not ours."""
    if any(job.labels.get(name) != value for name, value in labels(context).items()):
        return []
    if len(job.task_groups) != 1:
        return []
    group = job.task_groups[0]
    variables = group.task_spec.environment.variables
    first = LaunchKey.parse(variables.get(LAUNCH_VARIABLE, ""))
    if first is None or first.pool != context.pool:
        return []
    if variables.get(OWNER_VARIABLE) != context.owner:
        return []
    if job.name.rpartition("/")[2] != job_id(first):
        return []
    return [
        LaunchKey(first.pool, first.sequence + index, first.random)
        for index in range(group.task_count)
    ]
