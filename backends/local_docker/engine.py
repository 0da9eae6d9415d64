"""The engine at DOCKER_HOST: every call has a time-out and bounded retries, and one error."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeVar

import docker
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env, parse_host
from requests.exceptions import RequestException
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from backends.base import Invalid
from backends.local_docker.errors import (
    backend_error,
    is_worth_another_try,
    retry_after_seconds,
)

T = TypeVar("T")

CALL_SECONDS = 20
"""An engine under load may take long to make a container; one that is stuck, forever."""
TRIES = 4
LONGEST_WAIT_SECONDS = 10.0
DEFAULT_SOCKET = "/var/run/docker.sock"

_own_wait = wait_random_exponential(multiplier=0.2, max=2.0)


class Engine:
    """A client that is connected when it is first needed.

    Raises Invalid when DOCKER_HOST and what belongs to it make no sense.
    """

    def __init__(self, environment: Mapping[str, str], call_seconds: int = CALL_SECONDS) -> None:
        self._place: dict[str, Any]
        try:
            self._place = dict(kwargs_from_env(environment=dict(environment)))
            parse_host(self._place.get("base_url"), tls="tls" in self._place)
        except DockerException as error:
            raise Invalid(f"DOCKER_HOST cannot be used: {error}") from error
        self.address = str(self._place.get("base_url") or f"unix://{DEFAULT_SOCKET}")
        self._call_seconds = call_seconds
        self._client: docker.APIClient | None = None

    @property
    def socket(self) -> str | None:
        """The engine's socket on this machine; None when it is spoken to over a network."""
        scheme, _, path = self.address.partition("://")
        return f"/{path.lstrip('/')}" if scheme in ("unix", "http+unix") else None

    def ask(self, doing: str, call: Callable[[docker.APIClient], T]) -> T:
        """What ``call`` returns. It may be made several times. Raises BackendError."""
        try:
            return Retrying(
                stop=stop_after_attempt(TRIES),
                wait=_wait,
                retry=retry_if_exception(
                    lambda error: isinstance(error, Exception) and is_worth_another_try(error)
                ),
                reraise=True,
            )(lambda: call(self._connected()))
        except (APIError, DockerException, RequestException, OSError) as error:
            raise backend_error(error, doing) from error

    def _connected(self) -> docker.APIClient:
        if self._client is None:
            with closing(self._client_of(DEFAULT_DOCKER_API_VERSION)) as probe:
                version = probe.version(api_version=False)["ApiVersion"]
            self._client = self._client_of(version)
            weakref.finalize(self, self._client.close)
        return self._client

    def _client_of(self, version: str) -> docker.APIClient:
        return docker.APIClient(**self._place, version=version, timeout=self._call_seconds)


def _wait(state: RetryCallState) -> float:
    """As long as the engine said, else a little longer each time."""
    error = state.outcome.exception() if state.outcome else None
    said = retry_after_seconds(error)
    return _own_wait(state) if said is None else min(said, LONGEST_WAIT_SECONDS)
