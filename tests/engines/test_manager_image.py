"""The image of the manager that deploy/Dockerfile makes."""

from __future__ import annotations

import json

import pytest
from docker_engine import DockerEngine

from bundles import __version__

pytestmark = [
    pytest.mark.engine("docker"),
    pytest.mark.timeout(600),  # the first one waits until the image is built
]

USER = "1000:1000"
PROBE = """
import importlib.util, os, shutil
for name in ("pip", "setuptools"):
    assert importlib.util.find_spec(name) is None, name
for name in ("docker", "psycopg"):
    assert importlib.util.find_spec(name) is not None, name
assert shutil.which("bundles") and shutil.which("bundle-worker")
assert not os.path.exists("/build")
"""


def test_the_image_is_a_manager_of_its_own_user_without_what_built_it(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    run = ("run", "--rm", "--network", "none", "--read-only")
    said = docker_engine.command(*run, manager_image, "--version")
    assert said == f"worker-manager {__version__}\n"
    docker_engine.command(*run, "--entrypoint", "python3", manager_image, "-c", PROBE)
    about = json.loads(docker_engine.command("image", "inspect", manager_image))[0]["Config"]
    assert about["User"] == USER
    assert about["Labels"]["org.opencontainers.image.title"] == "worker-manager"


def test_its_own_command_keeps_the_pools_of_a_file_and_is_what_its_health_check_asks(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    """The port is said twice: in the command, and in the check."""
    about = json.loads(docker_engine.command("image", "inspect", manager_image))[0]["Config"]
    assert about["Entrypoint"] == ["worker-manager"]
    command, option, port, file = about["Cmd"]
    assert (command, option, file) == ("run", "--metrics-port", "/etc/worker-manager/pools.toml")
    assert f"http://127.0.0.1:{port}/healthz" in about["Healthcheck"]["Test"][-1]
