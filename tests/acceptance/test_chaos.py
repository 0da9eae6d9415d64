"""SIGKILL at random points of a random graph of bundles: nothing lost, nothing twice.

CHAOS_SEEDS=50 runs more seeds than the few that every test run has time for.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bundle_graph import check_states, drain, random_graph
from managing import Managers
from serving import Server

SEEDS = range(1, int(os.environ.get("CHAOS_SEEDS", "3")) + 1)
BUNDLES = 200
KILLS = 24
MAX_WORKERS = 3


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
    graph = random_graph(generator, BUNDLES)
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
