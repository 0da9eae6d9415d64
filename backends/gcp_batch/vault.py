"""How workers get their credentials: a secret of Secret Manager, of which Batch's agent reads the
latest version when a task starts, as the machine's service account.

The secret is made by whoever sets the pool up (docs/backends/gcp-batch.md); versions are added
here, so that this manager may add and destroy versions of it, and read none.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from backends.base import BackendError, Invalid
from backends.gcp_batch.connection import Connection
from backends.gcp_batch.options import GcpSettings

VERSIONS_KEPT = 2
"""The last one, and the one that a task which starts at this moment may be reading."""


class Vault:
    def __init__(self, connection: Connection, settings: GcpSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._latest = ""

    @property
    def refusal(self) -> Invalid | None:
        """Why no credentials can be put anywhere; None when a place is given."""
        if self._settings.secret:
            return None
        return Invalid(
            "the workers' credentials need a way that jobs do not show: give --secret, a secret of "
            "Secret Manager that the machines' service account may read"
        )

    def put(self, text: str) -> None:
        """Have ``text`` be the latest version. Raises BackendError."""
        if text == self._latest:
            return
        from google.cloud.secretmanager_v1.types import AddSecretVersionRequest

        request = AddSecretVersionRequest(
            parent=self._settings.secret, payload={"data": text.encode()}
        )
        added = self._connection.call(
            f"putting the workers' credentials into {self._settings.secret}",
            lambda **keywords: self._connection.secrets.add_secret_version(**keywords),
            request,
        )
        self._latest = text
        with suppress(BackendError):  # what is left behind is a token that expires
            self._destroy_old(added.name)

    def check(self) -> None:
        """Whether the secret is there and we may see it. Raises BackendError."""
        from google.cloud.secretmanager_v1.types import GetSecretRequest

        self._connection.call(
            f"looking at {self._settings.secret}",
            lambda **keywords: self._connection.secrets.get_secret(**keywords),
            GetSecretRequest(name=self._settings.secret),
        )

    def _destroy_old(self, added: str) -> None:
        """Versions are numbered from 1; the ones before were destroyed when theirs came."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.secretmanager_v1.types import DestroySecretVersionRequest

        base, _, number = added.rpartition("/")
        old = int(number) - VERSIONS_KEPT if number.isdigit() else 0
        if old < 1:
            return

        def destroy(**keywords: Any) -> None:
            try:
                self._connection.secrets.destroy_secret_version(**keywords)
            except GoogleAPICallError as error:
                if error.code not in (400, 404):  # it is destroyed already
                    raise

        request = DestroySecretVersionRequest(name=f"{base}/{old}")
        self._connection.call(f"destroying the old {request.name}", destroy, request)
