"""deploy/kubernetes as its pods run: server with PostgreSQL, and a manager of AWS Batch (moto)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from composed import DATABASE, import_database
from containers import eventually
from docker_engine import DockerEngine
from forwarder import Forwarder
from moto_server import REGION, MotoServer
from pods import MANIFESTS, Pod, manifest

pytestmark = [
    pytest.mark.engine("docker"),
    pytest.mark.engine("postgresql"),
    pytest.mark.timeout(900),  # the images are built first
]

NETWORK = "cluster"
PASSWORD = "of-the-database"
AWS_KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


@pytest.fixture
def network(docker_engine: DockerEngine) -> Iterator[str]:
    """The address of this machine in it."""
    docker_engine.command("network", "create", NETWORK)
    try:
        form = "{{range .IPAM.Config}}{{.Gateway}}{{end}}"
        yield docker_engine.command("network", "inspect", "--format", form, NETWORK).strip()
    finally:
        docker_engine.command("network", "rm", NETWORK)


@pytest.fixture
def database(docker_engine: DockerEngine, network: str) -> Iterator[str]:
    """By the name that the patch has, with a password."""
    import_database(docker_engine)
    name = "database.example.org"
    docker_engine.command(
        *("run", "--detach", "--name", name, "--network", NETWORK),
        *("--env", "POSTGRES_USER=bundles", "--env", "POSTGRES_DB=bundles"),
        *("--env", f"POSTGRES_PASSWORD={PASSWORD}", DATABASE),
    )
    try:
        yield name
    finally:
        docker_engine.command("rm", "--force", name)


@pytest.fixture
def aws(tmp_path: Path, docker_engine: DockerEngine, network: str) -> Iterator[str]:
    """Where AWS is, for containers; it has the queue of pools.toml."""
    moto = MotoServer(tmp_path, docker_engine)
    try:
        moto.start()
        moto.add_fargate_queue("spot")
        moto.add_role("bundle-workers")
        port = int(moto.url.rpartition(":")[2])
        listener = socket.create_server((network, 0))
        forwarder = Forwarder(listener, lambda: socket.create_connection(("127.0.0.1", port)))
        try:
            yield f"http://{network}:{listener.getsockname()[1]}"
        finally:
            forwarder.close()
    finally:
        moto.stop()


@pytest.fixture
def server(
    docker_engine: DockerEngine, manager_image: str, database: str, tmp_path: Path
) -> Iterator[Pod]:
    served = manifest("server.yaml", "StatefulSet")
    pod = Pod(docker_engine, tmp_path, served, patch=manifest("postgresql.yaml", "StatefulSet"))
    assert database in " ".join(pod.arguments)
    try:
        pod.start(manager_image, NETWORK, {"PGPASSWORD": PASSWORD})
        yield pod
    finally:
        pod.close()


def test_the_pods_of_the_manifests_serve_and_keep_the_pools_of_the_config_map(
    docker_engine: DockerEngine, manager_image: str, server: Pod, aws: str, tmp_path: Path
) -> None:
    eventually(lambda: server.answers("readinessProbe"), "the server is ready")
    token = server.execute("cat", "/var/lib/worker-manager/token")
    pools = pools_file()
    manager = Pod(
        docker_engine,
        tmp_path,
        manifest("manager.yaml", "StatefulSet"),
        files={"pools": {"pools.toml": pools}, "credentials": {"token": token}},
    )
    try:
        manager.start(manager_image, NETWORK, {"AWS_ENDPOINT_URL": aws, **AWS_KEYS})
        eventually(lambda: manager.answers("startupProbe"), "the manager is alive")
        eventually(lambda: manager.answers("readinessProbe"), "the manager is ready")
        assert "keeping 0 to 20 workers in the pool spot" in manager.log()

        manager.put("pools", {"pools.toml": pools.replace("max-workers = 20", "max-workers = 5")})
        docker_engine.command("kill", "--signal", "HUP", manager.name)  # not at its next look: now
        eventually(lambda: "has changed: keeping spot" in manager.log(), "the change is taken up")
        assert token.strip() not in manager.log()
        assert manager.stop() == 0, manager.log()
    finally:
        manager.close()
    assert server.answers("livenessProbe")
    assert server.stop() == 0, server.log()


def pools_file() -> str:
    """That of the config map, with the addresses that are here."""
    text = (MANIFESTS / "pools.toml").read_text()
    here = {"https://bundles.example.org": "http://server:2900", "eu-west-1": REGION}
    for published, ours in here.items():
        assert published in text
        text = text.replace(published, ours)
    return text
