"""What an Azure Batch pool says of itself, in our words: what its tasks wait for, what it lacks.

Pure: reads the SDK's answers and asks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.azure_batch.errors import by_code
from backends.azure_batch.words import word
from backends.base import BackendError, Invalid, OutOfCapacity, QuotaExceeded

if TYPE_CHECKING:
    from azure.batch.models import BatchPool

POOL_FIELDS = [
    "id",
    "state",
    "allocationState",
    "resizeErrors",
    "currentDedicatedNodes",
    "currentLowPriorityNodes",
    "targetDedicatedNodes",
    "targetLowPriorityNodes",
    "taskSlotsPerNode",
    "virtualMachineConfiguration",
    "identity",
]


@dataclass(frozen=True, slots=True)
class PoolNews:
    """A pool at one time. ``lacks``: why it cannot grow, the service's code and words."""

    id: str
    state: str
    nodes: int
    wanted: int
    allocation: str
    slots_per_node: int
    takes_containers: bool
    images: tuple[str, ...]
    identities: tuple[str, ...]
    lacks: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, pool: BatchPool) -> PoolNews:
        machine = pool.virtual_machine_configuration
        containers = machine.container_configuration if machine else None
        identity = pool.identity
        return cls(
            id=pool.id,
            state=word(pool.state),
            nodes=(pool.current_dedicated_nodes or 0) + (pool.current_low_priority_nodes or 0),
            wanted=(pool.target_dedicated_nodes or 0) + (pool.target_low_priority_nodes or 0),
            allocation=word(pool.allocation_state),
            slots_per_node=pool.task_slots_per_node or 1,
            takes_containers=containers is not None,
            images=tuple((containers.container_image_names or ()) if containers else ()),
            identities=tuple(
                one.resource_id
                for one in (identity.user_assigned_identities or () if identity else ())
            ),
            lacks=tuple(
                (error.code or "", error.message or "") for error in pool.resize_errors or ()
            ),
        )

    @property
    def waiting(self) -> str:
        """What a task of this pool waits for."""
        has = f"{self.nodes} of {self.wanted} nodes"
        if self.allocation and self.allocation != "steady":
            has += f", {self.allocation}"
        for code, message in self.lacks[:1]:
            has += f"; {code}: {message}".rstrip(": ")
        return f"waits for a free slot in the pool {self.id} ({has})"

    def refusal(self, slots: int) -> BackendError | None:
        """Why no task that takes ``slots`` will ever, or for now, start here; None if one may."""
        if self.state == "deleting":
            return Invalid(f"--pool-id {self.id}: the pool is being deleted")
        if slots > self.slots_per_node:
            return Invalid(
                f"--slots {slots}: a node of the pool {self.id} has {self.slots_per_node}"
            )
        if self.nodes == 0:
            for code, message in self.lacks:
                error = by_code(code, f"the pool {self.id} has no node: {code}, {message}")
                if isinstance(error, OutOfCapacity | QuotaExceeded):
                    return error
        return None
