"""Asks services of AWS: each call with a time-out, repeated a bounded number of times, and then
exactly one error of the taxonomy.

The SDK's own retries are off, so that there is one rule, which knows what may be repeated: a
SubmitJob whose reply was lost may not, because nothing tells AWS that it is the same one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tenacity

from backends.addresses import is_loopback
from backends.aws_batch.errors import backend_error, is_unknown_identity, was_never_sent
from backends.base import Invalid, Throttled, Unauthorized, Unreachable

DEFAULT_REGION = "us-east-1"
"""Of cl-worker-manager, where nothing else says which."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an answer is waited for, and how often it is asked for again.

    A service that asks for a longer pause than ``longest_wait_seconds`` is not asked again here:
    the manager's next tick does.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    attempts: int = 4
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 5.0
    longest_seconds: float = 15.0
    """After this long no attempt begins."""


@dataclass
class Connection:
    """The clients of one region, made when they are needed.

    ``environment`` is looked at for AWS_ENDPOINT_URL_… alone; credentials are found by boto3, and
    found anew when AWS does not take those that were found before.
    """

    region: str | None
    profile: str | None
    endpoint: str | None
    environment: Mapping[str, str]
    patience: Patience = field(default_factory=Patience)
    _session: Any = None
    _clients: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Clients may be used by several threads, but not made by several (boto3, "Multithreading")."""

    def ask(
        self, service: str, operation: str, doing: str, *, repeatable: bool = True, **ask: Any
    ) -> dict[str, Any]:
        """The answer to one call. Raises the BackendError that stands for what went wrong.

        ``doing`` says it to a person. Not ``repeatable``: asked again only when it is certain that
        it was not done.
        """
        patience = self.patience

        def may_pass(error: BaseException) -> bool:
            if isinstance(error, Throttled):
                return (error.retry_after_seconds or 0.0) <= patience.longest_wait_seconds
            return isinstance(error, Unreachable) and (repeatable or was_never_sent(error))

        retrying = tenacity.Retrying(
            stop=(
                tenacity.stop_after_attempt(patience.attempts)
                | tenacity.stop_after_delay(patience.longest_seconds)
            ),
            wait=self._wait_seconds,
            retry=tenacity.retry_if_exception(may_pass),
            reraise=True,
        )
        return retrying(self._ask_with_fresh_credentials, service, operation, doing, ask)

    def pages(
        self, service: str, operation: str, doing: str, **ask: Any
    ) -> Iterator[dict[str, Any]]:
        """Every page of a list, to the end, or an error: never fewer."""
        token: str | None = None
        while True:
            following: dict[str, Any] = {"nextToken": token} if token else {}
            page = self.ask(service, operation, doing, **ask, **following)
            yield page
            last, token = token, page.get("nextToken")
            if not token:
                return
            if token == last:
                raise Unreachable(f"{doing}: AWS gives the same page again and again")

    def region_of(self, service: str) -> str:
        """Raises BackendError when the configuration of AWS makes no sense."""
        try:
            return str(self._client(service).meta.region_name)
        except Exception as error:
            raise backend_error(error, "reading the configuration of AWS") from error

    def knows_region(self, service: str) -> bool:
        """Whether the SDK knows that AWS has this service in the region, or an address was given
        for it. Raises BackendError like `region_of`."""
        region = self.region_of(service)
        if f"//{service}.{region}." not in self._client(service).meta.endpoint_url:
            return True
        return any(
            region in self._session.get_available_regions(service, partition_name=partition)
            for partition in self._session.get_available_partitions()
        )

    def _ask_with_fresh_credentials(
        self, service: str, operation: str, doing: str, ask: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Files of credentials are read once by a session, and change when those in them expire."""
        try:
            return self._ask(service, operation, doing, ask)
        except Unauthorized as error:
            if not is_unknown_identity(error):
                raise
            with self._lock:
                self._session = None
                self._clients = {}
            return self._ask(service, operation, doing, ask)

    def _ask(
        self, service: str, operation: str, doing: str, ask: Mapping[str, Any]
    ) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client(service), operation)(**ask)
        except Exception as error:  # the SDK's have no base in common
            raise backend_error(error, doing) from error
        return answer

    def _wait_seconds(self, state: tenacity.RetryCallState) -> float:
        """The service's word, else twice as long each time, with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Throttled) and error.retry_after_seconds is not None:
            return error.retry_after_seconds + random.uniform(0.0, 0.25)
        grown: float = self.patience.first_wait_seconds * 2 ** (state.attempt_number - 1)
        return random.uniform(0.5, 1.0) * min(grown, self.patience.longest_wait_seconds)

    def _client(self, service: str) -> Any:
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._make_client(service)
            return self._clients[service]

    def _make_client(self, service: str) -> Any:
        try:
            import boto3  # type: ignore[import-untyped]
            from botocore.config import Config  # type: ignore[import-untyped]
        except ImportError as error:
            raise Invalid(
                "AWS Batch needs boto3, which is not installed: pip install 'worker-manager[aws]'"
            ) from error

        if self._session is None:
            session = boto3.Session(profile_name=self.profile, region_name=self.region)
            if session.region_name is None:
                session = boto3.Session(profile_name=self.profile, region_name=DEFAULT_REGION)
            self._session = session
        has_own = f"AWS_ENDPOINT_URL_{service.upper()}" in self.environment
        ask: dict[str, Any] = {
            "endpoint_url": None if has_own else self.endpoint,
            "config": Config(
                connect_timeout=self.patience.connect_seconds,
                read_timeout=self.patience.read_seconds,
                retries={"total_max_attempts": 1, "mode": "standard"},
                user_agent_extra="worker-manager",
            ),
        }
        client = self._session.client(service, **ask)
        url = client.meta.endpoint_url
        if url.startswith("http://") and is_loopback(url) and not self._session.get_credentials():
            # Nobody outside of this machine can be listening, and the SDK wants to sign.
            ask |= {"aws_access_key_id": "anonymous", "aws_secret_access_key": "anonymous"}
            client = self._session.client(service, **ask)
        return client
