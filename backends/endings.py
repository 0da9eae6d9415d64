"""Which jobs we asked to end, for services that do not say by whom one was ended.

One empty file a job, in a directory of the pool. What is lost here makes an end look like
somebody else's, nothing worse.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from backends.base import Unreachable


class Endings:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, key: str) -> None:
        """Write down that we ask for an end, before we do. Raises Unreachable."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._directory / key).touch(mode=0o600)
        except OSError as error:
            raise Unreachable(f"that {key} is ended cannot be written down: {error}") from error

    def asked(self) -> frozenset[str]:
        """Every job that we asked to end, as far as is remembered."""
        try:
            return frozenset(path.name for path in self._directory.iterdir())
        except OSError:
            return frozenset()

    def forget_before(self, time: float) -> None:
        with suppress(OSError):
            for path in self._directory.iterdir():
                if path.stat().st_mtime < time:
                    path.unlink(missing_ok=True)
