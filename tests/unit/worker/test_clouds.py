from __future__ import annotations

import threading
from pathlib import Path

import pytest

from worker.preemption import watcher
from worker.preemption.azure import find_event
from worker.preemption.base import Absent, Notice
from worker.preemption.watcher import AZURE_TAG, find_cloud


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"sys_vendor": "Amazon EC2\n"}, "aws"),
        ({"sys_vendor": "Xen\n", "bios_version": "4.11.amazon\n"}, "aws"),
        ({"sys_vendor": "Google\n"}, "gcp"),
        ({"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": f"{AZURE_TAG}\n"}, "azure"),
        ({"sys_vendor": "Microsoft Corporation\n"}, None),
        ({"sys_vendor": "QEMU\n"}, None),
        ({}, None),
    ],
)
def test_the_firmware_tells_the_cloud(
    tmp_path: Path, files: dict[str, str], cloud: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert find_cloud({}, tmp_path) == cloud


def test_addresses_in_the_environment_tell_it_too(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert find_cloud({"GCE_METADATA_HOST": "127.0.0.1:80"}, tmp_path) == "gcp"
    assert find_cloud({"AWS_EC2_METADATA_DISABLED": "true"}, tmp_path) is None


def test_an_azure_event_counts_when_it_ends_this_machine() -> None:
    def event(kind: str, *machines: str) -> dict[str, object]:
        return {"EventId": kind, "EventType": kind, "Resources": list(machines)}

    others = [event("Preempt", "pool_10"), event("Freeze", "pool_1"), event("Reboot", "pool_1")]
    assert find_event(others, "pool_1") is None
    mine = event("Terminate", "pool_0", "_POOL_1")
    assert find_event([*others, mine], "pool_1") is mine


class Service:
    """A source that is away for the first ``absences`` checks."""

    def __init__(self, absences: int) -> None:
        self.absences = absences
        self.acknowledged = False

    def check(self) -> str | None:
        self.absences -= 1
        if self.absences >= 0:
            raise Absent("nobody answers")
        return None

    def wait(self, ended: threading.Event) -> Notice | None:
        return Notice("preempted", 30.0)

    def acknowledge(self) -> None:
        self.acknowledged = True


@pytest.mark.parametrize(("absences", "count"), [(0, 1), (2, 1), (3, 0)])
def test_a_service_may_be_late_but_not_forever(
    monkeypatch: pytest.MonkeyPatch, absences: int, count: int
) -> None:
    monkeypatch.setattr(watcher, "CHECK_AGAIN_SECONDS", 0.0)
    told: list[Notice] = []
    watcher.Watcher(Service(absences), told.append, is_certain=True).watch()
    assert told == [Notice("preempted", 30.0)] * count
