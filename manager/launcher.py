"""Makes the requests for a pool's workers: their command line, and what they show the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.base import KEY, Backend, JobResources, LaunchKey, LaunchRequest
from bundles.errors import NotAuthenticated
from bundles.home import (
    LIFETIME_VARIABLE,
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    USER_VARIABLE,
    Credentials,
)
from manager.command import WorkerOptions, worker_command

if TYPE_CHECKING:
    from bundles.client import Client


@dataclass(frozen=True, slots=True)
class Launcher:
    """How a worker of the pool is made: its command line, and its credentials.

    ``credentials``: our own. Workers get them only on a server that gives no worker tokens.
    ``lifetime_seconds``: when the service ends a worker, from its start; None: it does not.
    """

    server: str
    options: WorkerOptions
    resources: JobResources
    credentials: Credentials
    lifetime_seconds: float | None = None

    def requests(
        self, keys: Sequence[LaunchKey], backend: Backend, secrets: Mapping[str, str]
    ) -> list[LaunchRequest]:
        """A request for each key; they differ in nothing else."""
        argv = worker_command(
            self.options,
            backend.capabilities,
            server=self.server,
            worker_id=KEY,
            work_directory=backend.work_directory,
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            memory_bytes=self.resources.memory_bytes,
        )
        environment = {}
        if self.lifetime_seconds is not None:
            environment[LIFETIME_VARIABLE] = f"{self.lifetime_seconds:.0f}"
        return [
            LaunchRequest(key, tuple(argv), self.resources, environment, secrets) for key in keys
        ]

    def secrets(self, client: Client, pool: str = "", fence: int | None = None) -> dict[str, str]:
        """The environment by which a worker shows who it is: a fresh worker token, else CodaLab's.

        ``fence``: of the lease of the pool, where the server keeps leases. Raises Conflict when it
        is another manager's by now, NotAuthenticated when there is nothing that a worker could use.
        """
        if "tokens" in client.features and not self.options.is_codalab:
            if fence is None:
                return {TOKEN_VARIABLE: client.worker_token()}
            return {TOKEN_VARIABLE: client.worker_token(pool, fence)}
        if self.credentials.username and self.credentials.password:
            return {
                USER_VARIABLE: self.credentials.username,
                PASSWORD_VARIABLE: self.credentials.password,
            }
        raise NotAuthenticated(
            f"workers need a user and a password at {self.server}: set {USER_VARIABLE} and "
            f"{PASSWORD_VARIABLE}, or give --password-file"
        )
