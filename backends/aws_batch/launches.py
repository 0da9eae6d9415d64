"""What this backend submitted, on this machine's disk: the intent before the call, the id after.

SubmitJob has no token by which AWS could know that it was asked before, so a key whose reply was
lost is known here alone. One file a submission, `<directory>/<first key>.json`, without secrets.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backends.base import (
    BackendError,
    Invalid,
    LaunchKey,
    OutOfCapacity,
    QuotaExceeded,
    Unauthorized,
)

KEPT_SECONDS = 8 * 24 * 3600.0
"""Batch keeps ended jobs for seven days at least: for longer than that nothing can be looked up."""


@dataclass(frozen=True, slots=True)
class Launch:
    """``size`` workers from the key ``first`` on. ``job_id``: "" until AWS has said it.

    ``queue`` and ``definition`` (its name) say where the job is to be looked for, whatever the
    options are by then.
    """

    first: str
    size: int
    queue: str
    definition: str
    asked: float
    job_id: str = ""

    def has(self, key: LaunchKey) -> bool:
        first = LaunchKey.parse(self.first)
        return first is not None and (
            key == replace(first, sequence=key.sequence)
            and first.sequence <= key.sequence < first.sequence + self.size
        )

    def worker(self, key: LaunchKey) -> str:
        """The job id of the worker of a key."""
        first = LaunchKey.parse(self.first)
        assert first is not None
        return f"{self.job_id}:{key.sequence - first.sequence}" if self.size > 1 else self.job_id


class Launches:
    """The launches of one pool. Read once; one process at a time writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._by_random: dict[str, list[Launch]] | None = None

    def all(self) -> list[Launch]:
        """Raises BackendError when they cannot be read."""
        return [launch for launches in self._read().values() for launch in launches]

    def of(self, key: LaunchKey) -> Launch | None:
        """The launch that a key was part of."""
        for launch in self._read().get(key.random, ()):
            if launch.has(key):
                return launch
        return None

    def intend(self, launch: Launch) -> None:
        """On disk when this returns. Raises BackendError when it cannot be written."""
        self._read()
        try:
            self._write(launch, synced=True)
        except OSError as error:
            raise _disk_error(self._path(launch), "written", error) from error
        self._keep(launch)

    def identify(self, launch: Launch, job_id: str) -> Launch:
        """The launch with its id. One that is not on disk can be looked up by the intent that is,
        so that a disk which is full now undoes nothing."""
        launch = replace(launch, job_id=job_id)
        with suppress(OSError):
            self._write(launch, synced=False)
        self._keep(launch)
        return launch

    def _write(self, launch: Launch, *, synced: bool) -> None:
        path = self._path(launch)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_suffix(".new").open("w") as file:
            json.dump(asdict(launch), file)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        path.with_suffix(".new").replace(path)

    def _keep(self, launch: Launch) -> None:
        self._drop(launch)
        self._read().setdefault(_random(launch), []).append(launch)

    def forget(self, launches: Iterable[Launch]) -> None:
        """Launches of which nothing came, or of which nothing is left."""
        self._read()
        for launch in launches:
            self._drop(launch)
            self._path(launch).unlink(missing_ok=True)

    def _drop(self, launch: Launch) -> None:
        others = self._read().get(_random(launch), [])
        others[:] = [other for other in others if other.first != launch.first]

    def _path(self, launch: Launch) -> Path:
        return self._directory / f"{launch.first}.json"

    def _read(self) -> dict[str, list[Launch]]:
        if self._by_random is None:
            found: dict[str, list[Launch]] = {}
            try:
                for path in sorted(self._directory.glob("*.json")):
                    launch = _parse(path.read_text())
                    if launch is None:
                        raise Invalid(
                            f"{path} is damaged: look for the job of that name in AWS Batch, and "
                            "remove the file once no worker of it is left"
                        )
                    found.setdefault(_random(launch), []).append(launch)
            except OSError as error:
                raise _disk_error(self._directory, "read", error) from error
            self._by_random = found
        return self._by_random


def _disk_error(path: Path, verb: str, error: OSError) -> BackendError:
    sentence = f"{path} cannot be {verb}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unauthorized(sentence)
    return QuotaExceeded(sentence) if error.errno == errno.EDQUOT else OutOfCapacity(sentence)


def _parse(text: str) -> Launch | None:
    try:
        record: dict[str, Any] = json.loads(text)
        launch = Launch(**record)
    except (ValueError, TypeError):
        return None
    return launch if LaunchKey.parse(launch.first) else None


def _random(launch: Launch) -> str:
    key = LaunchKey.parse(launch.first)
    assert key is not None
    return key.random
