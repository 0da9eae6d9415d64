from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from codalab_server import CodalabServer
from codalab_user import CodalabUser
from containers import Containers
from docker_engine import DockerEngine, Registry
from podman_engine import PodmanEngine
from postgresql_engine import PostgreSQL
from serving import Server, serving
from slurm_cluster import SlurmCluster
from worker_image import WorkerImage

USERS = tuple(f"user-{number}" for number in range(1, 31))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """A Docker engine of our own, with one image."""
    engine = DockerEngine()
    try:
        engine.start()
        engine.import_base()
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def worker_image(
    docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> WorkerImage:
    """The image of deploy/Dockerfile, in the engine that all tests share."""
    image = WorkerImage(docker_engine)
    image.build(tmp_path_factory.mktemp("worker-image"))
    return image


@pytest.fixture(scope="session")
def manager_image(worker_image: WorkerImage) -> str:
    """The manager's image of deploy/Dockerfile, with all SDKs; its reference."""
    reference = "localhost/worker-manager:1"
    worker_image.build_target("manager", reference)
    return reference


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[PodmanEngine]:
    """podman's service of our own, with one image."""
    engine = PodmanEngine()
    try:
        engine.start()
        engine.import_base()
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def codalab_server(codalab_python: Path) -> Iterator[CodalabServer]:
    """One CodaLab server for all tests: each has a user of its own."""
    server = CodalabServer(codalab_python, USERS)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def unused_users() -> list[str]:
    return list(USERS)


@pytest.fixture
def user(codalab_server: CodalabServer, unused_users: list[str], tmp_path: Path) -> CodalabUser:
    """Somebody who has no bundle and no worker yet."""
    return CodalabUser(codalab_server, unused_users.pop(), tmp_path)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[PostgreSQL]:
    """A database server of the test's own."""
    engine = PostgreSQL(tmp_path)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    return postgresql.url


@pytest.fixture
def own_engine() -> Iterator[DockerEngine]:
    """A Docker engine of one test, to be killed."""
    engine = DockerEngine()
    try:
        engine.start()
        engine.import_base()
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that runs."""
    with serving(Server(tmp_path)) as running:
        yield running


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> DockerEngine:
    """The engine that all tests share: docker, or the one of the fixture that is asked for."""
    found: DockerEngine = request.getfixturevalue(getattr(request, "param", "docker_engine"))
    return found


@pytest.fixture
def containers(tmp_path: Path, server: Server, engine: DockerEngine) -> Iterator[Containers]:
    """Bundles of our server in containers of the engine."""
    stand = Containers(tmp_path, server, engine)
    try:
        yield stand
    finally:
        stand.close()
        names = engine.command("ps", "--all", "--quiet").split()
        if names:
            engine.command("rm", "--force", *names)
        engine.command("network", "prune", "--force")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A cluster of twenty nodes with accounting; tests end their jobs."""
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def stand(tmp_path: Path, server: Server, own_engine: DockerEngine) -> Iterator[Containers]:
    """Bundles of our server in containers of an engine of the test's own."""
    stand = Containers(tmp_path, server, own_engine)
    try:
        yield stand
    finally:
        stand.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry of the test's own."""
    made = Registry()
    try:
        made.start()
        yield made
    finally:
        made.stop()
