from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["worker", "bundles", "manager"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_that_was_started_without_a_stdout_ends_as_it_should(
    module: str, closed: str
) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command],
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
