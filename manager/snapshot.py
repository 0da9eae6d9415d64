"""What one tick knows: the queue and the jobs of one pool at one moment. A value, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete observation. There is none of half a queue or half a list of jobs.

    ``staged``: staged bundles that a worker of this pool could run; ``unfit``: those of the same
    search that it could not (too large, or queued for another tag).
    ``pending``: jobs whose worker does not take bundles yet, intents of unknown outcome included;
    ``active``: jobs whose worker does. Times are seconds since the epoch.
    ``last_launch``: when a launch was last tried. ``held_until``: launches failed lately and are
    not tried again before, for ``hold_reason``.
    """

    staged: int
    unfit: int
    pending: int
    active: int
    last_launch: float | None = None
    held_until: float = 0.0
    hold_reason: str = ""

    @property
    def jobs(self) -> int:
        return self.pending + self.active

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Snapshot:
        return cls(**document)
