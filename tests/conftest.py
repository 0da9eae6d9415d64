"""Which engines are there, and what becomes of the tests that need one that is not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest


def find_postgresql() -> Path | None:
    """The directory of `initdb` and `postgres`."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if installed:
        return installed[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def find_docker() -> Path | None:
    """`dockerd`, of which the tests start one of their own: as root only."""
    found = shutil.which("dockerd")
    return Path(found) if found and shutil.which("docker") and os.geteuid() == 0 else None


def find_docker_compose() -> list[str] | None:
    """Docker's plug-in, or the program that was there before it."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = "cli-plugins/docker-compose"
    places = ("/usr/libexec/docker", "/usr/lib/docker", "/usr/local/lib/docker")
    if any((Path(place) / plugin).exists() for place in places):
        return ["docker", "compose"]
    return None


def find_registry() -> Path | None:
    """Debian's `docker-registry`, which a test pushes images to."""
    found = shutil.which("docker-registry")
    return Path(found) if found else None


def find_slurm() -> Path | None:
    """`slurmctld`, of which the tests start a cluster of their own: as root only."""
    programs = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
    found = [shutil.which(program) for program in programs]
    return Path(found[0]) if all(found) and found[0] and os.geteuid() == 0 else None


def find_azure_description() -> Path | None:
    """The published description of Azure Batch that tests/engines/install fetched."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    file = Path(cache) / "worker-manager" / "azure-description" / "batch-BatchService.json"
    return file if file.exists() else None


def find_codalab() -> Path | None:
    """The Python of the environment into which tests/engines/install put CodaLab."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("CODALAB_ENGINE") or Path(cache) / "worker-manager" / "codalab")
    return place / "bin" / "python" if (place / "installed").exists() else None


def find_checkov() -> Path | None:
    """The `checkov` of the environment into which tests/engines/install put it."""
    return _installed("checkov", "bin/checkov")


def _installed(name: str, program: str) -> Path | None:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(cache) / "worker-manager" / name
    return place / program if (place / "installed").exists() else None


def find_bubblewrap() -> Path | None:
    """`bwrap`, which may need user namespaces: a test that has it fails where those are not."""
    found = shutil.which("bwrap")
    return Path(found) if found else None


def find_podman() -> Path | None:
    """`podman`, whose service the tests start with Docker's client to drive it: as root only."""
    found = shutil.which("podman")
    return Path(found) if found and shutil.which("docker") and os.geteuid() == 0 else None


def find_terraform() -> Path | None:
    """A mirror of Terraform's providers that has AWS's, beside a `terraform` to use it: where
    TERRAFORM_MIRROR says, or where Terraform looks by itself, or below /opt."""
    places = [
        *(Path(place) for place in [os.environ.get("TERRAFORM_MIRROR")] if place),
        Path.home() / ".terraform.d" / "plugins",
        Path("/usr/local/share/terraform/plugins"),
        Path("/usr/share/terraform/plugins"),
        *sorted(Path("/opt").glob("*")),
    ]
    for place in places:
        if (place / "registry.terraform.io" / "hashicorp" / "aws").is_dir():
            return place if shutil.which("terraform") else None
    return None


def find_terraform_offline() -> tuple[Path, Path] | None:
    """`run.sh DIRECTORY COMMAND…`, which runs terraform with stand-ins for the providers of Azure
    and Google Cloud that know their schemas; and the Python that it needs. In the directory that
    TERRAFORM_OFFLINE names, or in `shared` beside this repository."""
    beside = Path(__file__).parents[2] / "shared" / "tools" / "terraform-offline"
    program = Path(os.environ.get("TERRAFORM_OFFLINE") or beside) / "run.sh"
    python = _installed("terraform-offline", "bin/python")
    return (program, python) if program.exists() and python and shutil.which("terraform") else None


def find_systemd() -> Path | None:
    """systemd's program, which need not run, and `systemd-analyze` beside it."""
    program = Path("/lib/systemd/systemd")
    return program if program.exists() and shutil.which("systemd-analyze") else None


ENGINES: dict[str, Callable[[], object]] = {
    "postgresql": find_postgresql,
    "docker": find_docker,
    "docker-compose": find_docker_compose,
    "docker-registry": find_registry,
    "podman": find_podman,
    "bubblewrap": find_bubblewrap,
    "slurm": find_slurm,
    "azure-description": find_azure_description,
    "codalab": find_codalab,
    "terraform": find_terraform,
    "terraform-offline": find_terraform_offline,
    "checkov": find_checkov,
    "systemd": find_systemd,
}
BROUGHT_ALONG = {
    "terraform": "put it on PATH, and `terraform providers mirror` into TERRAFORM_MIRROR",
    "terraform-offline": "put terraform on PATH, set TERRAFORM_OFFLINE, and run `make engines`",
}
"""Engines that `make engines` cannot install, and what to do: left out by name wherever they are
missing, also where REQUIRE_ENGINES says that the others are all there."""


def pytest_configure() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and children inherit that:
    the commands under test are to be interrupted all the same."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests of missing engines, or fail where REQUIRE_ENGINES says that all are there.

    A real engine has bad moments on a busy machine: its tests have a second try, which the summary
    shows. Not those that look for what is rarely wrong.
    """
    for item in items:
        for marker in item.iter_markers("engine"):
            name = marker.args[0]
            if ENGINES[name]() is not None:
                continue
            if os.environ.get("REQUIRE_ENGINES") and name not in BROUGHT_ALONG:
                raise pytest.UsageError(f"{item.nodeid} needs {name}, which is not installed")
            remedy = BROUGHT_ALONG.get(name, "run `make engines`")
            item.add_marker(pytest.mark.skip(reason=f"needs {name}: {remedy}"))
        if item.get_closest_marker("engine") and "chaos" not in item.path.name:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def docker_compose() -> list[str]:
    """What `docker compose` is on this machine."""
    found = find_docker_compose()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def azure_description() -> Path:
    """An OpenAPI document."""
    file = find_azure_description()
    assert file is not None
    return file


@pytest.fixture(scope="session")
def terraform_mirror() -> Path:
    """What `terraform init -plugin-dir` takes."""
    mirror = find_terraform()
    assert mirror is not None
    return mirror


@pytest.fixture(scope="session")
def terraform_offline() -> tuple[Path, Path]:
    """`run.sh`, and the Python that it needs."""
    found = find_terraform_offline()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The program."""
    found = find_checkov()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def codalab_python() -> Path:
    """The Python in which CodaLab is installed."""
    python = find_codalab()
    assert python is not None
    return python
