"""`netcat` messages: a few bytes to a port on which a run listens, and what it answers.

A run that was given no network still has one of its own, in which nobody else is. It is entered
from here, which the kernel grants to root alone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator

from worker.runtimes.base import Address

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""An answer ends when the run closes the connection, or says nothing for so long."""
CHUNK_BYTES = 64 * 1024

_CLONE_NEWNET = 0x40000000


def talk(address: Address, port: int, message: str) -> Iterator[bytes]:
    """Send ``message`` to a port at an address; yields what comes back. Raises OSError when
    nobody listens."""
    if address.pid is None:
        connection = socket.create_connection((address.host, port), timeout=CONNECT_SECONDS)
    else:
        connection = _connect_inside(address.host, port, address.pid)
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


def _connect_inside(host: str, port: int, pid: int) -> socket.socket:
    """A connection within the network of a process."""
    made: list[socket.socket] = []
    failed: list[OSError | OverflowError] = []

    def connect() -> None:
        # Only this thread moves there, and it ends here; the socket stays.
        try:
            with open(f"/proc/{pid}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET) != 0:
                    reason = os.strerror(ctypes.get_errno())
                    raise OSError(f"it has no network, and this worker cannot enter it: {reason}")
            made.append(socket.create_connection((host, port), timeout=CONNECT_SECONDS))
        except (OSError, OverflowError) as error:  # no such port
            failed.append(error)

    thread = threading.Thread(target=connect, name="netcat")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
