"""Preemption of Compute Engine instances, from the metadata server.

Source: Compute Engine documentation, "View and query VM metadata" (`wait_for_change`, `last_etag`,
`timeout_sec`) and "Spot VMs" (`preempted` becomes TRUE, and 30 s are left).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import httpx

from worker.preemption.base import CONNECT_SECONDS, Absent, Notice, metadata_client

log = logging.getLogger(__name__)

ADDRESS = "http://169.254.169.254"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
FLAVOR = {"Metadata-Flavor": "Google"}
NOTICE_SECONDS = 30.0
HOLD_SECONDS = 300
"""So long the server is asked to hold a reply; it says when the value changes before."""
AWAY_SECONDS = 5.0


def find_address(environ: Mapping[str, str]) -> str:
    """Where Google's libraries look for it, too."""
    host = environ.get("GCE_METADATA_HOST") or environ.get("GCE_METADATA_ROOT")
    return f"http://{host}" if host else ADDRESS


class Gcp:
    """A request that the server holds until there is something to say."""

    def __init__(self, address: str) -> None:
        self._http = metadata_client(address)

    def check(self) -> str | None:
        """See worker.preemption.base.Source."""
        try:
            response = self._http.get(PREEMPTED, headers=FLAVOR)
        except httpx.HTTPError as error:
            raise Absent(f"no metadata server of Compute Engine answers ({error})") from error
        if response.headers.get("Metadata-Flavor") != "Google":
            raise Absent("what answers is no metadata server of Compute Engine")
        return None

    def wait(self, ended: threading.Event) -> Notice | None:
        """See worker.preemption.base.Source."""
        seen = "0"  # the first one is answered at once, whatever the value is
        while not ended.is_set():
            try:
                response = self._http.get(
                    PREEMPTED,
                    params={
                        "wait_for_change": "true",
                        "last_etag": seen,
                        "timeout_sec": str(HOLD_SECONDS),
                    },
                    headers=FLAVOR,
                    timeout=httpx.Timeout(HOLD_SECONDS + 30.0, connect=CONNECT_SECONDS),
                )
                response.raise_for_status()
            except httpx.HTTPError as error:
                log.debug("no word of preemption: %s", error)
                ended.wait(AWAY_SECONDS)
                continue
            if response.text.strip().upper() == "TRUE":
                return Notice("preempted: Compute Engine takes this machine back", NOTICE_SECONDS)
            before, seen = seen, response.headers.get("ETag") or "0"
            if seen in (before, "0") and response.elapsed.total_seconds() < 1.0:
                ended.wait(AWAY_SECONDS)  # a server that does not hold its reply
        return None

    def acknowledge(self) -> None:
        """Compute Engine takes no acknowledgement."""
