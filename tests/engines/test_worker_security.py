"""What a bundle tries against its worker and against others, in each runtime that confines it."""

from __future__ import annotations

from pathlib import Path

import pytest
from containers import Containers, eventually, touch

from bundles.errors import BundlesError, UsageError

pytestmark = pytest.mark.engine("docker")

RUNTIMES = {
    "docker": ("--runtime", "docker"),
    "bubblewrap": ("--runtime", "process", "--sandbox", "bubblewrap"),
}
WAIT = "echo here > here; while [ ! -e go ]; do sleep 0.05; done"


@pytest.fixture(
    params=[
        pytest.param("docker"),
        pytest.param("bubblewrap", marks=pytest.mark.engine("bubblewrap")),
    ]
)
def runtime(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return RUNTIMES[request.param]


def start(stand: Containers, runtime: tuple[str, ...]) -> str:
    """A worker whose token is in its environment; the token."""
    token = (stand.server.home.path / "token").read_text().strip()
    worker = stand.worker()
    worker.env["WORKER_MANAGER_TOKEN"] = token
    worker.start(*runtime, "--cpus", "2")
    return token


def until_here(stand: Containers, uuid: str) -> Path:
    stand.until(uuid, "running")
    eventually((stand.place(uuid) / "here").exists, "the command runs")
    return stand.place(uuid)


def upload(stand: Containers, name: str, content: str) -> str:
    path = stand.directory / name
    path.write_text(content)
    return stand.server.output("upload", str(path)).strip()


def test_no_secret_of_the_worker_is_within_reach(
    containers: Containers, runtime: tuple[str, ...]
) -> None:
    token = start(containers, runtime)
    worker = containers.worker()
    assert worker.process is not None
    own = containers.work / "workers" / "w1"
    secrets = [
        containers.server.home.path / "token",
        containers.engine.socket,
        own / "lock",
        own / "runs",
        containers.work / "dependencies",
        Path(f"/proc/{worker.process.pid}/environ"),
        Path(f"/proc/{worker.process.pid}/cwd/{worker.log_path.name}"),
    ]
    run = containers.run(
        "; ".join(f"(ls {path} || cat {path}) && echo REA''CHED {path}" for path in secrets)
        + "; cat /proc/*/environ /proc/*/cmdline; cat /proc/self/mountinfo > mounts; true"
    )
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    said = containers.read(run)
    assert "REACHED" not in said
    assert token not in said
    assert "TOKEN" not in said
    assert worker.worker_id not in said.split("\0")
    for secret in secrets:
        assert f" {secret} " not in containers.read(run, "mounts")
    containers.leave()


def test_no_process_but_its_own_can_be_signalled(
    containers: Containers, runtime: tuple[str, ...]
) -> None:
    start(containers, runtime)
    process = containers.worker().process
    assert process is not None
    run = containers.run(f"kill -9 {process.pid}; kill -9 -1; echo lived")
    assert containers.end(run).final
    assert process.poll() is None
    after = containers.run("echo after")
    assert containers.end(after).state == "ready"
    containers.leave()


def test_a_dependency_cannot_be_changed_for_others(
    containers: Containers, runtime: tuple[str, ...]
) -> None:
    data = upload(containers, "data", "as it was\n")
    start(containers, runtime)
    ways = [
        "echo changed > in",
        "chmod 777 in && echo changed >> in",
        "rm $(readlink in)",
        "ln $(readlink in) mine && chmod 777 mine && echo changed > mine",
        "truncate -s 0 in",
        "mv other $(readlink in)",
    ]
    attacker = containers.run(
        "echo x > other; " + "; ".join(f"({way}) 2>&-" for way in ways) + "; true",
        dependencies=[("in", data)],
    )
    assert containers.end(attacker).state == "ready"
    reader = containers.run("cat in", dependencies=[("in", data)])
    assert containers.end(reader).state == "ready"
    assert containers.read(reader) == "as it was\n"
    containers.leave()


def test_links_in_its_directory_lead_nobody_out(
    containers: Containers, runtime: tuple[str, ...], tmp_path: Path
) -> None:
    outside = containers.directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the machine")
    start(containers, runtime)
    neighbour = containers.run("echo theirs > theirs; " + WAIT)
    theirs = until_here(containers, neighbour) / "theirs"
    links = {
        "file": outside / "secret",
        "directory": outside,
        "other": theirs,
        "up": Path("../../../../.."),
        "record": Path("../run.json"),
        "environment": Path("/proc/self/environ"),
    }
    run = containers.run(
        "; ".join(f"ln -s {target} {name}" for name, target in links.items()) + "; " + WAIT
    )
    place = until_here(containers, run)
    for path in (*links, "directory/secret", "up/etc/passwd"):
        with pytest.raises(BundlesError):
            containers.read(run, path)
    files = containers.files(run, tmp_path / "while-it-runs")
    assert {path.name for path in files.iterdir()} <= {"here", "stdout", "stderr"}
    touch(place / "go")
    assert containers.end(run).state == "ready"
    for path in (*links, "directory/secret"):
        with pytest.raises(BundlesError):
            containers.read(run, path)
    files = containers.files(run, tmp_path / "after-it")
    assert not [path for path in files.iterdir() if path.is_symlink()]
    touch(theirs.parent / "go")
    assert containers.end(neighbour).state == "ready"
    containers.leave()


@pytest.mark.parametrize("key", ["../out", "/out", "a/../../out"])
def test_a_key_that_leaves_the_directory_is_refused(containers: Containers, key: str) -> None:
    data = upload(containers, "data", "x")
    with pytest.raises(UsageError):
        containers.run("true", dependencies=[(key, data)])
