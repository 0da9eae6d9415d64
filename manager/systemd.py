"""Tells systemd how this process is: the datagrams of sd_notify(3). Nothing where nobody asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
ADDRESS_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
WATCHDOG_PROCESS_VARIABLE = "WATCHDOG_PID"
VARIABLES = frozenset({ADDRESS_VARIABLE, WATCHDOG_VARIABLE, WATCHDOG_PROCESS_VARIABLE})


class Systemd:
    """The service manager that ``environ`` names, if it names one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get(ADDRESS_VARIABLE, "")
        self._environ = environ

    @property
    def watchdog_seconds(self) -> float | None:
        """How often it wants to hear that we live, at least; None when it does not ask."""
        asked = self._environ.get(WATCHDOG_VARIABLE, "")
        whom = self._environ.get(WATCHDOG_PROCESS_VARIABLE, "")
        if not asked.isdigit() or int(asked) == 0 or whom not in ("", str(os.getpid())):
            return None
        return int(asked) / 1e6

    def tell(self, *lines: str) -> None:
        """Never raises: a manager keeps its pool whoever listens."""
        if not self._address.startswith(("/", "@")):
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
