"""SIGKILL at random points of a random graph of bundles: nothing lost, nothing twice.

CHAOS_SEEDS=50 runs more seeds than the few that every test run has time for.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from managing import Managers
from serving import Server

from bundles.client import Client
from bundles.model import FINAL_STATES, new_uuid

SEEDS = range(1, int(os.environ.get("CHAOS_SEEDS", "3")) + 1)
BUNDLES = 200
KILLS = 24
MAX_WORKERS = 3
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

    def document(self, graph: list[Node]) -> dict[str, Any]:
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
            },
        }


def random_graph(generator: random.Random) -> list[Node]:
    graph: list[Node] = []
    for index in range(BUNDLES):
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


class Observer:
    """Counts the live workers all the time, in a thread."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers
        self._over = threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(psutil.Error):
                # By id: a worker that is just forking is two processes of one command line.
                ids = {words[words.index("--id") + 1] for words in self._command_lines()}
                self.most = max(self.most, len(ids))

    def _command_lines(self) -> list[list[str]]:
        return [process.info["cmdline"] for process in self._managers.workers()]

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()


class Scene:
    """A server and a manager with its workers; any of them can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = Server(directory)
        self.managers = Managers(self.server)
        self.start_server()
        self.start_manager()

    def start_server(self) -> None:
        self.server.start("--worker-timeout-seconds", "5")

    def start_manager(self) -> None:
        self.manager = self.managers.start(
            *("--min", "0", "--max", str(MAX_WORKERS), "--sleep-time", "1"),
            *("--worker-preemptible", "--worker-idle-seconds", "4"),
            stand_ins=False,
        )

    def kill_something(self, generator: random.Random) -> str:
        """SIGKILL the server, the manager or a worker after a random while; start it again."""
        threading.Event().wait(generator.uniform(0.1, 0.9))
        victim = generator.choice(["server", "manager", "worker", "worker"])
        if victim == "server":
            self.server.stop(signal.SIGKILL)
            threading.Event().wait(generator.choice([0, 0, 0.5]))
            self.start_server()
        elif victim == "manager":
            self.managers.kill(self.manager)
            threading.Event().wait(generator.choice([0, 0, 0.5]))
            self.start_manager()
        else:
            workers = self.managers.workers()
            if not workers:
                return "nobody"
            with contextlib.suppress(psutil.Error):
                generator.choice(workers).kill()
        return victim

    def leave(self) -> None:
        """End the manager, let the idle workers leave, end the server."""
        assert self.managers.kill(self.manager, signal.SIGTERM) == 0
        psutil.wait_procs(self.managers.workers(), timeout=60)
        assert self.server.stop() == 0

    def processes(self) -> list[str]:
        """Every live process that has anything to do with this directory, as its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                said = [*process.cmdline(), *process.environ().values(), process.cwd()]
                if any(str(self.directory) in text for text in said):
                    found.append(" ".join(process.cmdline()))
        return found

    def close(self) -> None:
        self.managers.close()
        if self.server.running:
            self.server.stop(signal.SIGKILL)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_is_killed_every_bundle_ends_once_and_right(seed: int, scene: Scene) -> None:
    generator = random.Random(seed)
    graph = random_graph(generator)
    with scene.server.client(patience_seconds=60) as client, Observer(scene.managers) as observer:
        for start in range(0, BUNDLES, 40):
            client.create([node.document(graph) for node in graph[start : start + 40]])
        killed = Counter(scene.kill_something(generator) for _ in range(KILLS))
        history = drain(client, graph)
        check_states(client, graph, history)
        scene.leave()
    assert observer.most <= MAX_WORKERS
    assert killed["server"] + killed["manager"] + killed["worker"] > KILLS // 2
    assert scene.processes() == []


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
