"""Results on their way to the server: tried until it has them, or says that it will not take them.

They are packed while they are sent, so that memory and disk do not grow with them. What was cut off
begins anew: the server keeps nothing of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundles.archive import pack
from bundles.client import Client
from bundles.errors import (
    BundlesError,
    Conflict,
    DiskFull,
    NotAuthenticated,
    ServerFault,
    Unreachable,
)
from bundles.sizes import format_size
from worker.backoff import Backoff
from worker.stages import Event, NotUploaded, Revoked, Uploaded

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 6 * 3600.0
"""CodaLab's own: 720 tries, 30 s apart."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 20.0
WHOLE_BYTES = 1024**2
"""Results up to this size are sent in one piece, which is cheaper for both sides."""


@dataclass
class Sending:
    """How far an upload is, for people. Written by its thread, read by others."""

    sent_bytes: int = 0
    trouble: str = ""

    def __str__(self) -> str:
        if self.trouble:
            return f"Uploading results (waiting for the server: {self.trouble})"
        return f"Uploading results ({format_size(self.sent_bytes)})"


class Cancelled(Exception):
    """The run was killed, revoked or given back meanwhile."""


def upload(
    client: Client,
    uuid: str,
    claim: int | None,
    directory: Path,
    *,
    exclude: Sequence[str],
    store: str,
    cancelled: threading.Event,
    sending: Sending,
    clock: Callable[[], float] = time.monotonic,
) -> Event:
    """Send the contents of ``directory``; returns what to tell the run. Raises Cancelled."""
    backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
    deadline = clock() + PATIENCE_SECONDS
    while True:
        try:
            client.upload(
                uuid,
                _content(directory, exclude, cancelled, sending),
                filename="bundle.tar.gz",
                claim=claim,
                store=store,
            )
            return Uploaded()
        except Conflict:
            return Revoked()
        except DiskFull as error:
            # To send all of it again, to whom it has just filled the disk of, helps nobody.
            return NotUploaded(f"The results cannot be uploaded: {error}")
        except (Unreachable, ServerFault, NotAuthenticated) as error:
            if clock() > deadline:
                return NotUploaded(f"The results cannot be uploaded: {error}")
            sending.trouble = str(error)
            log.warning("the results of %s wait for the server: %s", uuid, error)
        except (BundlesError, OSError) as error:
            return NotUploaded(f"The results cannot be uploaded: {error}")
        if cancelled.wait(backoff.next_seconds()):
            raise Cancelled


def _content(
    directory: Path, exclude: Sequence[str], cancelled: threading.Event, sending: Sending
) -> bytes | Iterator[bytes]:
    sending.sent_bytes = 0
    chunks = _until(pack(directory, exclude=exclude), cancelled, sending)
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) > WHOLE_BYTES:
            return itertools.chain([first], chunks)
    return first


def _until(
    chunks: Iterator[bytes], cancelled: threading.Event, sending: Sending
) -> Iterator[bytes]:
    for chunk in chunks:
        if cancelled.is_set():
            raise Cancelled
        yield chunk
        sending.sent_bytes += len(chunk)
        sending.trouble = ""
