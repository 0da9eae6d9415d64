"""The network of one worker in its container engine: made once, removed when it ends.

On it are the runs that may use a network; the engine keeps networks apart, so that no run meets
another worker's. CodaLab's worker has two more, for runs without a network and for its own way to
them. Here such a run is on no network at all: none leads out more surely, and worker.netcat finds
another way in.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from docker.errors import APIError, NotFound

from worker.runtimes.engine import Engine, explain


class NoNetwork(Exception):
    """The engine does not make a network; the message says why."""


class Network:
    """``labels`` say whose it is."""

    def __init__(self, engine: Engine, name: str, labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._name = name
        self._labels = dict(labels)
        self._is_made = False
        self._lock = threading.Lock()

    @property
    def is_made(self) -> bool:
        return self._is_made

    def name(self) -> str:
        """Its name; it is made if need be. Raises NoNetwork, such as when the engine has no
        addresses left, and what a call of an engine that is away raises."""
        with self._lock:
            if not self._is_made:
                try:
                    self._make()
                except APIError as error:
                    raise NoNetwork(explain(error)) from error
                self._is_made = True
        return self._name

    def _make(self) -> None:
        if self._name not in {network["Name"] for network in self._list()}:
            self._engine.create_network(
                self._name, driver="bridge", labels=self._labels, check_duplicate=True
            )

    def _list(self) -> list[dict[str, str]]:
        labels = [f"{name}={value}" for name, value in self._labels.items()]
        return list(self._engine.networks(filters={"label": labels}))

    def lose(self) -> None:
        """Somebody removed it: make sure of it the next time."""
        with self._lock:
            self._is_made = False

    def remove(self) -> None:
        """Remove all that carry the labels. Raises APIError when one is in use."""
        with self._lock:
            self._is_made = False
            for network in self._list():
                with suppress(NotFound):
                    self._engine.remove_network(network["Id"])
