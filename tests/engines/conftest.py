from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from codalab_server import CodalabServer
from codalab_user import CodalabUser
from docker_engine import DockerEngine
from postgresql_engine import PostgreSQL

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
