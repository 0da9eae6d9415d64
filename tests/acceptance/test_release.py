"""What a release publishes: built from the files of the repository, checked, installed, used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from bundles import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("manager", "backends", "worker", "bundles")
COMMANDS = ("worker-manager", "bundle-worker", "bundles")
WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"

pytestmark = pytest.mark.timeout(300)


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one sdist, and of the wheel that was built from it."""
    place = tmp_path_factory.mktemp("release")
    for name in tracked():
        copy = place / "sources" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    made = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(place / "dist"), str(place / "sources")],
        env={**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return place / "dist"


def the_wheel(dist: Path) -> Path:
    return dist / f"worker_manager-{__version__}-py3-none-any.whl"


def test_one_sdist_and_one_wheel_of_this_version_pass_the_indexs_checks(dist: Path) -> None:
    sdist = f"worker_manager-{__version__}.tar.gz"
    assert {path.name for path in dist.iterdir()} == {sdist, the_wheel(dist).name}
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())],
        env={**os.environ, "PYTHONWARNINGS": ""},
        timeout=120,
        check=True,
    )


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(dist: Path) -> None:
    about = f"worker_manager-{__version__}.dist-info"
    with zipfile.ZipFile(the_wheel(dist)) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{about}/")}
        metadata = Parser().parsestr(wheel.read(f"{about}/METADATA").decode())
        commands = ConfigParser()
        commands.read_string(wheel.read(f"{about}/entry_points.txt").decode())
        assert f"{about}/licenses/LICENSE" in wheel.namelist()
    assert names == {
        name for name in tracked() if name.startswith(tuple(f"{p}/" for p in PACKAGES))
    }
    assert names >= {f"{package}/py.typed" for package in PACKAGES}
    assert metadata["Version"] == __version__
    assert {*commands["console_scripts"]} == {*COMMANDS}


def test_the_sdist_has_what_it_takes_to_build_it_and_no_tests(dist: Path) -> None:
    top = f"worker_manager-{__version__}"
    with tarfile.open(dist / f"{top}.tar.gz") as sdist:
        names = {name.removeprefix(f"{top}/") for name in sdist.getnames()}
    assert names >= {"pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"}
    assert not [name for name in names if name.startswith(("tests", "terraform", "benchmarks"))]


def test_what_is_installed_from_the_wheel_does_the_main_job(dist: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "venv", str(place)], timeout=120, check=True)
    python = place / "bin" / "python"
    subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-index", str(the_wheel(dist))),
        ],
        timeout=120,
        check=True,
    )
    # What it depends on is that of the tests: nothing of this repository lies there.
    packages = sysconfig.get_path("purelib", vars={"base": str(place)})
    (Path(packages) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WORKER_MANAGER_", "CODALAB_", "PYTHON"))
    } | {"TMPDIR": str(tmp_path)}

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [str(place / "bin" / arguments[0]), *arguments[1:]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in COMMANDS:
        assert said(command, "--help").startswith(f"Usage: {command} ")
        assert said(command, "--version") == f"{command} {__version__}\n"
    where = said("python", "-c", "import manager, worker; print(manager.__file__, worker.__file__)")
    assert all(name.startswith(str(packages)) for name in where.split())
    said("worker-manager", "demo", "--json")


@pytest.mark.parametrize(
    ("tag", "heading", "complaint"),
    [
        (f"v{__version__}", f"## {__version__} - 2030-01-01", None),
        ("v99.0.0", f"## {__version__} - 2030-01-01", "bundles.__version__"),
        (f"v{__version__}", "## Unreleased", "CHANGELOG.md"),
    ],
)
def test_a_tag_that_is_not_the_version_or_not_in_the_changelog_is_not_published(
    tmp_path: Path, tag: str, heading: str, complaint: str | None
) -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (step,) = (
        step
        for step in workflow["jobs"]["build"]["steps"]
        if "GITHUB_REF_NAME" in step.get("run", "")
    )
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is (complaint is None), done.stderr
    assert (complaint or "") in done.stderr
    assert {workflow["jobs"][job]["needs"] for job in ("publish", "images")} == {"build"}
