"""Who we are to Azure Batch, and the client that speaks for us. Knows nothing of workers.

A key wins over an identity. It is read again when Azure does not take it any more, so that keys
can be rotated under a manager that runs; tokens of an identity are renewed by azure-identity.
"""

from __future__ import annotations

import binascii
import logging
import os
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from backends.addresses import is_loopback
from backends.azure_batch.errors import backend_error
from backends.azure_batch.options import (
    ACCOUNT_KEY_VARIABLE,
    AzureSettings,
)
from backends.base import Invalid, Unauthorized
from backends.patience import patiently

if TYPE_CHECKING:
    from azure.batch import BatchClient
    from azure.core.credentials import TokenCredential

T = TypeVar("T")

CONNECT_SECONDS = 10
READ_SECONDS = 40
"""Azure Batch gives up a request itself after 30 seconds."""

HTTP_OPTIONS: dict[str, Any] = {
    "retry_total": 0,  # see backends.patience
    "connection_timeout": CONNECT_SECONDS,
    "read_timeout": READ_SECONDS,
}
_BATCH_RESOURCES = {
    ".batch.chinacloudapi.cn": "https://batch.chinacloudapi.cn/",
    ".batch.usgovcloudapi.net": "https://batch.core.usgovcloudapi.net/",
}
"""What a token must be for, by the end of an account's host (azure-cli, `batch_resource_id`)."""
_PUBLIC_BATCH_RESOURCE = "https://batch.core.windows.net/"

log = logging.getLogger(__name__)


class Connection:
    """Calls of one Batch account, each with time-outs and bounded retries."""

    def __init__(self, settings: AzureSettings) -> None:
        self._settings = settings
        self._key: str | None = None
        self._client: BatchClient | None = None
        if settings.account_key:
            log.warning(
                "--account-key can be read by anybody on this machine: set %s, or give "
                "--account-key-file",
                ACCOUNT_KEY_VARIABLE,
            )

    def call(self, doing: str, operation: Callable[[BatchClient], T]) -> T:
        """What ``operation`` returns. Raises BackendError."""
        try:
            return patiently(doing, lambda: operation(self._connected()), backend_error)
        except Unauthorized:
            if self._client is None or self._read_key() == self._key:
                raise
            self._client = None
            return patiently(doing, lambda: operation(self._connected()), backend_error)

    def _connected(self) -> BatchClient:
        if self._client is None:
            self._key = self._read_key()
            self._client = self._connect(self._key)
        return self._client

    def _connect(self, key: str | None) -> BatchClient:
        from azure.batch import BatchClient
        from azure.core.credentials import AzureNamedKeyCredential

        # At INFO it tells of every request, at WARNING of every answer without a body.
        logging.getLogger("azure").setLevel(logging.ERROR)
        url = self._settings.service_url
        if key is not None:
            if not self._settings.account_name:
                raise Invalid("--account-name is missing: the key of an account needs its name")
            try:
                b64decode(key, validate=True)
            except binascii.Error:
                raise Invalid(
                    "the account's key is none: it is base64, as Azure shows it"
                ) from None
            return BatchClient(
                url, AzureNamedKeyCredential(self._settings.account_name, key), **HTTP_OPTIONS
            )
        credential = identity(url)
        return BatchClient(
            url,
            credential,
            authentication_policy=bearer_policy(credential, batch_scope(url), url),
            **HTTP_OPTIONS,
        )

    def _read_key(self) -> str | None:
        """The account's key, None when there is none. Raises Invalid: its file is unreadable."""
        settings = self._settings
        if settings.account_key:
            return settings.account_key
        if settings.account_key_file:
            path = Path(settings.account_key_file).expanduser()
            try:
                if path.stat().st_mode & 0o077:
                    raise Invalid(f"--account-key-file {path} is open to others: chmod 600 {path}")
                return path.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"--account-key-file cannot be read: {error}") from error
        return os.environ.get(ACCOUNT_KEY_VARIABLE) or None


def identity(url: str) -> TokenCredential:
    """Whoever azure-identity finds that we are; at loopback without any identity, nobody."""
    if is_loopback(url) and not any(name in os.environ for name in _IDENTITY_VARIABLES):
        return _Nobody()
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


def batch_scope(url: str) -> str:
    """What to ask a token for. Batch takes none whose audience lacks the slash at the end, which
    `/.default` alone would take away: hence two."""
    host = urlsplit(url).hostname or ""
    for end, resource in _BATCH_RESOURCES.items():
        if host.endswith(end):
            return f"{resource}/.default"
    return f"{_PUBLIC_BATCH_RESOURCE}/.default"


def bearer_policy(credential: TokenCredential, scope: str, url: str) -> Any:
    """What puts a token on requests: over plain http to this machine alone."""
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy

    class Bearer(BearerTokenCredentialPolicy[Any, Any]):
        def on_request(self, request: Any) -> None:
            if urlsplit(request.http_request.url).scheme == "http" and is_loopback(url):
                request.context.options["enforce_https"] = False
            super().on_request(request)

    return Bearer(credential, scope)


_IDENTITY_VARIABLES = ("IDENTITY_ENDPOINT", "MSI_ENDPOINT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")


class _Nobody:
    """The credential of who needs none."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken("anonymous", int(time.time()) + 3600)
