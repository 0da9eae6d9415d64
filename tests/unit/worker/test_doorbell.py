from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import pytest
from websockets.sync.server import ServerConnection, serve

from worker.doorbell import Doorbell, find_address

PATIENCE_SECONDS = 20.0


class Bell:
    """The part of CodaLab's `cl-ws-server` that workers connect to."""

    def __init__(self) -> None:
        self.connections: queue.Queue[ServerConnection] = queue.Queue()
        self._ended = threading.Event()
        self._server = serve(self._hold, "127.0.0.1", 0)
        self.address = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _hold(self, connection: ServerConnection) -> None:
        self.connections.put(connection)
        self._ended.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()


@pytest.fixture
def bell() -> Iterator[Bell]:
    with contextlib.closing(Bell()) as bell:
        yield bell


def test_whatever_comes_is_a_ring_and_a_lost_connection_is_made_again(bell: Bell) -> None:
    rings: queue.Queue[str] = queue.Queue()
    with contextlib.closing(Doorbell(bell.address, "host(1)", lambda: rings.put("ring"))) as door:
        door.start()
        connection = bell.connections.get(timeout=PATIENCE_SECONDS)
        assert connection.request is not None
        assert connection.request.path == "/worker/host%281%29"
        assert connection.recv(timeout=PATIENCE_SECONDS) == "a"
        connection.send("host(1)")
        assert rings.get(timeout=PATIENCE_SECONDS) == "ring"
        connection.close()
        again = bell.connections.get(timeout=PATIENCE_SECONDS)
        again.send("host(1)")
        assert rings.get(timeout=PATIENCE_SECONDS) == "ring"
        door.close()
        again.close()


def test_it_is_beside_the_server_unless_said_otherwise() -> None:
    assert find_address("https://worksheets.codalab.org", None) == "wss://worksheets.codalab.org/ws"
    assert find_address("http://h:2900", None) == "ws://h:2900/ws"
    assert find_address("http://h:2900", "ws://h:2901/") == "ws://h:2901"
