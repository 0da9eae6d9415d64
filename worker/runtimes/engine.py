"""A container engine: where it is, how it is spoken to, and its errors as sentences.

Docker and podman answer to the same API at different sockets. What is done with it is the
business of worker.runtimes.docker and worker.images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

CALL_SECONDS = 60.0
"""An engine under load may take long to create a container; one that is stuck, forever."""
PROBE_SECONDS = 5
SILENCE_SECONDS = 600.0
"""A stream that says nothing for so long (a pull, events) is taken for broken."""

Unanswered = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What a call raises when the engine is not there, or goes away during the call; the second, when
that was a stream."""


class NoEngine(Exception):
    """No container engine answers; the message says where one was looked for."""


class Engine(docker.APIClient):
    """A client of an engine, for any thread. No request of it is without a time-out."""

    is_rootless = False
    is_podman = False
    release: tuple[int, ...] = ()
    """Of the engine itself, which its API's version says nothing of."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if options.get("timeout") is None:  # the SDK's way to say: a stream
            options["timeout"] = SILENCE_SECONDS
        return super().send(request, **options)

    def another(self) -> Engine:
        """A client with connections of its own, for streams."""
        client = Engine(**self._made_with, version=self.api_version, timeout=int(CALL_SECONDS))
        client.is_rootless, client.is_podman = self.is_rootless, self.is_podman
        client.release = self.release
        return client

    _made_with: dict[str, Any]


def find_engine(kind: str) -> Engine:
    """A client of the ``kind`` of engine, `docker` or `podman`, that answered. Raises NoEngine."""
    places = _podman_places() if kind == "podman" else [dict(kwargs_from_env())]
    failure: Exception | None = None
    for place in places:
        try:
            probe = docker.APIClient(**place, version="auto", timeout=PROBE_SECONDS)
            try:
                about = probe.info()
                version = probe.api_version
            finally:
                probe.close()
        except (DockerException, *Unanswered) as error:
            failure = error
            continue
        engine = Engine(**place, version=version, timeout=int(CALL_SECONDS))
        engine._made_with = place
        options = [str(option) for option in about.get("SecurityOptions") or ()]
        # Docker says it in one place, podman in another.
        is_rootless = any("rootless" in option for option in options)
        engine.is_rootless = is_rootless or bool(about.get("Rootless"))
        engine.is_podman = kind == "podman" or "BuildahVersion" in about
        numbers = re.findall(r"\d+", str(about.get("ServerVersion")))
        engine.release = tuple(int(number) for number in numbers[:2])
        return engine
    where = ", ".join(str(place.get("base_url") or "its default socket") for place in places)
    raise NoEngine(f"no {kind} engine answers at {where} ({_first_line(str(failure))})")


def _podman_places() -> list[dict[str, Any]]:
    if os.environ.get("CONTAINER_HOST"):
        return [{"base_url": os.environ["CONTAINER_HOST"]}]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    directories = [Path("/run")] if os.geteuid() == 0 else [Path(runtime), Path("/run")]
    return [{"base_url": f"unix://{place}/podman/podman.sock"} for place in directories]


def explain(error: APIError) -> str:
    """What the engine said, in one line."""
    said = error.explanation or str(error)
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return _first_line(said)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "it did not say why")[:500]


def explain_start(error: APIError) -> str:
    """The sentence for a container that the engine would not start."""
    said = explain(error)
    if re.search(r"could not select device driver|nvidia|unresolvable CDI|gpu", said, re.I):
        return f"The engine cannot give it the GPUs that it requests: {said}"
    return f"The container cannot be started: {said}"
