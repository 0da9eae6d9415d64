"""`worker-manager demo` with workers in containers: the same job, and nothing is left either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import DockerEngine
from worker_image import WorkerImage

pytestmark = [pytest.mark.engine("docker"), pytest.mark.timeout(300)]  # the image is built first

DEMO = [*(sys.executable, "-m", "manager", "demo", "--backend", "local-docker")]
DEMO += ["--image", WorkerImage.reference]


@pytest.fixture
def environment(worker_image: WorkerImage, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {**os.environ, **worker_image.engine.env, "TMPDIR": str(tmp_path)}
    left = containers(worker_image.engine)
    if left:
        worker_image.engine.command("rm", "--force", *left)
    assert left == []
    assert list(tmp_path.iterdir()) == []


def containers(engine: DockerEngine) -> list[str]:
    ours = ("--filter", "label=worker-manager.pool=demo")
    return engine.command("ps", "--all", "--quiet", *ours).split()


def test_the_demo_does_the_main_job_in_containers(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*DEMO, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["bundles"] == 20
    assert outcome["matches_direct_count"] is True
    assert outcome["workers_left"] == 0


def test_the_demo_stopped_half_way_leaves_no_container(
    environment: dict[str, str], docker_engine: DockerEngine
) -> None:
    with subprocess.Popen(
        DEMO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "count-" in line and "running" in line:
                break
        assert containers(docker_engine)
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=100)
        assert demo.returncode == 130


def test_an_image_is_asked_for_where_one_is_needed() -> None:
    for options in (["--backend", "local-docker"], ["--image", "x"]):
        done = subprocess.run(
            [sys.executable, "-m", "manager", "demo", *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "needs an --image" in done.stderr
