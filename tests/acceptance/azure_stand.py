"""A Batch account and a blob container of Azure's on loopback, and backends that speak to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes.azure.account import Account
from fakes.azure.batch import ACCOUNT_KEY, ACCOUNT_NAME, BatchService
from fakes.azure.blobs import STORAGE_KEY, BlobService

from backends.azure_batch.backend import AzureBatch
from backends.azure_batch.options import AzureSettings
from backends.base import Context, Job, JobResources, LaunchKey, LaunchRequest

OWNER = "0123456789abcdef"
JOB = "workers"
POOL = "nodes"
RESOURCES = JobResources(1, 0, 1024**3)


class Stand:
    """``runs``: tasks run as processes; else the test says when they start and end."""

    def __init__(self, directory: Path, *, runs: bool = False) -> None:
        self.directory = directory
        environment = {
            # What the image of a worker has: its program, and here no engine beside it.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DOCKER_HOST": "unix:///nowhere",
        }
        self.account = Account(directory / "nodes" if runs else None, environment=environment)
        self.account.add_pool(POOL, nodes=2)
        self.batch = BatchService(self.account)
        self.blobs = BlobService()

    def close(self) -> None:
        self.account.close()
        self.batch.close()
        self.blobs.close()

    def settings(self, **more: Any) -> dict[str, Any]:
        """The values of the options, as the command line gives them."""
        return {
            "service_url": self.batch.url,
            "account_name": ACCOUNT_NAME,
            "job_id": JOB,
            "pool_id": POOL,
            "image": "bundle-worker",
            "secrets_container_url": self.blobs.url,
            **more,
        }

    @property
    def keys(self) -> dict[str, str]:
        """The environment that opens both accounts."""
        return {"AZURE_BATCH_ACCESS_KEY": ACCOUNT_KEY, "AZURE_STORAGE_KEY": STORAGE_KEY}

    def backend(
        self, pool: str = "p", owner: str = OWNER, clock: Any = None, **more: Any
    ) -> AzureBatch:
        context = Context(self.directory / "jobs" / owner / pool, owner, pool)
        settings = AzureSettings.read(self.settings(**more))
        return AzureBatch(context, settings, **({"clock": clock} if clock else {}))

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The tasks of the job, as the service shows them."""
        job = self.account.jobs.get(JOB)
        return {t.document["id"]: t.document for t in job.tasks.values()} if job else {}

    def calls(self, method: str = "", path: str = "") -> int:
        return len(self.batch.wire.requests(method, path))


def requests_for(
    number: int,
    pool: str = "p",
    argv: tuple[str, ...] = ("bundle-worker",),
    secrets: Mapping[str, str] | None = None,
) -> list[LaunchRequest]:
    keys = LaunchKey.make_row(pool, 1, number)
    return [LaunchRequest(key, argv, RESOURCES, secrets=secrets or {}) for key in keys]


def only_jobs(results: list[Any]) -> list[Job]:
    assert all(isinstance(result, Job) for result in results), results
    return results
