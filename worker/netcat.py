"""`netcat` messages: a few bytes to a port on which a run listens, and what it answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""An answer ends when the run closes the connection, or says nothing for so long."""
CHUNK_BYTES = 64 * 1024


def talk(address: str, port: int, message: str) -> Iterator[bytes]:
    """Send ``message`` to a port at an address; yields what comes back. Raises OSError when
    nobody listens."""
    connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
    connection.settimeout(SILENCE_SECONDS)

    def chunks() -> Iterator[bytes]:
        with connection:
            while True:
                try:
                    chunk = connection.recv(CHUNK_BYTES)
                except TimeoutError:
                    return
                if not chunk:
                    return
                yield chunk

    try:
        connection.sendall(message.encode())
    except OSError:
        connection.close()
        raise
    return chunks()
