"""The contract between the worker and a source of notices, and the HTTP that they share."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import httpx

CONNECT_SECONDS = 1.0
"""A metadata service is on this machine's own link: it answers at once, or is not there."""
REPLY_SECONDS = 5.0


class Absent(Exception):
    """No metadata service of this kind answers here."""


@dataclass(frozen=True, slots=True)
class Notice:
    """This machine goes away ``seconds_left`` from now; ``reason`` as a person reads it."""

    reason: str
    seconds_left: float


class Source(Protocol):
    """One cloud's metadata service. For one thread."""

    def check(self) -> str | None:
        """Whether notices may come: None, or why none ever will. Raises Absent."""

    def wait(self, ended: threading.Event) -> Notice | None:
        """Block until there is a notice; None once ``ended`` is set. Survives a service that is
        away for a while."""

    def acknowledge(self) -> None:
        """Tell the cloud that the machine may go now. Never raises for a service that is away."""


def metadata_client(address: str) -> httpx.Client:
    """A client of a metadata service: never by a proxy, and with short time-outs. They speak
    plain HTTP, so that no certificates are read."""
    return httpx.Client(
        base_url=address.rstrip("/"),
        trust_env=False,
        verify=False,
        timeout=httpx.Timeout(REPLY_SECONDS, connect=CONNECT_SECONDS),
    )
