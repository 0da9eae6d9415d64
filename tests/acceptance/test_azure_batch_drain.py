"""A queue drained on Azure Batch, start to end: our server, our manager, real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure_stand import JOB, POOL, Stand
from fakes.azure.batch import ACCOUNT_NAME
from managing import Managers, eventually, kept_pool
from serving import Server

BUNDLES = 60


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path, runs=True)
    try:
        yield made
    finally:
        made.close()


def test_sixty_bundles_drain_though_a_node_is_taken_back_half_way(
    server: Server, stand: Stand
) -> None:
    stand.account.add_nodes(POOL, 1)
    managers = Managers(server)
    account = stand.account
    words = [
        *("azure-batch", "--service-url", stand.batch.url, "--account-name", ACCOUNT_NAME),
        *("--job-id", JOB, "--pool-id", POOL, "--image", "bundle-worker"),
        *("--secrets-container-url", stand.blobs.url),
        *("--min", "0", "--max", "3", "--sleep-time", "0.5", "--worker-idle-seconds", "2"),
    ]
    with kept_pool(server, *words, environment=stand.keys), server.client() as client:
        uuids = managers.stage(BUNDLES, command="true", request_cpus=1)

        def states() -> list[str]:
            return [bundle.state for bundle in client.bundles(uuids)]

        eventually(lambda: states().count("ready") >= BUNDLES // 3, "a third of the bundles")
        running = [t for t in account.jobs[JOB].tasks.values() if t.node is not None]
        assert running[0].node is not None
        account.preempt(running[0].node.id)
        eventually(lambda: states().count("ready") == BUNDLES, "the end of every bundle")
        eventually(
            lambda: all(task["state"] == "completed" for task in stand.tasks.values()),
            "the end of every worker",
        )
    assert 1 <= len(stand.tasks) <= 6
    assert {task["executionInfo"]["exitCode"] for task in stand.tasks.values()} == {0}
    token = next(iter(stand.blobs.blobs.values()))[0].decode().partition("=")[2].strip()
    assert token
    for request in stand.batch.wire.requests():
        assert token not in request.target
        assert token.encode() not in request.body
    for path in (stand.directory / "nodes").rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
