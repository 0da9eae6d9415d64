"""Finds out which cloud this is, once, and waits for its notice in a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.preemption import aws, azure, gcp
from worker.preemption.base import Absent, Notice, Source

log = logging.getLogger(__name__)

DMI = Path("/sys/class/dmi/id")
CHECKS = 3
CHECK_AGAIN_SECONDS = 5.0
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
"""The chassis tag of every Azure VM; `Microsoft Corporation` alone is any Hyper-V."""


def find_cloud(environ: Mapping[str, str], dmi: Path = DMI) -> str | None:
    """aws, gcp or azure; None for none of them. Reads a few files and asks nobody."""
    if environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        return "aws"
    if environ.get("GCE_METADATA_HOST"):
        return "gcp"
    if environ.get(azure.ADDRESS_VARIABLE):
        return "azure"
    vendor = _read(dmi / "sys_vendor") + _read(dmi / "bios_version")
    if "amazon" in vendor.lower():
        return "aws" if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true" else None
    if "Google" in vendor:
        return "gcp"
    if _read(dmi / "chassis_asset_tag").strip() == AZURE_TAG:
        return "azure"
    return None


def make_source(cloud: str, environ: Mapping[str, str], interval_seconds: float) -> Source:
    """The notices of a cloud: aws, gcp or azure."""
    if cloud == "aws":
        return aws.Aws(aws.find_address(environ), interval_seconds=interval_seconds)
    if cloud == "gcp":
        return gcp.Gcp(gcp.find_address(environ))
    return azure.Azure(azure.find_address(environ), interval_seconds=interval_seconds)


def find_watcher(
    choice: str, interval_seconds: float, told: Callable[[Notice], None]
) -> Watcher | None:
    """One that was started; None where there is nothing to wait for. ``choice``: auto, none, or a
    cloud."""
    cloud = find_cloud(os.environ) if choice == "auto" else choice
    if cloud is None or cloud == "none":
        return None
    source = make_source(cloud, os.environ, interval_seconds)
    watcher = Watcher(source, told, is_certain=choice != "auto")
    watcher.start()
    return watcher


class Watcher:
    """Tells of the first notice, from its own thread; ``close`` ends that thread's interest."""

    def __init__(self, source: Source, told: Callable[[Notice], None], *, is_certain: bool) -> None:
        """``is_certain``: someone said that this is the cloud, so its silence is worth a
        warning."""
        self._source = source
        self._told = told
        self._is_certain = is_certain
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self.watch, name="preemption", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def acknowledge(self) -> None:
        """See worker.preemption.base.Source."""
        self._source.acknowledge()

    def watch(self) -> None:
        """What the thread does."""
        try:
            reason = self._check()
        except Absent as error:
            level = logging.WARNING if self._is_certain else logging.INFO
            log.log(level, "no notice of preemption will come: %s", error)
            return
        if reason is not None:
            log.info("no notice of preemption will come: %s", reason)
            return
        log.info("waiting for notices of preemption")
        notice = self._source.wait(self._ended)
        if notice is not None and not self._ended.is_set():
            self._told(notice)

    def _check(self) -> str | None:
        """A machine that has just booted may have no way to the service yet."""
        for _ in range(CHECKS - 1):
            try:
                return self._source.check()
            except Absent:
                self._ended.wait(CHECK_AGAIN_SECONDS)
        return self._source.check()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
