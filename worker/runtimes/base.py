"""The contract between the worker and a way to run commands (processes; later containers).

The worker decides when a run starts and ends, and remembers it; a runtime knows how. Its methods
are called in the loop's thread and return at once, save ``end_all``, which may take seconds and is
called in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from worker.limits import Usage


class CannotStart(Exception):
    """The runtime cannot start this run; the message is what its owner reads."""


class Attachment(Enum):
    """What a runtime found of a run that an earlier worker had started."""

    ALIVE = "alive"
    """It is watched from now on: its end will be told."""
    ENDED = "ended"
    """It is gone: ``ended`` is called with how, before long."""


class Gone(Enum):
    """Ends without an exit code."""

    HELD_BACK = "held back"
    """It was never let go, so nothing of the command ran."""
    UNKNOWN = "unknown"
    """Nobody was there to see it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command to run. ``place`` is private to the worker, ``directory`` the run's own.
    ``read_only``: where its dependencies lie, if it has any; ``cpus``: to be kept on, if any."""

    key: str
    uuid: str
    command: str
    place: Path
    directory: Path
    cpus: Sequence[int] = ()
    gpus: Sequence[str] | None = None
    read_only: Path | None = None
    image: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: an exit code (128 + n for signal n), or why there is none."""

    how: int | Gone
    user_seconds: float = 0.0
    system_seconds: float = 0.0


Ended = Callable[[str, End], None]
"""Called in the loop with a run's key, once, when its command has ended."""


class Runtime(Protocol):
    """One way to run commands."""

    @property
    def name(self) -> str: ...

    def start(self, job: Job) -> Mapping[str, Any]:
        """Make the process, held back: it waits for ``release``, and ends should this worker end.

        Returns what ``attach`` needs to find it again, as JSON. Raises CannotStart.
        """

    def release(self, key: str) -> None:
        """Let the command go."""

    def attach(self, job: Job, process: Mapping[str, Any]) -> Attachment:
        """Take up a run of an earlier worker process, by the word that ``start`` returned."""

    def stop(self, key: str, *, force: bool) -> None:
        """Ask everything of a run to end, or (``force``) end it."""

    def measure(self) -> Mapping[str, Usage]:
        """What every running run uses, by key; ``disk_bytes`` is not a runtime's business."""

    def confirm_memory(self, key: str) -> int:
        """The memory of one run in bytes, exactly, where ``measure`` counts shared pages twice."""

    def end_all(self, key: str, place: Path) -> None:
        """End whatever is left of a run, daemons included, and wait until it is gone."""

    def forget(self, key: str) -> None:
        """Nothing of the run is left: drop what is remembered of it."""

    def close(self) -> None:
        """Give back what is held in this process; running commands run on."""
