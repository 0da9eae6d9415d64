from __future__ import annotations

import subprocess
import sys

import pytest

from bundles.exits import WorkerExit


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tag", "a b"], "letters, digits and hyphens"),
        (["--max-work-dir-size", "2x"], "'2x' is not a size"),
        (["--idle-seconds", "-1"], "-1"),
        (["--id", ""], "--id"),
        (["--server", "ftp://host"], "http://"),
        (["--no-such-option"], "--no-such-option"),
        (["--password-file", "/nowhere"], "/nowhere"),
    ],
)
def test_an_option_that_makes_no_sense_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == WorkerExit.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("bundle-worker: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
