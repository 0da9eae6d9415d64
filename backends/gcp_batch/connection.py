"""Clients of the three services of Google Cloud that are spoken to, made when they are needed.

Credentials are Google's default ones, which refresh themselves, and are looked for anew when Google
does not take them; over plain http to this machine alone there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from backends.base import Unauthorized
from backends.gcp_batch.errors import backend_error, is_unknown_identity
from backends.gcp_batch.options import GcpSettings
from backends.patience import patiently

if TYPE_CHECKING:
    from google.cloud.batch_v1 import BatchServiceClient
    from google.cloud.logging import Client as LoggingClient
    from google.cloud.secretmanager_v1 import SecretManagerServiceClient

T = TypeVar("T")

CALL_SECONDS = 20.0
"""One attempt of one call."""


class Connection:
    def __init__(self, settings: GcpSettings) -> None:
        self._settings = settings

    def call(self, doing: str, method: Callable[..., T], request: Any) -> T:
        """What a method of a client returns, asked a bounded number of times. Raises BackendError.

        The libraries' own retries are off, so that there is one rule. For requests that may be
        repeated: all of ours can, because ids are chosen here.
        """

        def ask() -> T:
            return method(request=request, timeout=CALL_SECONDS, retry=None)

        try:
            return patiently(doing, ask, backend_error)
        except Unauthorized as error:
            if not is_unknown_identity(error):
                raise
            self._forget()
            return patiently(doing, ask, backend_error)

    def _forget(self) -> None:
        """The next call makes its client anew, with the credentials that are there then."""
        self.__dict__.pop("logging", None)
        for name in ("batch", "secrets"):
            client = self.__dict__.pop(name, None)
            if client is not None:
                client.transport.close()

    @cached_property
    def batch(self) -> BatchServiceClient:
        """Raises google.auth's errors."""
        from google.cloud.batch_v1 import BatchServiceClient
        from google.cloud.batch_v1.services.batch_service.transports import (
            BatchServiceGrpcTransport,
        )

        client: BatchServiceClient = self._client(
            BatchServiceClient, BatchServiceGrpcTransport, self._settings.endpoint
        )
        return client

    @cached_property
    def secrets(self) -> SecretManagerServiceClient:
        """Raises google.auth's errors."""
        from google.cloud.secretmanager_v1 import SecretManagerServiceClient
        from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
            SecretManagerServiceGrpcTransport,
        )

        client: SecretManagerServiceClient = self._client(
            SecretManagerServiceClient,
            SecretManagerServiceGrpcTransport,
            self._settings.secret_endpoint,
        )
        return client

    @cached_property
    def logging(self) -> LoggingClient:
        """Raises google.auth's errors. It speaks JSON: the other way would be an interpreter's
        worth of generated code for one call."""
        from google.api_core.client_options import ClientOptions
        from google.cloud.logging import Client

        url = self._settings.logging_endpoint
        credentials = _nobody() if _is_plain(url) else None
        options = ClientOptions(api_endpoint=url) if url else None
        return Client(  # type: ignore[no-untyped-call]
            project=self._settings.project,
            credentials=credentials,
            client_options=options,
            _use_grpc=False,
        )

    def _client(self, client: Any, grpc_transport: Any, url: str | None) -> Any:
        from google.api_core.client_options import ClientOptions

        transport = self._settings.transport
        # It logs with a traceback what the call itself raises.
        logging.getLogger("grpc._plugin_wrapping").setLevel(logging.CRITICAL)
        if url is None:
            return client(transport=transport)
        if not _is_plain(url):
            host = url if transport == "rest" else urlsplit(url).netloc
            return client(transport=transport, client_options=ClientOptions(api_endpoint=host))
        if transport == "rest":
            return client(
                transport=transport,
                credentials=_nobody(),
                client_options=ClientOptions(api_endpoint=url),
            )
        import grpc

        return client(transport=grpc_transport(channel=grpc.insecure_channel(urlsplit(url).netloc)))


def _is_plain(url: str | None) -> bool:
    """Settings let plain http through to this machine alone."""
    return url is not None and url.startswith("http://")


def _nobody() -> Any:
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials()  # type: ignore[no-untyped-call]
