"""Containers of a worker that shares the server's file system."""

from __future__ import annotations

import pytest
from containers import Containers

from bundles.exits import WorkerExit

pytestmark = pytest.mark.engine("docker")


def test_a_container_writes_into_the_store_and_its_dependencies_are_read_only(
    containers: Containers,
) -> None:
    path = containers.directory / "data"
    path.write_text("of the parent\n")
    data = containers.server.output("upload", str(path)).strip()
    worker = containers.start("--shared-file-system")
    command = "cat in && ! (echo no > in) 2> /dev/null && echo kept > out"
    run = containers.run(command, dependencies=[("in", data)])
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert containers.read(run) == "of the parent\n"
    assert containers.read(run, "out") == "kept\n"
    assert containers.read(data, "") == "of the parent\n"
    # A path in the results is mounted where it lies, too.
    after = containers.end(containers.run("cat d/out", dependencies=[("d", run)]))
    assert containers.read(after.uuid) == "kept\n"
    assert worker.stop() == WorkerExit.FINISHED
    assert worker.left_files() == []
