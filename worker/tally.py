"""How many runs a worker has taken, also over the death of its process. One line of a file each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)


class Tally:
    """Each run counts once, however often it is added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._keys = set(path.read_text().split())
        except OSError:
            self._keys = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[str]) -> None:
        """Count the runs of these keys. What cannot be written down counts for this process."""
        new = [key for key in dict.fromkeys(keys) if key not in self._keys]
        if not new:
            return
        self._keys.update(new)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, "".join(f"{key}\n" for key in new).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("the next start will not know of this run: %s", error)
