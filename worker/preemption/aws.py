"""Interruptions of EC2 spot instances, from the instance metadata service (version 2).

Source: EC2 User Guide, "Spot Instance interruption notices" (a check every 5 s is recommended, two
minutes are left) and "Use IMDSv2" (a session token by PUT, 401 once it has expired).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import httpx

from worker.preemption.base import Absent, Notice, metadata_client

log = logging.getLogger(__name__)

ADDRESS = "http://169.254.169.254"
ADDRESS_IPV6 = "http://[fd00:ec2::254]"
TOKEN_SECONDS = 21600
NOTICE_SECONDS = 120.0
INTERRUPTED = "/latest/meta-data/spot/instance-action"
AT_RISK = "/latest/meta-data/events/recommendations/rebalance"
LIFE_CYCLE = "/latest/meta-data/instance-life-cycle"


def find_address(environ: Mapping[str, str]) -> str:
    """Where the AWS SDKs look for it, too."""
    chosen = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if chosen:
        return chosen
    mode = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "")
    return ADDRESS_IPV6 if mode.lower() == "ipv6" else ADDRESS


class Aws:
    """Asks every ``interval_seconds``: there is nothing to wait at."""

    def __init__(
        self, address: str, *, interval_seconds: float, now: Callable[[], float] = time.time
    ) -> None:
        self._http = metadata_client(address)
        self._interval_seconds = interval_seconds
        self._now = now
        self._token = ""
        self._warned = False

    def check(self) -> str | None:
        """See worker.preemption.base.Source."""
        try:
            response = self._get(LIFE_CYCLE)
        except httpx.HTTPError as error:
            raise Absent(f"no EC2 metadata service answers ({error})") from error
        kind = response.text.strip()
        if response.status_code == 200 and kind != "spot":
            return f"this is no spot instance ({kind})"
        return None

    def wait(self, ended: threading.Event) -> Notice | None:
        """See worker.preemption.base.Source."""
        while not ended.wait(self._interval_seconds):
            try:
                response = self._get(INTERRUPTED)
                if response.status_code == 200:
                    return self._notice(response.json())
                self._look_for_risk()
            except (httpx.HTTPError, ValueError) as error:
                log.debug("no word of interruptions: %s", error)
        return None

    def acknowledge(self) -> None:
        """EC2 takes no acknowledgement."""

    def _notice(self, said: object) -> Notice:
        document = said if isinstance(said, dict) else {}
        action = str(document.get("action") or "terminate")
        seconds_left = 0.0  # hibernation begins at once, and names no time
        if document.get("time"):
            moment = datetime.fromisoformat(str(document["time"]))
            seconds_left = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - self._now()
        # Whatever this machine's clock says, there are never more than two minutes.
        seconds_left = min(max(seconds_left, 0.0), NOTICE_SECONDS)
        return Notice(f"preempted: EC2 will {action} this spot instance", seconds_left)

    def _look_for_risk(self) -> None:
        if not self._warned and self._get(AT_RISK).status_code == 200:
            self._warned = True
            log.warning("EC2 says that this spot instance is at a higher risk of interruption")

    def _get(self, path: str) -> httpx.Response:
        response = self._ask(path)
        if response.status_code == 401:
            self._token = ""
            response = self._ask(path)
        return response

    def _ask(self, path: str) -> httpx.Response:
        if not self._token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            response = self._http.put("/latest/api/token", headers=lifetime)
            response.raise_for_status()
            self._token = response.text
        return self._http.get(path, headers={"X-aws-ec2-metadata-token": self._token})
