"""A run that the worker holds: what is on disk of it (worker.stages.Run), and what is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worker.dependencies import DependencyFailed, Key
from worker.devices import Share
from worker.limits import Usage
from worker.loop import Timer
from worker.shared import directory_of
from worker.stages import Run, Stage
from worker.uploads import Sending


@dataclass
class Held:
    """``timers`` end with the stage. ``attempt`` grows when what threads do for the run is no
    longer waited for."""

    run: Run
    place: Path
    status: str = ""
    is_equipped: bool = False
    """The runtime has what it needs for it (worker.runtimes.base.Runtime.prepare)."""
    are_links_placed: bool = False
    is_prepared: bool = False
    waits_for: dict[Key, Callable[[Path | DependencyFailed], None]] = field(default_factory=dict)
    contents: dict[Key, Path] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)
    sending: Sending | None = None
    attempt: int = 0
    timers: list[Timer] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    disk_bytes: int | None = None
    is_forced: bool = False
    """It is not asked to end, but ended: it uses up what others need."""
    has_spawned: bool = False
    """There may be processes of it."""
    faults: int = 0

    @property
    def directory(self) -> Path:
        """The run's own: what it writes there is its result."""
        return directory_of(self.run.bundle) or self.place / "files"

    @property
    def is_shared(self) -> bool:
        """The server sees the directory, too."""
        return directory_of(self.run.bundle) is not None

    @property
    def share(self) -> Share:
        return Share(self.run.cpus, self.run.gpus)

    @property
    def is_running(self) -> bool:
        return self.run.stage is Stage.RUNNING

    @property
    def started(self) -> float:
        """When the command was started, in epoch seconds."""
        return self.run.times[Stage.RUNNING][0]

    def cancel_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
