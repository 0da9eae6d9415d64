"""A set of two pools of a real cluster, of which the first one's partition goes down."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import Managers, eventually
from serving import Server
from slurm_cluster import SlurmCluster

from manager.ledger import Launch, Ledger

pytestmark = pytest.mark.engine("slurm")

BUNDLES = 12

POOLS = """
sleep-time = 0.3
[defaults]
min-workers = 0
worker-idle-seconds = 5
memory-mb = 1000
[[pools]]
backend = "slurm"
name = "campus"
partition = "main"
max-workers = 3
patience-seconds = 2
[[pools]]
backend = "slurm"
name = "spare"
partition = "low"
max-workers = 2
"""


@pytest.fixture
def server(tmp_path: Path, slurm_cluster: SlurmCluster) -> Iterator[Server]:
    running = Server(tmp_path)
    running.env |= slurm_cluster.reach
    running.start("--worker-timeout-seconds", "5")
    try:
        yield running
    finally:
        assert running.stop() == 0
        slurm_cluster.command("scontrol", "update", "PartitionName=main", "State=UP")
        slurm_cluster.clear()


def launches(server: Server, pool: str) -> list[Launch]:
    ledger = Ledger.read_only(server.home.path / "ledger.db")
    assert ledger is not None
    with ledger:
        return ledger.recent(pool, 100)


def test_bundles_overflow_when_a_partition_is_down_and_no_launch_is_lost(
    server: Server, slurm_cluster: SlurmCluster
) -> None:
    managers = Managers(server)
    file = server.directory / "pools.toml"
    file.write_text(POOLS)
    slurm_cluster.command("scontrol", "update", "PartitionName=main", "State=DOWN")
    uuids = managers.stage(BUNDLES, command="sleep 0.2")
    manager = managers.run("run", str(file))
    try:
        with server.client() as client:

            def states() -> Counter[str]:
                found = client.search([f"uuid={','.join(uuids)}", ".limit=100"])
                return Counter(bundle.state for bundle in found)

            eventually(lambda: states() == {"ready": BUNDLES}, "all on the second pool")
        waiting = launches(server, "campus")
        assert 1 <= len(waiting) <= 3, "asked for once, and not again and again"
        assert all(launch.started is None for launch in waiting)

        slurm_cluster.command("scontrol", "update", "PartitionName=main", "State=UP")
        uuids = managers.stage(BUNDLES, command="sleep 2")
        with server.client() as client:
            eventually(lambda: states() == {"ready": BUNDLES}, "all, on either")
        eventually(
            lambda: any(launch.first_bundle for launch in launches(server, "campus")),
            "one on the first pool",
        )
        for pool in ("campus", "spare"):
            assert None not in {launch.outcome for launch in launches(server, pool)}
        assert managers.kill(manager, signal.SIGTERM) == 0
    finally:
        managers.close()
