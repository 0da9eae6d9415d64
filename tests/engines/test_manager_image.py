"""The image of the manager that deploy/Dockerfile makes."""

from __future__ import annotations

import json
import re

import pytest
from docker_engine import DockerEngine
from worker_image import ABOUT, ROOT

from backends.registry import OURS
from bundles import __version__

pytestmark = [
    pytest.mark.engine("docker"),
    pytest.mark.timeout(600),  # the first one waits until the image is built
]

USER = "1000:1000"
README = (ROOT / "deploy" / "README.md").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
RUN = ("run", "--rm", "--network", "none", "--read-only")

PROBE = """
import importlib.util, os, shutil
for name in ("pip", "setuptools"):
    assert importlib.util.find_spec(name) is None, name
assert shutil.which("bundles") and shutil.which("bundle-worker")
assert not os.path.exists("/build")
"""

# Whatever our packages import anywhere, also inside of functions, where SDKs are imported.
IMPORTS = """
import ast, importlib, json, pathlib
import bundles
wanted = {"psycopg"}  # by SQLAlchemy
for package in ("backends", "bundles", "manager"):
    for path in (pathlib.Path(bundles.__file__).parents[1] / package).rglob("*.py"):
        if path.parent.name == "conformance":  # what plug-ins are tested with
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                wanted.add(node.module)
for name in sorted(wanted):
    importlib.import_module(name)
print(json.dumps(sorted(wanted)))
"""

DOCTOR = 'worker-manager doctor "$@" 2>&1; [ $? -eq 1 ]'
DOCTORED = {
    "aws-batch": ("--region", "eu-west-1", "--job-queue", "a"),
    "azure-batch": ("--service-url", "https://a.example.org", "--pool-id", "a", "--job-id", "a"),
    "gcp-batch": ("--project", "a", "--region", "europe-west4"),
}


def test_the_image_is_a_manager_of_its_own_user_without_what_built_it(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    assert (
        docker_engine.command(*RUN, manager_image, "--version") == f"worker-manager {__version__}\n"
    )
    docker_engine.command(*RUN, "--entrypoint", "python3", manager_image, "-c", PROBE)
    about = json.loads(docker_engine.command("image", "inspect", manager_image))[0]["Config"]
    assert about["User"] == USER
    labels = {"title": "worker-manager", **ABOUT}
    assert (
        about["Labels"].items()
        >= {f"org.opencontainers.image.{name}": value for name, value in labels.items()}.items()
    )


def test_whatever_is_imported_anywhere_is_in_it_all_sdks_among_it(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    said = docker_engine.command(*RUN, "--entrypoint", "python3", manager_image, "-c", IMPORTS)
    sdks = {"azure.batch", "azure.identity", "azure.storage.blob", "boto3", "docker.errors"}
    sdks |= {"google.cloud.batch_v1", "google.cloud.logging", "google.cloud.secretmanager_v1"}
    assert {*json.loads(said)} >= sdks


def test_every_backend_explains_itself_in_it(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    for entry in OURS:
        said = docker_engine.command(*RUN, manager_image, entry.name, "--help")
        assert said.startswith("Usage: "), entry.name


@pytest.mark.parametrize("backend", DOCTORED)
def test_the_doctor_in_it_gets_as_far_as_the_credentials_of_a_cloud(
    backend: str, manager_image: str, docker_engine: DockerEngine
) -> None:
    said = docker_engine.command(
        *(*RUN, "--entrypoint", "sh", manager_image, "-c", DOCTOR, "doctor"),
        *(backend, *DOCTORED[backend], "--image", "worker:1"),
    )
    assert f"{backend} can be loaded" in said
    assert re.search("^fail  jobs-listed .*: no credentials", said, re.MULTILINE)
    assert "Traceback" not in said


def test_what_is_in_it_is_found_by_who_lists_packages(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    """By the command that deploy/README.md gives."""
    (listing,) = re.findall(r"python3 worker-manager -c \\\n +'(.*)'\n", README)
    said = docker_engine.command(*RUN, "--entrypoint", "python3", manager_image, "-c", listing)
    listed = dict(line.split("==") for line in said.splitlines())
    assert listed["worker-manager"] == __version__
    pins = dict(
        line.split("==") for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")
    )
    assert {name: pins[name] for name in listed.keys() - {"worker-manager"}} == {
        name: listed[name] for name in listed.keys() - {"worker-manager"}
    }


def test_its_own_command_keeps_the_pools_of_a_file_and_is_what_its_health_check_asks(
    manager_image: str, docker_engine: DockerEngine
) -> None:
    """The port is said twice: in the command, and in the check."""
    about = json.loads(docker_engine.command("image", "inspect", manager_image))[0]["Config"]
    assert about["Entrypoint"] == ["worker-manager"]
    command, option, port, file = about["Cmd"]
    assert (command, option, file) == ("run", "--metrics-port", "/etc/worker-manager/pools.toml")
    assert f"http://127.0.0.1:{port}/healthz" in about["Healthcheck"]["Test"][-1]
