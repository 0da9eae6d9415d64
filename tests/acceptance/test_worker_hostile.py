"""Bundles as processes that leave what no bundle should: the worker lives on, nothing is left."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from leftovers import nothing_left
from scripted_server import ScriptedServer
from worker_process import WorkerProcess

from bundles.exits import WorkerExit

DEEP = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"


def finish(script: ScriptedServer, worker: WorkerProcess, uuid: str) -> dict[str, Any]:
    """The run's last report; another run goes well after it, and nothing is left of either."""
    report = script.until_over(uuid)
    after = script.run("echo fine")
    assert script.until_over(after)["exitcode"] == 0
    assert script.files(after)["stdout"] == b"fine\n"
    assert worker.stop() == WorkerExit.FINISHED
    nothing_left([worker])
    return report


def test_directories_too_deep_for_any_path_fail_their_run_only(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    report = finish(script, worker, script.run(f'exec {sys.executable} -c "{DEEP}"'))
    assert "more than 200 directories in each other" in report["failure_message"]


def test_a_run_may_delete_its_own_directory(script: ScriptedServer, worker: WorkerProcess) -> None:
    worker.start()
    uuid = script.run('rm -rf "$PWD" "$TMPDIR"; exit 3')
    assert finish(script, worker, uuid)["exitcode"] == 3
    assert script.files(uuid) == {}


def test_a_run_may_put_a_link_where_its_directory_was(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of another")
    worker.start()
    uuid = script.run(f'rm -rf "$PWD"; ln -s {outside} "$PWD"')
    finish(script, worker, uuid)
    assert script.files(uuid) == {}
    assert (outside / "secret").read_text() == "of another"


def test_directories_without_any_right_come_back_and_go(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b/c a/b a; chmod 0 .")
    assert finish(script, worker, uuid)["exitcode"] == 0
    assert script.files(uuid)["a/b/c"] == b"x\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_other_owners_come_back_and_go(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("mkdir d; echo x > d/f; chmod 600 d/f; chmod 700 d; chown -R 4711:4711 d .")
    assert finish(script, worker, uuid)["exitcode"] == 0
    assert script.files(uuid)["d/f"] == b"x\n"
