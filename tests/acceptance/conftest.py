from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_s3 import FakeS3, fake_s3
from managing import Managers
from scripted_server import ScriptedServer
from serving import Server, serving
from worker_process import Gate, WorkerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that runs, and must end by itself when it is asked to."""
    with serving(Server(tmp_path)) as running:
        yield running


@pytest.fixture(scope="session")
def s3() -> Iterator[FakeS3]:
    """Which nobody empties between tests: each has a prefix of its own."""
    with fake_s3() as running:
        yield running


@pytest.fixture
def managers(server: Server) -> Iterator[Managers]:
    """The managers of that server's home; none is left at the end, nor any worker of theirs."""
    made = Managers(server)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    """A server that says to a worker what a test wants."""
    with ScriptedServer() as script:
        yield script


@pytest.fixture
def worker(tmp_path: Path, script: ScriptedServer) -> Iterator[WorkerProcess]:
    """A worker of that server, not yet started."""
    worker = WorkerProcess(tmp_path, script.url)
    yield worker
    worker.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")
