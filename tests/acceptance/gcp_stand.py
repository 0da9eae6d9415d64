"""GCP Batch, Secret Manager and Cloud Logging on loopback, and backends that speak to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.gcp.cloud import Cloud
from fakes.gcp.wire import Wire

from backends.base import Context, Job, JobResources, LaunchKey, LaunchRequest
from backends.gcp_batch.backend import GcpBatch
from backends.gcp_batch.options import GcpSettings

OWNER = "0123456789abcdef"
PROJECT, REGION = "research", "europe-west4"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
SECRET = f"projects/{PROJECT}/secrets/workers"
RESOURCES = JobResources(1, 0, 1024**3)


class Stand:
    """``runs``: tasks run as processes; else the test says when they start and end."""

    def __init__(self, directory: Path, *, runs: bool = False, transport: str = "grpc") -> None:
        self.directory = directory
        self.transport = transport
        self.cloud = Cloud(directory / "machines" if runs else None)
        self.cloud.add_secret(SECRET)
        self.wire = Wire(self.cloud)

    def close(self) -> None:
        self.cloud.close()
        self.wire.close()

    @property
    def url(self) -> str:
        return self.wire.grpc_url if self.transport == "grpc" else self.wire.rest_url

    def settings(self, **more: Any) -> dict[str, Any]:
        """The values of the options, as the command line gives them."""
        return {
            "project": PROJECT,
            "region": REGION,
            "image": "registry.example/bundle-worker:1",
            "secret": SECRET,
            "transport": self.transport,
            "endpoint": self.url,
            "secret_endpoint": self.url,
            "logging_endpoint": self.wire.rest_url,
            **more,
        }

    def options(self) -> list[str]:
        """The same, on the command line."""
        return [
            word
            for name, value in self.settings().items()
            for word in (f"--{name.replace('_', '-')}", value)
        ]

    def backend(
        self, pool: str = "p", owner: str = OWNER, clock: Any = None, **more: Any
    ) -> GcpBatch:
        context = Context(self.directory / "jobs" / owner / pool, owner, pool)
        settings = GcpSettings.read(self.settings(**more))
        return GcpBatch(context, settings, **({"clock": clock} if clock else {}))

    def calls(self, method: str = "") -> int:
        return sum(not method or request.method == method for request in self.wire.requests)


def requests_for(number: int, pool: str = "p", **more: Any) -> list[LaunchRequest]:
    keys = LaunchKey.make_row(pool, 1, number)
    return [LaunchRequest(key, ("bundle-worker",), RESOURCES, **more) for key in keys]


def only_jobs(results: list[Any]) -> list[Job]:
    assert all(isinstance(result, Job) for result in results), results
    return results
