from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.runtimes.base import CannotStart
from worker.shared import NotThere, find, leave
from worker.stages import Uploaded

UUID = f"0x{1:032x}"


def bundle(directory: Path, location: Path | None, path: str = "") -> dict[str, Any]:
    dependency = {"child_path": "d", "parent_uuid": UUID, "parent_path": path}
    dependency["location"] = str(location) if location else None  # type: ignore[assignment]
    return {"location": str(directory), "dependencies": [dependency]}


def test_what_is_not_mounted_is_said_with_its_place(tmp_path: Path) -> None:
    away = tmp_path / "away"
    with pytest.raises(NotThere, match=f"{away} of this bundle is not there: is the server's stor"):
        find(bundle(away, tmp_path))
    with pytest.raises(NotThere, match=f"{UUID} is not at {away}: is the server's storage mounted"):
        find(bundle(tmp_path, away))


def test_a_path_in_a_bundle_stays_in_it(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "x").touch()
    (parent / "out").symlink_to(tmp_path)
    assert find(bundle(tmp_path, parent, "x")) == {(UUID, "x"): parent / "x"}
    assert find(bundle(tmp_path, parent)) == {(UUID, ""): parent}
    with pytest.raises(CannotStart, match="nothing at 'y'"):
        find(bundle(tmp_path, parent, "y"))
    for path in ("out", "../parent/out", ".."):
        with pytest.raises(CannotStart, match="leads out"):
            find(bundle(tmp_path, parent, path))


def test_what_has_no_location_is_not_found_and_may_be_downloaded(tmp_path: Path) -> None:
    assert find(bundle(tmp_path, None)) == {}


def test_excluded_files_do_not_stay(tmp_path: Path) -> None:
    for name in ("a.tmp", "deep/b.tmp", "deep/kept", "cache/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert leave(tmp_path, ["*.tmp", "cache"]) == Uploaded()
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert kept == ["deep", "deep/kept", "link"]
