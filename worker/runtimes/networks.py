"""The networks of one worker in its container engine: made once, removed when it ends.

Runs with a network are on the external one. The other two keep out whatever is not of this worker
and lead nowhere else; they have CodaLab's names. Runs without a network are on none of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from docker.errors import NotFound

from worker.runtimes.engine import Engine

EXTERNAL = "ext"
NAMES: Mapping[str, bool] = {"general": True, EXTERNAL: False, "int": True}
"""Whether each is internal: without a way out."""


class Networks:
    """``prefix`` begins their names, ``labels`` say whose they are."""

    def __init__(self, engine: Engine, prefix: str, labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._prefix = prefix
        self._labels = dict(labels)
        self._are_made = False
        self._lock = threading.Lock()

    def external(self) -> str:
        """The name of the network with a way out; they are made if need be. Raises APIError."""
        with self._lock:
            if not self._are_made:
                present = {network["Name"] for network in self._list()}
                for name, is_internal in NAMES.items():
                    if self._name(name) not in present:
                        self._make(self._name(name), is_internal)
                self._are_made = True
        return self._name(EXTERNAL)

    def _name(self, name: str) -> str:
        return f"{self._prefix}_{name}"

    def _make(self, name: str, is_internal: bool) -> None:
        self._engine.create_network(
            name,
            driver="bridge",
            internal=is_internal,
            labels=self._labels,
            check_duplicate=True,
        )

    def _list(self) -> list[dict[str, str]]:
        labels = [f"{name}={value}" for name, value in self._labels.items()]
        return list(self._engine.networks(filters={"label": labels}))

    def lose(self) -> None:
        """Somebody removed one: make sure of them the next time."""
        with self._lock:
            self._are_made = False

    def remove(self) -> None:
        """Remove all that carry the labels. Raises APIError when one is in use."""
        with self._lock:
            self._are_made = False
            for network in self._list():
                with suppress(NotFound):
                    self._engine.remove_network(network["Id"])
