"""AWS Batch of moto, which we did not write: its jobs run the worker's image and drain bundles."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import eventually
from docker_engine import DockerEngine
from managing import Managers
from moto_server import MotoServer
from serving import Server
from worker_image import WorkerImage

pytestmark = [pytest.mark.engine("docker"), pytest.mark.timeout(300)]

BUNDLES = 12


@pytest.fixture
def image(server: Server, worker_image: WorkerImage) -> str:
    return worker_image.with_token((server.home.path / "token").read_text().strip())


@pytest.fixture
def moto(tmp_path: Path, docker_engine: DockerEngine, image: str) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path, docker_engine)
    try:
        server.start()
        yield server
    finally:
        server.stop(image)


def test_jobs_of_moto_s_batch_run_the_worker_s_image_until_all_bundles_are_done(
    server: Server, moto: MotoServer, image: str
) -> None:
    moto.add_fargate_queue("workers")
    uuids = Managers(server).stage(BUNDLES)
    log = server.directory / "manager.log"
    with log.open("wb") as output:
        manager = subprocess.Popen(
            [
                *(sys.executable, "-m", "manager", "aws-batch", "--endpoint", moto.url),
                *("--job-queue", "workers", "--image", image, "--region", "us-east-1"),
                *("--execution-role", moto.add_role("execution")),
                # One at a time: moto does not tell the children of an array which they are.
                *("--min", "0", "--max", "2", "--min-seconds-between-workers", "0.5"),
                *("--sleep-time", "0.5", "--worker-idle-seconds", "2"),
                *("--worker-work-dir-prefix", "/var/lib/bundle-worker/work"),
            ],
            env=server.env,
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    batch = moto.client("batch")
    try:
        with server.client() as client:

            def states() -> Counter[str]:
                found = client.search([f"uuid={','.join(uuids)}", ".limit=100"])
                return Counter(bundle.state for bundle in found)

            eventually(lambda: states() == {"ready": BUNDLES}, f"bundles drain {log.read_text()}")
        eventually(lambda: _statuses(batch) <= {"SUCCEEDED"}, "the workers leave in good order")
        said = subprocess.run(
            [sys.executable, "-m", "manager", "status"],
            env=server.env,
            cwd=server.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        manager.send_signal(signal.SIGTERM)
        assert manager.wait(timeout=30) == 0, log.read_text()
    finally:
        manager.kill()
        manager.wait()
    definitions = batch.describe_job_definitions()["jobDefinitions"]
    assert [definition["revision"] for definition in definitions] == [1]
    (secret,) = definitions[0]["containerProperties"]["secrets"]
    kept = moto.client("ssm").get_parameter(
        Name=secret["valueFrom"].partition(":parameter")[2], WithDecryption=True
    )
    assert kept["Parameter"]["Type"] == "SecureString"
    assert kept["Parameter"]["Value"] not in log.read_text()


def _statuses(batch: object) -> set[str]:
    jobs = batch.list_jobs(  # type: ignore[attr-defined]
        jobQueue="workers", filters=[{"name": "JOB_NAME", "values": ["*"]}]
    )
    return {job["status"] for job in jobs["jobSummaryList"]}
