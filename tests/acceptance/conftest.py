from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import Managers
from scripted_server import ScriptedServer
from serving import Server
from worker_process import Gate, WorkerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that runs, and must end by itself when it is asked to."""
    running = Server(tmp_path)
    running.start()
    try:
        yield running
    finally:
        if running.running:
            assert running.stop() == 0


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
