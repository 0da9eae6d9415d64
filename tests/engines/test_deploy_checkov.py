"""deploy/Dockerfile and deploy/kubernetes as checkov sees them. deploy/.checkov.yaml says what is
meant to be as it is, and why."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from worker_image import ROOT

LOWEST_PASSED = {"dockerfile": 50, "kubernetes": 100}
"""It has looked at them."""


@pytest.mark.engine("checkov")
def test_checkov_finds_nothing_that_is_not_explained(checkov: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(checkov), "--directory", str(ROOT / "deploy"), "--skip-download", "--output", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found = {part["check_type"]: part for part in json.loads(done.stdout)}
    assert found.keys() == LOWEST_PASSED.keys()
    for kind, part in found.items():
        assert part["results"]["failed_checks"] == [], kind
        assert part["summary"]["parsing_errors"] == 0
        assert part["summary"]["passed"] > LOWEST_PASSED[kind]
