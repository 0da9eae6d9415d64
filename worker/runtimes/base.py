"""The contract between the worker and a way to run commands (processes, or containers).

The worker decides when a run starts and ends, and remembers it; a runtime knows how. Its methods
are called in the loop's thread and return at once, save ``end_all``, which may take seconds and is
called in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from worker.limits import Usage


class CannotStart(Exception):
    """The runtime cannot start this run; the message is what its owner reads."""


class Attachment(Enum):
    """What a runtime found of a run that an earlier worker had started."""

    ALIVE = "alive"
    """It is watched from now on: its end will be told, also the one that it met before."""
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
    ``read_only``: where its dependencies lie, if it has any; ``cpus``: to be kept on, if any.
    ``contents``: those dependencies, by child path. ``memory_bytes`` 0: no limit."""

    key: str
    uuid: str
    command: str
    place: Path
    directory: Path
    cpus: Sequence[int] = ()
    gpus: Sequence[str] | None = None
    read_only: Path | None = None
    image: str = ""
    contents: Mapping[str, Path] = field(default_factory=dict)
    memory_bytes: int = 0
    network: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The command could not be started; ``reason`` is what the run's owner reads."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: an exit code (128 + n for signal n), or why there is none.
    ``is_out_of_memory``: that is why it ended."""

    how: int | Gone | Failed
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    is_out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where ports are. ``pid``: of a process in whose network ``host`` is, if not in ours."""

    host: str
    pid: int | None = None


Prepared = Callable[[CannotStart | None], None]
"""Called in the loop, once, when all is there that a run needs besides its dependencies."""

Ended = Callable[[str, End], None]
"""Called in the loop with a run's key, once, when its command has ended."""


class Runtime(Protocol):
    """One way to run commands."""

    @property
    def name(self) -> str: ...

    def dependency_paths(self, uuid: str) -> Path | None:
        """The directory where a run's commands find its dependencies, each by `mount_name` of its
        child path. None: where they lie on this machine."""

    def prepare(self, job: Job, done: Prepared) -> None:
        """Get what the run needs besides its dependencies (an image)."""

    def withdraw(self, key: str) -> None:
        """What ``prepare`` gets for the run is not waited for any more."""

    def status(self, key: str) -> str:
        """What ``prepare`` is at, for the run's owner; empty when it waits for nothing."""

    def start(self, job: Job) -> Mapping[str, Any]:
        """Make the process, held back: it waits for ``release``, and ends should this worker end.

        Returns what ``attach`` needs to find it again, as JSON; `image` in it names what it runs
        in. Raises CannotStart. A runtime may make it in ``release``: what it returns is enough to
        find it, should it be there.
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

    def address(self, key: str) -> Address:
        """Where a run's ports are. May take seconds: for threads. Raises OSError if nowhere."""

    def sweep(self, keys: Collection[str]) -> None:
        """End what is left of runs of this worker but ``keys``, which are all that it has."""

    def forget(self, key: str) -> None:
        """Nothing of the run is left: drop what is remembered of it."""

    def close(self) -> None:
        """Give back what is held in this process, and outside of it if no run is left; running
        commands run on."""


def mount_name(child_path: str) -> str:
    """The name of a dependency in `dependency_paths`: one level deep, whatever its child path."""
    if child_path in (".", ".."):
        return child_path.replace(".", "%2E")
    return quote(child_path, safe=" ()+,:=@~")
