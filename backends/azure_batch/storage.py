"""How a worker gets its credentials: a small blob that its node fetches, and nobody sees in a task.

One blob for all workers of a launch. A node reads it as the pool's identity where there is one;
else by a signature (SAS) for this blob alone, to read, for CREDENTIALS_SECONDS. Such a signature
is in the task's definition: it opens the worker's token, and only until then.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from backends.azure_batch.connection import HTTP_OPTIONS, identity
from backends.azure_batch.definition import CREDENTIALS_FILE
from backends.azure_batch.errors import backend_error
from backends.azure_batch.options import AzureSettings
from backends.base import Context, Invalid, LaunchKey
from backends.patience import patiently

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

STORAGE_KEY_VARIABLE = "AZURE_STORAGE_KEY"
STORAGE_ACCOUNT_VARIABLE = "AZURE_STORAGE_ACCOUNT"
"""The two that Azure's own command line reads."""
CREDENTIALS_SECONDS = 24 * 3600.0
"""A worker that has not started by then cannot: the next launch has new credentials."""
_SKEW = timedelta(minutes=5)


def text_of(secrets: Mapping[str, str]) -> str:
    """The file that a worker's shell reads: one variable a line."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in secrets.items())


class Storage:
    """The blobs of one manager's pool, below `OWNER/POOL/` in a container."""

    def __init__(self, context: Context, settings: AzureSettings) -> None:
        self._context = context
        self._settings = settings

    def blob_name(self, first: LaunchKey) -> str:
        return f"{self._context.owner}/{self._context.pool}/{first}"

    def resource_file(self, first: LaunchKey, query: str = "") -> dict[str, Any]:
        """A ResourceFile of the REST API, for the launch whose first key is this."""
        url = f"{self._url}/{quote(self.blob_name(first))}"
        file: dict[str, Any] = {
            "httpUrl": f"{url}?{query}" if query else url,
            "filePath": CREDENTIALS_FILE,
            "fileMode": "0600",
        }
        if self._settings.identity:
            file["identityReference"] = {"resourceId": self._settings.identity}
        return file

    def put(self, first: LaunchKey, secrets: Mapping[str, str]) -> dict[str, Any]:
        """Put the credentials of a launch in place; the resource file. Raises BackendError."""
        name = self.blob_name(first)

        def upload() -> str:
            with self._connected() as container:
                container.upload_blob(name, text_of(secrets).encode(), overwrite=True)
                if self._settings.identity:
                    return ""
                return self._signature(container.container_name, name)

        return self.resource_file(
            first,
            patiently(f"putting the workers' credentials at {self._url}", upload, backend_error),
        )

    def prune(self, now: float) -> None:
        """Remove what no worker may need any more. Raises BackendError."""
        oldest = datetime.fromtimestamp(now - CREDENTIALS_SECONDS, UTC)

        def remove() -> None:
            with self._connected() as container:
                prefix = f"{self._context.owner}/{self._context.pool}/"
                for blob in container.list_blobs(name_starts_with=prefix):
                    if blob.last_modified < oldest:
                        container.delete_blob(blob.name)

        if self._settings.secrets_container_url:
            patiently(f"removing old credentials at {self._url}", remove, backend_error)

    def check(self) -> None:
        """Whether the container answers us. Raises BackendError."""

        def look() -> None:
            with self._connected() as container:
                container.get_container_properties()

        patiently(f"looking at {self._url}", look, backend_error)

    @property
    def refusal(self) -> Invalid | None:
        """Why no credentials can be put anywhere; None when a place is given."""
        if self._settings.secrets_container_url:
            return None
        return Invalid(
            "the workers' credentials need a way that tasks do not show: give "
            "--secrets-container-url, a blob container of yours"
        )

    @property
    def _url(self) -> str:
        """The container's. Raises Invalid when none is given."""
        if self.refusal is not None:
            raise self.refusal
        return str(self._settings.secrets_container_url).rstrip("/")

    @property
    def _account(self) -> str:
        """The storage account: by its variable, else as the URL's host or path names it."""
        parts = urlsplit(self._url)
        host = (parts.hostname or "").split(".")
        is_named = len(host) > 2 and not host[0].isdigit()
        in_url = host[0] if is_named else parts.path.strip("/").split("/")[0]
        return os.environ.get(STORAGE_ACCOUNT_VARIABLE) or in_url

    def _connected(self) -> ContainerClient:
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_container_url(
            self._url, credential=self._credential(), **HTTP_OPTIONS
        )

    def _credential(self) -> Any:
        """Read each time, so that a key may be changed under a manager that runs."""
        key = os.environ.get(STORAGE_KEY_VARIABLE)
        if key:
            return {"account_name": self._account, "account_key": key}
        if self._url.startswith("http://"):
            raise Invalid(
                f"--secrets-container-url {self._url}: an identity is shown over https alone; set "
                f"{STORAGE_KEY_VARIABLE}"
            )
        return identity(self._url)

    def _signature(self, container_name: str, blob_name: str) -> str:
        """A SAS that reads this one blob."""
        from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

        now = datetime.now(UTC)
        start, end = now - _SKEW, now + timedelta(seconds=CREDENTIALS_SECONDS)
        key = os.environ.get(STORAGE_KEY_VARIABLE)
        delegation = None
        if not key:
            with BlobServiceClient(
                self._url.rpartition("/")[0], credential=self._credential(), **HTTP_OPTIONS
            ) as service:
                delegation = service.get_user_delegation_key(start, end)
        return generate_blob_sas(
            self._account,
            container_name,
            blob_name,
            account_key=key,
            user_delegation_key=delegation,
            permission=BlobSasPermissions(read=True),
            start=start,
            expiry=end,
        )
