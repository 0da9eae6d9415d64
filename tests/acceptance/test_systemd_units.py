"""The units in deploy/systemd, as systemd itself reads them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
MOST_EXPOSED = 20
"""Tenths, of what systemd-analyze calls exposure: it finds 96 for a unit that protects nothing."""

pytestmark = pytest.mark.engine("systemd")


def unit(path: Path, directory: Path) -> Path:
    """The unit with a program that this machine has."""
    text, number = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", path.read_text())
    assert number == 1
    copy = directory / path.name
    copy.write_text(text)
    return copy


def analyze(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],
        env=os.environ | {"XDG_RUNTIME_DIR": str(directory), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("whose", ["system", "user"])
def test_systemd_understands_every_line_of_a_unit(whose: str, tmp_path: Path) -> None:
    folder = UNITS / "user" if whose == "user" else UNITS
    copy = unit(folder / "worker-manager.service", tmp_path)
    done = analyze(tmp_path, f"--{whose}", "verify", "--man=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_of_a_machine_is_protected(tmp_path: Path) -> None:
    copy = unit(UNITS / "worker-manager.service", tmp_path)
    done = analyze(tmp_path, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
