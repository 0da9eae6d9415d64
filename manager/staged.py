"""Reads which bundles are staged, and says what they ask for. Whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bundles.errors import UsageError
from bundles.home import USER_VARIABLE
from bundles.model import Resources
from manager.capacity import Need
from manager.queue import QueueConfig, as_need

if TYPE_CHECKING:
    from bundles.client import Client

Counted = list[tuple[Resources | None, int]]
"""What bundles ask for, and how many ask for it; None: it cannot be read."""


@dataclass
class StagedBundles:
    """The staged bundles that concern some pools. ``environ`` says whether we are CodaLab's root
    user at the server; ``each_page`` is called when a page of a long list has come."""

    client: Client
    environ: Mapping[str, str] = field(default_factory=dict)
    each_page: Callable[[], object] = lambda: None
    _root: bool | None = None

    def read(self, queues: Sequence[QueueConfig]) -> Counted:
        """Every staged bundle of the search that the pools share. Raises BundlesError."""
        if not queues:
            return []
        keywords = queues[0].keywords(root=self._is_root(), is_alone=len(queues) == 1)
        if "shapes" in self.client.features:
            return [(shape.resources, shape.count) for shape in self.client.shapes(keywords)]
        return [
            (_resources(bundle.metadata), 1)
            for bundle in self.client.search(keywords, each_page=self.each_page)
            if bundle.bundle_type == "run"
        ]

    def _is_root(self) -> bool:
        if self._root is None:
            self._root = bool(
                self.client.whoami().get("is_root_user")
                or self.environ.get(USER_VARIABLE) == "codalab"
            )
        return self._root


def demand_of(counted: Counted, queues: Sequence[QueueConfig]) -> tuple[dict[Need, int], list[int]]:
    """The bundles that a worker of some pool could run, by what they ask for; and for each pool
    how many its workers could not."""
    demand: dict[Need, int] = {}
    unfit = [0] * len(queues)
    lives = [queue.shape.room.time_seconds for queue in queues]
    for asked, number in counted:
        wanted = as_need(asked, lives) if asked else None
        needs = [queue.need(wanted) if wanted else None for queue in queues]
        for position, need in enumerate(needs):
            if need is None:
                unfit[position] += number
        if wanted not in needs:
            # What no worker could run counts where somebody asked for that, as a whole worker.
            wanted = next((need for need in needs if need is not None), None)
        if wanted is not None:
            demand[wanted] = demand.get(wanted, 0) + number
    return demand, unfit


def _resources(metadata: Mapping[str, object]) -> Resources | None:
    """What a bundle asks for; None when that cannot be read, so that it fits nowhere."""
    try:
        return Resources.from_metadata(metadata)
    except UsageError:
        return None
