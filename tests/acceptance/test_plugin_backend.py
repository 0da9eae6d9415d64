"""The backend of docs/write-a-backend.md, installed as a package of its own, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import Managers, eventually
from serving import Server

PAGE = Path(__file__).parents[2] / "docs" / "write-a-backend.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package in it, as pip leaves it there; building it would need more than
    every machine has."""
    place = tmp_path_factory.mktemp("site")
    (place / "worker_manager_background.py").write_text(blocks("python")[0])
    project = tomllib.loads(blocks("toml")[0])["project"]
    about = place / f"worker_manager_background-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((group, offered),) = project["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in offered.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return place


@pytest.fixture
def managers(server: Server, site: Path) -> Iterator[Managers]:
    server.env["PYTHONPATH"] = str(site)
    made = Managers(server)
    try:
        yield made
    finally:
        made.close()


def test_a_plugin_plans_launches_and_ends_like_any_other(
    managers: Managers, tmp_path: Path
) -> None:
    assert "background" in managers.command("--help").stdout
    assert "--place" in managers.command("background", "--help").stdout
    place = tmp_path / "place"
    managers.stage(2)
    backend = ("background", "--place", str(place), "--worker-idle-seconds", "1")
    planned = managers.command(*backend, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "launch 2" in planned.stdout
    assert "would submit:" in planned.stdout
    assert f"--work-dir {place}/background-1-" in planned.stdout
    assert not place.exists()
    assert managers.json(*backend, "--plan", "-o", "json")["launch"] == {"background": 2}

    done = managers.command(*backend, "--once")
    assert done.returncode == 0, done.stderr
    with managers.server.client() as client:
        ready = ["state=ready", ".count"]
        eventually(lambda: client.count(ready) == 2, "the bundles are run")

    def jobs() -> list[dict[str, str]]:
        (pool,) = managers.json("status", "-o", "json")["pools"]
        found: list[dict[str, str]] = pool["jobs"]
        return found

    eventually(lambda: {job["state"] for job in jobs()} == {"ended"}, "the workers leave")
    assert {job["cause"] for job in jobs()} == {"finished"}
    (worker, *_) = [job["worker"] for job in jobs()]
    assert "started" in managers.command("logs", worker).stdout.lower()
    assert json.loads((place / worker / "mark").read_text())["pool"] == "background"


def test_workers_of_a_plugin_that_end_soon_are_given_nothing_long_and_others_are_launched(
    managers: Managers, site: Path, tmp_path: Path
) -> None:
    """The life of 40 s, of which a new worker has 30 s left at least, is only said: nobody ends
    these workers."""
    mortal = shutil.copytree(site, tmp_path / "mortal")
    with (mortal / "worker_manager_background.py").open("a") as module:
        module.write("\n\ndef lifetime_seconds(settings):\n    return 40.0\n")
    managers.server.env["PYTHONPATH"] = str(mortal)
    (held,) = managers.stage(command="sleep 1000")
    place = managers.jobs_directory / "background"
    managers.run("background", "--place", str(place), "--cpus", "2", "--worker-idle-seconds", "1")
    with managers.server.client() as client:

        def left_of_the_first() -> float:
            lives = [w["seconds_left"] for w in client.workers() if held in w["run_uuids"]]
            return lives[0] if lives else 40.0

        eventually(lambda: client.bundle(held).state == "running", "it runs")
        eventually(lambda: left_of_the_first() < 30.0, "its worker is no longer new")
        (unsaid,) = managers.stage()
        eventually(lambda: client.bundle(unsaid).state == "ready", "what says nothing is run there")
        (long,) = managers.stage(request_time="30s")
        eventually(lambda: client.bundle(long).state == "ready", "another worker is launched")
        first, beside, other = (
            client.bundle(uuid).metadata["remote_history"] for uuid in (held, unsaid, long)
        )
        assert first == beside
        assert first != other


def test_a_directory_that_is_none_is_said_and_nothing_is_launched(managers: Managers) -> None:
    done = managers.command("background", "--place", "/dev/null", "--min", "1", "--once")
    assert done.returncode == 1
    assert "--place: looking into /dev/null failed" in done.stderr
    done = managers.command("background")
    assert done.returncode == 2
    assert "--place" in done.stderr


def test_a_plugin_passes_the_conformance_suite(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_background.py").write_text(blocks("python")[1])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"),
            *("--basetemp", str(tmp_path / "of-tests"), "--rootdir", str(tmp_path)),
            str(tmp_path / "test_background.py"),
        ],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "there is nobody between us and the processes" in done.stdout
