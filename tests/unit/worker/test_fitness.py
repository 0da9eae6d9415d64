from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.fitness import clock_difference, directory_fault


def test_a_disk_without_room_is_no_place_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert directory_fault(tmp_path) is None
    real = os.statvfs(tmp_path)

    def changed(**fields: int) -> os.statvfs_result:
        names = [name for name in dir(real) if name.startswith("f_") and name != "f_fsid"]
        values = {name: getattr(real, name) for name in names} | fields
        order = (
            "f_bsize f_frsize f_blocks f_bfree f_bavail f_files f_ffree f_favail f_flag f_namemax"
        )
        return os.statvfs_result([values[name] for name in order.split()])

    monkeypatch.setattr(os, "statvfs", lambda path: changed(f_bavail=1, f_frsize=1024**2))
    assert directory_fault(tmp_path) == "1m are free and 4m are needed"
    monkeypatch.setattr(os, "statvfs", lambda path: changed(f_files=10, f_favail=0))
    assert directory_fault(tmp_path) == "no more files can be made there"


def test_a_clock_that_differs_is_told_with_its_direction() -> None:
    assert clock_difference(29.0) is clock_difference(-29.0) is None
    assert "clock is 100 s behind the server's" in str(clock_difference(100.0))
    assert "clock is 100 s ahead of the server's" in str(clock_difference(-100.0))
