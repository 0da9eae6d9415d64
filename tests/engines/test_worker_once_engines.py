"""`bundle-worker --once` in a container, and with a bundle of a real CodaLab server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from codalab_user import CodalabUser
from containers import Containers

ONCE_SECONDS = 100.0


def once(
    uuid: str, env: Mapping[str, str], directory: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", "--once", uuid, "--work-dir", "of-once", *options]
    return subprocess.run(
        command,
        env=dict(env),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=ONCE_SECONDS,
        check=False,
    )


@pytest.mark.engine("docker")
def test_a_copy_runs_in_a_container_of_which_nothing_is_left(
    containers: Containers, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("of the parent\n")
    data = containers.server.output("upload", str(tmp_path / "data")).strip()
    uuid = containers.run("pwd; cat in; exit 4", dependencies=[("in", data)])
    worker = containers.worker()
    options = ("--server", worker.url, "--runtime", "docker")
    done = once(uuid, worker.env, tmp_path, *options)
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"/{uuid}\nof the parent\n"
    assert "Exit code 4" in done.stderr
    assert containers.client.bundle(uuid).state == "staged"
    assert containers.left() == []
    assert list((tmp_path / "of-once" / "workers").iterdir()) == []


@pytest.mark.engine("codalab")
def test_a_bundle_of_a_codalab_server_is_tried_and_stays_as_it_is(
    user: CodalabUser, tmp_path: Path
) -> None:
    (user.directory / "a.txt").write_text("hello\n")
    data = user.command("bundles", "upload", str(user.directory / "a.txt")).stdout.strip()
    uuid = user.run("cat in; echo more > file", [("in", data, "")])
    user.wait(uuid, "staged")
    done = once(uuid, user.env, tmp_path, "--server", user.url, "--runtime", "process")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n"
    with user.client() as client:
        assert client.bundle(uuid).state == "staged"
