"""Images of apptainer (singularity): pulled into files under the work directory, whose workers
share them.

    images/<name>.sif    an image; its time of change is its last use
    images/<name>.json   its reference and its digest
    images/partial/      pulls under way
    images/locks/        one for each image that is pulled or removed

``name`` is made of the reference. What runs from a file keeps it, also once it is removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from bundles.sizes import format_size
from worker.locks import GaveUp, Locks
from worker.loop import Loop
from worker.pulls import USED_SECONDS, Cancelled, Done, Image, ImageFailed, Pull, Pulls
from worker.registry import (
    Reference,
    Silent,
    find_credentials,
    image_bytes,
    image_digest,
    is_loopback,
    parse_reference,
)

log = logging.getLogger(__name__)

PULL_SECONDS = 4 * 3600.0
"""A pull that takes longer is given up: layers are fetched, and made one file, which takes long."""
END_SECONDS = 10.0
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class _About:
    reference: str
    digest: str


class Sifs(Pulls):
    """See worker.pulls.Pulls. ``program``: apptainer, or singularity. An image's id is its file's
    path."""

    def __init__(
        self,
        loop: Loop,
        program: str,
        directory: Path,
        *,
        max_image_bytes: int | None = None,
        max_cache_bytes: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(loop, max_cache_bytes=max_cache_bytes)
        self._program = program
        self._directory = directory
        self._max_image_bytes = max_image_bytes
        self._now = now
        for place in (directory, directory / "partial", directory / "locks"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks = Locks(directory / "locks")

    def request(self, reference: str, done: Done) -> None:
        known = self.known(reference)
        if known is not None and not os.path.exists(known.id):
            self.lose(reference)  # another worker made room
        super().request(reference, done)

    def get(self, pull: Pull) -> Image:
        text = pull.reference.removeprefix("docker://")
        try:
            reference = parse_reference(text)
        except ValueError as error:
            raise ImageFailed(f"Cannot get image: {error}") from error
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        path = self._directory / f"{name}.sif"
        pull.status = f"Asking for the latest image {text}"
        credentials: dict[str, str] = {}
        digest = reference.version if reference.is_digest else ""
        try:
            credentials = find_credentials(reference)
            digest = digest or image_digest(reference, credentials)
        except Silent as error:
            log.info("image %s: %s", text, error)
        pull.status = f"Waiting for another worker to pull image {text}"
        try:
            with self._locks.holding(name, pull.cancelled):
                here = self._look(path)
                if here is None or (digest and here.digest != digest):
                    self._check_size(pull, reference, credentials)
                    self._pull(pull, reference, digest, credentials, path)
                    here = _About(text, digest)
                    _write(path.with_suffix(".json"), here)
                self.note_use(str(path))
        except GaveUp as error:
            raise Cancelled(f"Nobody needs image {text} any more") from error
        except OSError as error:
            raise ImageFailed(f"Cannot get image {text}: {error}") from error
        if self.max_cache_bytes is not None:
            self.prune(keep=str(path))
        known = f"{_name(reference)}@{here.digest}" if here.digest else ""
        return Image(pull.reference, str(path), known)

    def _look(self, path: Path) -> _About | None:
        try:
            document = orjson.loads(path.with_suffix(".json").read_bytes())
            about = _About(str(document["reference"]), str(document["digest"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return about if path.exists() else None

    def _check_size(self, pull: Pull, reference: Reference, credentials: dict[str, str]) -> None:
        if self._max_image_bytes is None:
            return
        machine = os.uname().machine
        try:
            size_bytes = image_bytes(reference, credentials, ARCHITECTURES.get(machine, machine))
        except Silent as error:
            log.warning("%s; it is pulled all the same", error)
            return
        if size_bytes > self._max_image_bytes:
            raise ImageFailed(
                f"The size of image {pull.reference}, {format_size(size_bytes)}, exceeds the "
                f"maximum image size of this worker, {format_size(self._max_image_bytes)}"
            )

    def _pull(
        self,
        pull: Pull,
        reference: Reference,
        digest: str,
        credentials: dict[str, str],
        path: Path,
    ) -> None:
        pull.status = f"Pulling image {pull.reference}"
        partial = self._directory / "partial" / path.name
        version = f"@{digest}" if digest else f":{reference.version}"
        line = [self._program, "pull", "--force", "--disable-cache"]
        if is_loopback(reference.registry):
            line.append("--no-https")
        line += [str(partial), f"docker://{_name(reference)}{version}"]
        environment = dict(os.environ)
        for prefix in ("APPTAINER", "SINGULARITY"):
            environment[f"{prefix}_TMPDIR"] = str(partial.parent)
            if credentials.get("username"):
                environment[f"{prefix}_DOCKER_USERNAME"] = credentials["username"]
                environment[f"{prefix}_DOCKER_PASSWORD"] = credentials.get("password", "")
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        ended = threading.Event()
        threading.Thread(target=_end_when, args=(process, pull, ended), daemon=True).start()
        said = ""
        try:
            assert process.stderr is not None
            with process.stderr:
                for text in process.stderr:
                    if text.strip():
                        said = text.strip()[:500]
                        pull.status = f"Pulling image {pull.reference}: {said}"
            code = process.wait(timeout=END_SECONDS)
        finally:
            ended.set()
        pull.check()
        if code != 0 or not partial.exists():
            partial.unlink(missing_ok=True)
            raise ImageFailed(_explain(pull.reference, said))
        partial.rename(path)

    def note_use(self, image_id: str) -> None:
        with suppress(OSError):
            os.utime(image_id, (self._now(), self._now()))

    def prune(self, keep: str = "") -> None:
        """Remove images, least recently used first, until they fit."""
        assert self.max_cache_bytes is not None
        found = []
        for path in self._directory.glob("*.sif"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size_bytes for _, size_bytes, _ in found)
        for used_at, size_bytes, path in sorted(found):
            if total <= self.max_cache_bytes:
                return
            is_used = str(path) in (keep, *self.in_use) or self._now() - used_at < USED_SECONDS
            if is_used:
                continue
            with self._locks.trying(path.stem) as lock:
                if lock is None:
                    continue
                self.forget(str(path))
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
            total -= size_bytes
            log.info("removed the image %s to make room", path.name)


def _end_when(process: subprocess.Popen[str], pull: Pull, ended: threading.Event) -> None:
    """End a pull that nobody waits for, or that never ends."""
    deadline = time.monotonic() + PULL_SECONDS
    while not ended.wait(0.2):
        if pull.cancelled.is_set() or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return


def _name(reference: Reference) -> str:
    return f"{reference.registry}/{reference.repository}"


def _write(path: Path, about: _About) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(orjson.dumps({"reference": about.reference, "digest": about.digest}))
    new.rename(path)


def _explain(reference: str, said: str) -> str:
    said = re.sub(r"^(FATAL|ERROR):\s*", "", said) or "it is not said why"
    if re.search("manifest unknown|not found|name unknown", said, re.I):
        return f"There is no image {reference}: {said}"
    if re.search("unauthorized|denied", said, re.I):
        return f"This worker may not pull image {reference}: {said}"
    return f"Cannot pull image {reference}: {said}"
