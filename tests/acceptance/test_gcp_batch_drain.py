"""A queue drained on GCP Batch, start to end: our server, our manager, real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcp_stand import SECRET, Stand
from google.cloud.batch_v1 import types
from managing import Managers, eventually, kept_pool
from serving import Server

BUNDLES = 60
OVER = {types.JobStatus.State.SUCCEEDED, types.JobStatus.State.FAILED}


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path, runs=True)
    try:
        yield made
    finally:
        made.close()


def test_sixty_bundles_drain_on_spot_though_a_machine_is_taken_back_half_way(
    server: Server, stand: Stand
) -> None:
    managers = Managers(server)
    cloud = stand.cloud
    options = [
        *("gcp-batch", *stand.options()),
        *("--provisioning", "spot", "--min", "0", "--max", "3", "--sleep-time", "0.5"),
        *("--worker-idle-seconds", "2"),
        *("--worker-work-dir-prefix", str(stand.directory / "work")),
    ]
    with kept_pool(server, *options), server.client() as client:
        uuids = managers.stage(BUNDLES, command="true", request_cpus=1)

        def states() -> list[str]:
            return [bundle.state for bundle in client.bundles(uuids)]

        eventually(lambda: states().count("ready") >= BUNDLES // 3, "a third of the bundles")
        running = [name for name, held in cloud.jobs.items() if held.tasks[0].process is not None]
        cloud.preempt(running[0], 0)
        eventually(lambda: states().count("ready") == BUNDLES, "the end of every bundle")
        eventually(
            lambda: all(held.message.status.state in OVER for held in cloud.jobs.values()),
            "the end of every worker",
        )
    assert 1 <= len(cloud.jobs) <= 6
    preempted = cloud.jobs[running[0]]
    assert preempted.tasks[0].retries == 1
    assert {held.message.status.state.name for held in cloud.jobs.values()} == {"SUCCEEDED"}
    tokens = [text for text in cloud.secrets[SECRET] if text is not None]
    assert tokens
    for text in tokens:
        token = text.decode().partition("=")[2].strip()
        assert token
        assert all(token not in request.text for request in stand.wire.requests)
