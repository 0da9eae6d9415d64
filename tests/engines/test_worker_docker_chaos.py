"""SIGKILL of workers and of the engine at random points of a graph of bundles in containers.

CHAOS_SEEDS=50 runs more seeds than the one that every test run has time for.
"""

from __future__ import annotations

import os
import random
import threading

import pytest
from bundle_graph import check_states, drain, random_graph
from containers import Containers
from docker_engine import IMAGE

pytestmark = pytest.mark.engine("docker")

SEEDS = range(1, int(os.environ.get("CHAOS_SEEDS", "1")) + 1)
BUNDLES = 40
KILLS = 12
WORKERS = ("w1", "w2")


def start(stand: Containers, worker_id: str) -> None:
    stand.start("--cpus", "1", worker_id=worker_id)


def kill_something(stand: Containers, generator: random.Random) -> None:
    """Where in its work it is killed is for chance to say, and how long it stays away."""
    pause = threading.Event()
    pause.wait(generator.uniform(0.2, 1.5))
    victim = generator.choice([*WORKERS, "engine"])
    if victim == "engine":
        stand.engine.kill()
        pause.wait(generator.choice([0.0, 0.0, 1.0]))
        stand.engine.start()
    else:
        stand.workers[victim].kill()
        pause.wait(generator.choice([0.0, 0.0, 1.0]))
        start(stand, victim)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_is_killed_every_bundle_ends_once_and_right(seed: int, stand: Containers) -> None:
    generator = random.Random(seed)
    graph = random_graph(generator, BUNDLES)
    for worker_id in WORKERS:
        start(stand, worker_id)
    image = {"request_docker_image": IMAGE}
    stand.client.create([node.document(graph, **image) for node in graph])
    for _ in range(KILLS):
        kill_something(stand, generator)
    for worker_id in WORKERS:
        # One that met no engine at its start has left, unless it had runs to carry on with.
        if stand.workers[worker_id].has_left:
            start(stand, worker_id)
    history = drain(stand.client, graph)
    check_states(stand.client, graph, history)
    stand.leave()
