"""deploy/compose.yaml on a real engine: a server with PostgreSQL, a manager, workers beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from composed import ROOT, Composed, import_database
from containers import eventually
from docker_engine import IMAGE, DockerEngine
from worker_image import WorkerImage

from bundles.model import new_uuid

pytestmark = [
    pytest.mark.engine("docker"),
    pytest.mark.engine("docker-compose"),
    pytest.mark.engine("postgresql"),
    pytest.mark.timeout(900),  # the images are built first
]

BUNDLES = 20
PROJECT = ("--filter", "label=com.docker.compose.project=worker-manager")
POOL = ("--filter", "label=worker-manager.pool=here", "--quiet")


@pytest.fixture
def composed(
    docker_engine: DockerEngine,
    docker_compose: list[str],
    worker_image: WorkerImage,
    manager_image: str,
) -> Iterator[Composed]:
    import_database(docker_engine)
    made = Composed(
        docker_engine,
        docker_compose,
        manager_image=manager_image,
        worker_image=worker_image.reference,
    )
    try:
        yield made
    finally:
        made.run("stop", "manager")
        if left := docker_engine.command("ps", "--all", *POOL).split():
            docker_engine.command("rm", "--force", *left)
        made.down()
    assert docker_engine.command("ps", "--all", "--quiet", *PROJECT) == ""
    assert docker_engine.command("volume", "ls", "--quiet", *PROJECT) == ""


def test_twenty_bundles_drain_though_it_is_taken_down_in_the_middle(
    composed: Composed, docker_engine: DockerEngine
) -> None:
    composed.up()
    token = the_token(composed)
    with composed.client(token) as client:
        uuids = [bundle.uuid for bundle in client.create([run(n) for n in range(BUNDLES)])]
        eventually(lambda: client.bundle(uuids[0]).state == "running", "the first one runs")
    # Its status depends on the program: workers keep the network, and go on.
    composed.run("down")
    assert docker_engine.command("ps", "--all", "--quiet", *PROJECT) == ""
    assert docker_engine.command("ps", *POOL).split()

    composed.up()
    assert the_token(composed) == token
    composed.bundles("wait", *uuids)
    with composed.client(token) as client:
        bundles = client.search([f"uuid={','.join(uuids)}"])
        assert [bundle.state for bundle in bundles] == ["ready"] * BUNDLES
    for number in (0, BUNDLES - 1):
        assert composed.bundles("cat", f"{uuids[number]}/stdout") == f"{number}\n"

    manager = composed.container("manager")
    health = ("inspect", "--format", "{{.State.Health.Status}}", manager)
    eventually(lambda: docker_engine.command(*health).strip() == "healthy", "it is healthy")
    containers = docker_engine.command("ps", "--all", "--quiet").split()
    assert token not in docker_engine.command("inspect", *containers)
    assert token not in composed.logs()
    eventually(lambda: not docker_engine.command("ps", *POOL).split(), "the workers leave")


def the_token(composed: Composed) -> str:
    """The administrator's."""
    return composed.compose("exec", "-T", "server", "cat", "/var/lib/worker-manager/token").strip()


def run(number: int) -> dict[str, Any]:
    return {
        "uuid": new_uuid(),
        "bundle_type": "run",
        # The first two are not yet through when it is taken down.
        "command": f"sleep {10 if number < 2 else 0}; echo {number}",
        "dependencies": [],
        "metadata": {
            "name": "run",
            "request_memory": "64m",
            "request_docker_image": IMAGE,
        },
    }


def test_without_the_group_of_the_socket_it_says_what_is_missing(
    docker_compose: list[str],
) -> None:
    done = subprocess.run(
        [*docker_compose, "--file", str(ROOT / "deploy" / "compose.yaml"), "config", "--quiet"],
        env={**os.environ, "ENGINE_GROUP": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "docs/install/docker.md" in done.stderr
