"""A random graph of bundles that add numbers up: whatever happens meanwhile, the sums are known."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from bundles.client import Client
from bundles.model import FINAL_STATES, new_uuid

DRAIN_SECONDS = 240.0


@dataclass
class Node:
    """A bundle of the graph: what it does, and what must come of it."""

    own: int
    parents: list[int]
    fails: bool
    allows_failed: bool
    pause: float
    uuid: str = field(default_factory=new_uuid)
    state: str = ""
    value: int | None = None

    def document(self, graph: list[Node], **metadata: Any) -> dict[str, Any]:
        terms = [str(self.own)] + [f"$(cat p{i}/out 2>/dev/null || echo 0)" for i in self.parents]
        command = f"sleep {self.pause:.2f}; echo $(( {' + '.join(terms)} )) > out"
        return {
            "uuid": self.uuid,
            "bundle_type": "run",
            "command": command + ("; exit 3" if self.fails else ""),
            "dependencies": [
                {"child_path": f"p{i}", "parent_uuid": graph[i].uuid, "parent_path": ""}
                for i in self.parents
            ],
            "metadata": {
                "name": f"own-{self.own}",
                "request_memory": "64m",
                "request_priority": 0,
                "allow_failed_dependencies": self.allows_failed,
                **metadata,
            },
        }


def random_graph(generator: random.Random, bundles: int) -> list[Node]:
    graph: list[Node] = []
    for index in range(bundles):
        graph.append(
            Node(
                own=generator.randrange(1000),
                parents=generator.sample(range(index), min(index, generator.randrange(4))),
                fails=generator.random() < 0.03,
                allows_failed=generator.random() < 0.5,
                pause=generator.choice([0, 0, 0, 0.05, 0.3]),
            )
        )
    for node in graph:
        parents = [graph[i] for i in node.parents]
        if not node.allows_failed and any(parent.state == "failed" for parent in parents):
            node.state = "failed"
            continue
        # A failed parent that ran has an `out` as well; one that never ran has none.
        node.value = node.own + sum(parent.value or 0 for parent in parents)
        node.state = "failed" if node.fails else "ready"
    return graph


def drain(client: Client, graph: list[Node]) -> dict[str, list[str]]:
    """Every state that each bundle went through, when all have ended."""
    history: dict[str, list[str]] = defaultdict(list)
    waiting, cursor = {node.uuid for node in graph}, 0
    waited = 0.0
    while waiting:
        page = client.changes(cursor, wait_seconds=5)
        assert not page.reset
        cursor = page.cursor
        waited += 0 if page.changes else 5
        for change in page.changes:
            history[change.uuid].append(change.to_state)
        waiting = {
            uuid for uuid in waiting if not history[uuid] or history[uuid][-1] not in FINAL_STATES
        }
        if waited > DRAIN_SECONDS:
            raise AssertionError(f"stuck: {[(uuid, history[uuid]) for uuid in waiting][:5]}")
    return history


def check_states(client: Client, graph: list[Node], history: dict[str, list[str]]) -> None:
    for bundle, node in zip(client.bundles([n.uuid for n in graph]), graph, strict=True):
        told = f"{node.uuid} went {history[node.uuid]}: {dict(bundle.metadata)}"
        assert bundle.state == node.state, told
        ends = [state for state in history[node.uuid] if state in FINAL_STATES]
        assert ends == [node.state], told
        if node.state == "ready":
            with client.download(node.uuid, "out") as download:
                assert int(b"".join(download.chunks())) == node.value, told
