"""What a registry says of an image before it is pulled: how large it is, and which.

Speaks the registry's own API (`/v2/…/manifests`, OCI distribution), since an engine does not pass
sizes on. Pulls nothing.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 20.0
HUB = "registry-1.docker.io"
MANIFESTS = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    )
)


class Silent(Exception):
    """The registry did not say; the message says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's name, taken apart. ``version`` is a tag, or a digest with its `sha256:`."""

    registry: str
    repository: str
    version: str

    @property
    def is_digest(self) -> bool:
        return ":" in self.version


def parse_reference(text: str) -> Reference:
    """`[HOST[:PORT]/]NAME[:TAG][@DIGEST]` as Docker reads it. Raises ValueError."""
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if has_registry else ("docker.io", name)
    # A colon after the last slash begins a tag; one before it, a port.
    head, colon, tag = repository.rpartition(":")
    if colon and "/" not in tag:
        repository = head
    else:
        tag = "latest"
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    if not re.fullmatch(r"[a-z0-9]+([._/-]+[a-z0-9]+)*", repository):
        raise ValueError(f"{text!r} is no name of an image")
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-f:]+\])(:[0-9]+)?", registry):
        raise ValueError(f"{text!r} is no name of an image")
    if at and not re.fullmatch(r"[a-z0-9]+:[0-9a-f]{32,}", digest):
        raise ValueError(f"{text!r} ends in no digest")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag):
        raise ValueError(f"{text!r} has no proper tag")
    return Reference(registry, repository, digest or tag)


def image_bytes(
    reference: Reference, credentials: Mapping[str, str] | None, architecture: str
) -> int:
    """The size of all layers as they are transferred, in bytes. Raises Silent.

    ``credentials`` as in Docker's configuration: `username` and `password`, or
    `identitytoken`. ``architecture`` as Go calls it.
    """

    def size(client: Any, base: str) -> int:
        manifest = _get(client, f"{base}/{reference.version}", credentials).json()
        if "manifests" in manifest:
            chosen = [
                entry
                for entry in manifest["manifests"]
                if entry.get("platform", {}).get("os") == "linux"
                and entry.get("platform", {}).get("architecture") == architecture
            ]
            if not chosen:
                raise ValueError(f"it has no image for linux on {architecture}")
            manifest = _get(client, f"{base}/{chosen[0]['digest']}", credentials).json()
        return sum(int(layer["size"]) for layer in manifest["layers"])

    return _ask(reference, size)


def image_digest(reference: Reference, credentials: Mapping[str, str] | None) -> str:
    """What its version stands for now: `sha256:…` of its manifest, or index. Raises Silent."""

    def digest(client: Any, base: str) -> str:
        content = _get(client, f"{base}/{reference.version}", credentials).content
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    return _ask(reference, digest)


def find_credentials(reference: Reference) -> dict[str, str]:
    """Those of `docker login`, by Docker's configuration and its helpers; none where Docker's SDK
    is not installed. Raises Silent when a helper does not work."""
    try:
        from docker import auth
        from docker.errors import DockerException
    except ImportError:
        return {}
    index = auth.INDEX_NAME if reference.registry == "docker.io" else reference.registry
    try:
        found = auth.load_config().resolve_authconfig(index)
    except DockerException as error:
        raise Silent(f"no credentials for {index}: {error}") from error
    return {str(name).lower(): str(value) for name, value in (found or {}).items()}


def is_loopback(host: str) -> bool:
    """Whether a registry is of this machine: as Docker does, such are spoken to without TLS."""
    name = host.rpartition(":")[0] or host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


def _ask(reference: Reference, question: Callable[[Any, str], T]) -> T:
    """Answer a question with a client and the address of an image's manifests. Raises Silent."""
    import httpx

    host = HUB if reference.registry == "docker.io" else reference.registry
    schemes = ["https", "http"] if is_loopback(host) else ["https"]
    failure: Exception | None = None
    with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as client:
        for scheme in schemes:
            try:
                return question(client, f"{scheme}://{host}/v2/{reference.repository}/manifests")
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                failure = error
    raise Silent(f"{host} says nothing of the image {reference.repository}: {failure}")


def _get(client: Any, url: str, credentials: Mapping[str, str] | None) -> Any:
    headers = {"Accept": MANIFESTS}
    response = client.get(url, headers=headers)
    if response.status_code == 401:
        challenge = response.headers.get("www-authenticate", "")
        headers["Authorization"] = _answer(client, challenge, credentials)
        response = client.get(url, headers=headers)
    response.raise_for_status()
    return response


def _answer(client: Any, challenge: str, credentials: Mapping[str, str] | None) -> str:
    """The `Authorization` that a registry asks for, by its `WWW-Authenticate`."""
    scheme, _, rest = challenge.partition(" ")
    given = credentials or {}
    basic = ""
    if given.get("username"):
        pair = f"{given['username']}:{given.get('password', '')}".encode()
        basic = f"Basic {base64.b64encode(pair).decode()}"
    if scheme.lower() == "basic":
        if not basic:
            raise ValueError("it wants a name and a password: run docker login")
        return basic
    asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = asked.pop("realm")
    if given.get("identitytoken"):
        form = {
            "grant_type": "refresh_token",
            "refresh_token": given["identitytoken"],
            "client_id": "worker-manager",
            **asked,
        }
        response = client.post(realm, data=form)
    else:
        response = client.get(
            realm, params=asked, headers={"Authorization": basic} if basic else {}
        )
    response.raise_for_status()
    document = response.json()
    return f"Bearer {document.get('token') or document['access_token']}"
