"""`worker-manager slurm` where there is no cluster: what it says, and that it changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from managing import Managers
from serving import Server


@pytest.fixture
def managers(server: Server, tmp_path: Path) -> Managers:
    """None of Slurm's commands is on their PATH."""
    empty = tmp_path / "empty"
    empty.mkdir()
    server.env["PATH"] = str(empty)
    return Managers(server)


@pytest.mark.parametrize("name", ["slurm", "slurm-batch"])
def test_without_slurm_s_commands_nothing_is_launched(managers: Managers, name: str) -> None:
    done = managers.command(name, "--once")
    assert done.returncode == 2
    assert "there is no sbatch on PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(managers.jobs_directory.rglob("record"))


def test_a_dry_run_needs_no_cluster(managers: Managers) -> None:
    done = managers.command("slurm", "--dry-run", "--partition", "p", "--gpus", "2")
    assert done.returncode == 0, done.stderr
    words, _, script = done.stdout.partition("\n\n")
    assert words.startswith("sbatch --parsable ")
    assert "--partition=p" in words
    assert "--gres=gpu:2" in words
    assert script.startswith("#!/bin/sh")
    assert f"exec {sys.executable} -P -m worker" in script
    assert not managers.jobs_directory.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time", "soon"], "'soon' is not a time"),
        (["--user", "somebody-else"], "--user somebody-else"),
        (["--slurm-work-dir", __file__], "is a file"),
        (["--cpus", "0"], "--cpus"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    managers: Managers, words: list[str], said: str
) -> None:
    done = managers.command("slurm", "--once", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
