"""What users do in the directory of a running bundle: read, write, and talk to a port of it."""

from __future__ import annotations

import errno
import logging
import os
import posixpath
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundles.archive import check_path
from bundles.client import Client
from bundles.errors import BundlesError, UsageError
from worker.held import Held
from worker.loop import Loop, Outcome, Pool
from worker.messages import NetcatMessage, ReadMessage, WriteMessage
from worker.netcat import talk
from worker.reads import Answer, answer, refusal
from worker.runtimes.base import Address

log = logging.getLogger(__name__)

THREADS = 4


class Visits:
    """Answers are made and sent in threads of their own: nobody's download makes others wait."""

    def __init__(
        self, client: Client, loop: Loop, worker_id: str, address: Callable[[str], Address]
    ) -> None:
        """``address``: where the ports of a run are (worker.runtimes.base.Runtime.address)."""
        self._client = client
        self._address = address
        self._worker_id = worker_id
        self._pool = Pool(loop, "visits", THREADS)

    def write(self, held: Held, message: WriteMessage) -> None:
        """Write a file; what cannot be written is logged, since nobody waits for an answer."""
        try:
            write_file(held.directory, held.run.bundle, message.subpath, message.text)
        except (OSError, UsageError) as error:
            log.warning("nothing is written to %s of %s: %s", message.subpath, message.uuid, error)

    def answer(self, held: Held | None, message: ReadMessage | NetcatMessage) -> None:
        """Answer, also when there is no such run (any more)."""
        directory = held.directory if held is not None else None
        key = held.run.key if held is not None else ""

        def job() -> None:
            try:
                found = self._find(key, directory, message)
            except Exception:
                log.exception("a question about %s cannot be answered", message.uuid)
                found = refusal(500, "the worker failed: its log says more")
            if found.document is not None:
                self._client.reply(self._worker_id, message.socket_id, found.document)
            else:
                self._client.reply_data(self._worker_id, message.socket_id, {}, found.content)

        def done(outcome: Outcome[None]) -> None:
            if isinstance(outcome.error, BundlesError | OSError):
                log.info("an answer was not taken: %s", outcome.error)
            elif outcome.error is not None:
                # It is no run's fault, and nothing that the worker does depends on it.
                log.error("an answer was not given", exc_info=outcome.error)

        self._pool.submit(job, done)

    def _find(
        self, key: str, directory: Path | None, message: ReadMessage | NetcatMessage
    ) -> Answer:
        if directory is None:
            return refusal(500, "Bundle no longer running")
        if isinstance(message, ReadMessage):
            return answer(directory, message.uuid, message.path, message.arguments)
        try:
            return Answer(content=talk(self._address(key), message.port, message.text))
        except (OSError, OverflowError) as error:
            return refusal(500, f"nothing listens on port {message.port}: {error}")


def write_file(directory: Path, bundle: Mapping[str, Any], subpath: str, text: str) -> None:
    """Write a file of a running bundle, but none of a dependency. Raises UsageError, OSError."""
    path = posixpath.normpath(check_path(subpath))
    for dependency in bundle.get("dependencies") or ():
        child = posixpath.normpath(dependency["child_path"])
        if path == child or path.startswith(child + "/"):
            raise UsageError("it is a dependency")
    if path == ".":
        raise UsageError("it leads out of the bundle")
    descriptor = _create(directory, path)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _create(directory: Path, path: str) -> int:
    """A descriptor of the file, empty. Through no link: the run may be at work on the way there,
    and put one where a directory was."""
    *parents, name = path.split("/")
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | flags)
    try:
        for parent in parents:
            with suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=place)
            inside = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=place)
            os.close(place)
            place = inside
        flags |= os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        return os.open(name, flags, 0o644, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UsageError("it leads out of the bundle") from error
        raise
    finally:
        os.close(place)
