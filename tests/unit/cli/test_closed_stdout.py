from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ("worker", "--version"),
        ("bundles", "--version"),
        ("manager", "--version"),
        ("manager", "top", "--output", "json"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_that_was_started_without_a_stdout_ends_as_it_should(
    words: Sequence[str], closed: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command],
        env={**os.environ, "WORKER_MANAGER_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
