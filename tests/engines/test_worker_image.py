"""Workers in containers of the image that deploy/Dockerfile makes."""

from __future__ import annotations

import pytest
from docker_engine import DockerEngine
from worker_image import WorkerImage

from bundles import __version__

pytestmark = pytest.mark.engine("docker")


def test_the_image_is_a_worker_that_is_not_root(
    worker_image: WorkerImage, docker_engine: DockerEngine
) -> None:
    said = docker_engine.command("run", "--rm", worker_image.reference, "--version")
    assert said == f"bundle-worker {__version__}\n"
