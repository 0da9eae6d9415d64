"""`worker-manager aws-batch` beside a real server: bundles drain through jobs that really run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.aws.server import FakeAws, moto
from managing import Managers, eventually
from serving import Server

BUNDLES = 60
TOKEN = "WORKER_MANAGER_TOKEN"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start("--worker-timeout-seconds", "5")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[FakeAws]:
    moto()
    home = tmp_path / "worker-home"
    home.mkdir()
    # The worker of this Python, as if it were in the image.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with FakeAws(environment={"PATH": path, "HOME": str(home)}) as running:
        running.batch.add_queue("workers", "FARGATE_SPOT")
        yield running


@contextmanager
def manager(server: Server, aws: FakeAws, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as an operator starts it; it must end well when it is asked to."""
    log = server.directory / "manager.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "manager", "aws-batch", "--endpoint", aws.url),
                *("--job-queue", "workers", "--image", "workers:1", "--region", "us-east-1"),
                *("--execution-role", aws.add_role("execution")),
                *("--min", "0", "--max", "3", "--sleep-time", "0.5"),
                *("--worker-idle-seconds", "4"),
                *("--worker-work-dir-prefix", str(server.directory / "work"), *options),
            ],
            env=server.env | {"AWS_EC2_METADATA_DISABLED": "true"},
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_sixty_bundles_drain_though_a_machine_is_taken_back(server: Server, aws: FakeAws) -> None:
    managers = Managers(server)
    with server.client() as client, manager(server, aws):
        assert aws.batch.jobs == {}
        uuids = managers.stage(BUNDLES, command="sleep 0.2; echo hi >> said")

        def states() -> Counter[str]:
            found = client.search([*(f"uuid={','.join(uuids)}",), ".limit=100"])
            return Counter(bundle.state for bundle in found)

        eventually(lambda: states()["ready"] >= BUNDLES // 4, "a quarter of the bundles")
        with aws.batch.lock:
            running = [job.id for job in aws.batch.jobs.values() if job.status == "RUNNING"]
            victim = next(job_id for job_id in running if ":" in job_id or len(running) == 1)
            aws.batch.reclaim(victim)
        eventually(lambda: states() == {"ready": BUNDLES}, "all of the bundles")
        eventually(lambda: not aws.processes.running, "the workers leave")
        said = managers.command("status")
        assert said.returncode == 0, said.stderr
    workers = [job for job in aws.batch.jobs.values() if not job.size]
    assert {job.status for job in workers} == {"SUCCEEDED", "FAILED"}
    assert [job.id for job in workers if job.status == "FAILED"] == [victim]
    assert max(_living_at_once(aws)) <= 3
    # One definition for all of them, and what they need to show who they are in none.
    assert aws.calls("RegisterJobDefinition") == 1
    tokens = {asked["Value"] for asked in aws.asked("PutParameter")}
    assert tokens
    for token in tokens:
        assert token not in aws.sent()
        assert token not in (server.directory / "manager.log").read_text()


def _living_at_once(aws: FakeAws) -> list[int]:
    """How many workers lived at the start of each."""
    workers = [job for job in aws.batch.jobs.values() if not job.size and job.started]
    return [
        sum(
            (other.started or 0) <= (one.started or 0) < (other.stopped or float("inf"))
            for other in workers
        )
        for one in workers
    ]
