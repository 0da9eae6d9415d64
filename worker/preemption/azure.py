"""Eviction of Azure VMs, from the scheduled events of the instance metadata service.

Source: "Azure Metadata Service: Scheduled Events for Linux VMs": every VM of a set sees the events
of all (`Resources` names whom), the first request may take two minutes, an event may be started
before its `NotBefore` by a POST of its id. A Preempt comes at least 30 s ahead, a Terminate 5 to 15
minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from worker.preemption.base import CONNECT_SECONDS, Absent, Notice, metadata_client

log = logging.getLogger(__name__)

ADDRESS = "http://169.254.169.254"
ADDRESS_VARIABLE = "AZURE_METADATA_SERVICE_ENDPOINT"
EVENTS = "/metadata/scheduledevents"
EVENTS_VERSION = {"api-version": "2020-07-01"}
NAME = "/metadata/instance/compute/name"
NAME_QUERY = {"api-version": "2021-02-01", "format": "text"}
HEADERS = {"Metadata": "true"}
ENDING = {"Preempt": "evicts", "Terminate": "deletes"}
FIRST_REPLY_SECONDS = 150.0
LONGEST_NOTICE_SECONDS = 900.0


def find_address(environ: Mapping[str, str]) -> str:
    """Azure's SDKs know no variable for it; this one is ours."""
    return environ.get(ADDRESS_VARIABLE) or ADDRESS


class Azure:
    """Asks every ``interval_seconds``: there is nothing to wait at."""

    def __init__(
        self, address: str, *, interval_seconds: float, now: Callable[[], float] = time.time
    ) -> None:
        self._http = metadata_client(address)
        self._interval_seconds = interval_seconds
        self._now = now
        self._machine = ""
        self._event_id = ""

    def check(self) -> str | None:
        """See worker.preemption.base.Source."""
        try:
            response = self._http.get(NAME, params=NAME_QUERY, headers=HEADERS)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Absent(f"no metadata service of Azure answers ({error})") from error
        self._machine = response.text.strip()
        return None

    def wait(self, ended: threading.Event) -> Notice | None:
        """See worker.preemption.base.Source."""
        while not ended.wait(self._interval_seconds):
            try:
                response = self._http.get(
                    EVENTS,
                    params=EVENTS_VERSION,
                    headers=HEADERS,
                    timeout=httpx.Timeout(FIRST_REPLY_SECONDS, connect=CONNECT_SECONDS),
                )
                response.raise_for_status()
                event = find_event(response.json()["Events"], self._machine)
            except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.debug("no word of evictions: %s", error)
                continue
            if event is not None:
                self._event_id = str(event["EventId"])
                doing = ENDING[event["EventType"]]
                return Notice(f"preempted: Azure {doing} this machine", self._seconds_left(event))
        return None

    def acknowledge(self) -> None:
        """See worker.preemption.base.Source."""
        if not self._event_id:
            return
        try:
            self._http.post(
                EVENTS,
                params=EVENTS_VERSION,
                headers=HEADERS,
                json={"StartRequests": [{"EventId": self._event_id}]},
            ).raise_for_status()
        except httpx.HTTPError as error:
            log.warning("Azure does not know that this machine may go: %s", error)

    def _seconds_left(self, event: Mapping[str, Any]) -> float:
        text = event.get("NotBefore")
        if not text:  # it has begun
            return 0.0
        seconds = parsedate_to_datetime(str(text)).timestamp() - self._now()
        return min(max(seconds, 0.0), LONGEST_NOTICE_SECONDS)


def find_event(events: Sequence[Mapping[str, Any]], machine: str) -> Mapping[str, Any] | None:
    """The first event that ends the machine of that name; None if there is none.

    Names of machines in scale sets are told with a leading `_` by some versions of the service.
    """
    for event in events:
        names = {str(name).lstrip("_").lower() for name in event.get("Resources") or ()}
        if event.get("EventType") in ENDING and machine.lstrip("_").lower() in names:
            return event
    return None
