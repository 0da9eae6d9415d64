"""Where the tasks go: the Azure Batch job, and the pool that it runs on, as last seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.azure_batch.options import AzureSettings
from backends.azure_batch.pools import PoolNews
from backends.azure_batch.service import Service
from backends.azure_batch.words import word
from backends.base import BackendError, Invalid

if TYPE_CHECKING:
    from azure.batch.models import BatchJob


@dataclass(frozen=True, slots=True)
class Place:
    """``has_job``: else it is to be made. ``error``: why no task can go there now."""

    has_job: bool
    pool_id: str | None
    pool: PoolNews | None
    error: BackendError | None

    @property
    def waiting(self) -> str:
        """What a task waits for there."""
        if self.error is not None:
            return str(self.error)
        return self.pool.waiting if self.pool else ""


def look(service: Service, settings: AzureSettings) -> Place:
    """Two questions at most. Raises BackendError when Azure cannot be asked."""
    job = service.job()
    if job is None and settings.pool_id is None:
        missing = Invalid(
            f"--job-id {settings.job_id}: there is no such job; give --pool-id to have it made"
        )
        return Place(False, None, None, missing)
    pool_id = (job.pool_info.pool_id if job and job.pool_info else None) or settings.pool_id
    pool = service.pool(pool_id) if pool_id else None
    error: BackendError | None = None
    if job is not None:
        error = _job_error(job, settings, pool_id)
    if error is None and pool is None:
        # Azure makes a job for a pool that is not there, and its tasks wait for ever.
        error = Invalid(f"--pool-id {pool_id}: there is no such pool in this account")
    if error is None and pool is not None:
        error = pool.refusal(settings.slots)
    return Place(job is not None, pool_id, pool, error)


def _job_error(job: BatchJob, settings: AzureSettings, pool_id: str | None) -> Invalid | None:
    state = word(job.state)
    if state not in ("active", "enabling"):
        return Invalid(
            f"--job-id {settings.job_id}: the job is {state}; enable it, or give another id"
        )
    if settings.pool_id is not None and settings.pool_id != pool_id:
        return Invalid(
            f"--pool-id {settings.pool_id}: the job {settings.job_id} runs on the pool {pool_id}; "
            "give another --job-id"
        )
    return None
