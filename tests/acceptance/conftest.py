from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server


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
