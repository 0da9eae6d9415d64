"""Our client, manager and worker with a real CodaLab server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from codalab_server import program
from codalab_user import CodalabUser
from docker_engine import IMAGE, DockerEngine
from managing import Managers, eventually
from worker_process import WorkerProcess

from bundles.client import Client
from bundles.errors import NotAuthenticated, NotFound
from bundles.home import Credentials

pytestmark = pytest.mark.engine("codalab")


@pytest.fixture
def managers(user: CodalabUser) -> Iterator[Managers]:
    managers = Managers(user)  # type: ignore[arg-type]
    try:
        yield managers
    finally:
        managers.close()


@pytest.fixture
def worker(user: CodalabUser, tmp_path: Path) -> Iterator[WorkerProcess]:
    """Our worker, not started yet, which is the user's."""
    worker = WorkerProcess(tmp_path, user.url, worker_id=f"worker-of-{user.name}")
    worker.env = dict(user.env)
    try:
        yield worker
    finally:
        worker.close()


# The client


def test_a_password_buys_a_token_and_a_wrong_one_is_refused(user: CodalabUser) -> None:
    with user.client() as client:
        assert client.whoami()["user_name"] == user.name
        assert client.features == frozenset()
    wrong = Credentials(username=user.name, password="wrong")
    with (
        Client(user.url, wrong) as client,
        pytest.raises(NotAuthenticated, match="does not accept the password"),
    ):
        client.whoami()


def test_every_staged_bundle_is_found_beyond_the_servers_limit_of_10(user: CodalabUser) -> None:
    uuids = {user.run("true") for _ in range(30)}
    user_words = ["state=staged", ".mine"]
    with user.client() as client:
        eventually(lambda: client.count(user_words) == 30, "30 staged bundles")
        found = client.search(user_words)
    assert len(found) == 30
    assert {bundle.uuid for bundle in found} == uuids
    assert found[0].resources.memory_bytes == 128 * 1024**2


def test_contents_go_up_and_come_back(user: CodalabUser, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    (directory / "inner").mkdir(parents=True)
    (directory / "inner" / "a.txt").write_text("hello\n")
    done = user.command("bundles", "upload", str(directory))
    assert done.returncode == 0, done.stderr
    uuid = done.stdout.strip()
    with user.client() as client:
        assert client.bundle(uuid).state == "ready"
        info = client.contents_info(uuid, depth=2)
        assert [(part.name, part.type) for part in info.contents] == [("inner", "directory")]
        with pytest.raises(NotFound):
            client.contents_info(uuid, "nothing")
    assert user.read(uuid, "inner/a.txt") == "hello\n"
    shown = user.command("bundles", "cat", f"{uuid}/inner/a.txt")
    assert (shown.returncode, shown.stdout) == (0, "hello\n")
    taken = user.command("bundles", "download", uuid, "-o", str(tmp_path / "back"))
    assert taken.returncode == 0, taken.stderr
    assert (tmp_path / "back" / "inner" / "a.txt").read_text() == "hello\n"


def test_the_command_bundles_queues_shows_kills_and_removes(user: CodalabUser) -> None:
    queued = user.command("bundles", "run", "--cpus", "2", "--queue", "nobody", "sleep 100")
    assert queued.returncode == 0, queued.stderr
    uuid = queued.stdout.strip()
    assert user.wait(uuid, "staged").metadata["request_cpus"] == 2
    listed = user.command("bundles", "ls", "-o", "json")
    assert listed.returncode == 0, listed.stderr
    assert uuid in listed.stdout
    shown = user.command("bundles", "info", uuid)
    assert (shown.returncode, "staged" in shown.stdout) == (0, True)
    killed = user.command("bundles", "kill", uuid)
    assert killed.returncode == 0, killed.stderr
    assert user.wait(uuid, "killed").state == "killed"
    waited = user.command("bundles", "wait", uuid)
    assert waited.returncode == 1
    removed = user.command("bundles", "rm", uuid)
    assert removed.returncode == 0, removed.stderr
    with user.client() as client, pytest.raises(NotFound):
        client.bundle(uuid)


# The manager


def test_the_manager_keeps_between_its_minimum_and_maximum(
    user: CodalabUser, managers: Managers
) -> None:
    managers.start("--min", "1", "--max", "2", "--sleep-time", "0.3")
    eventually(lambda: len(managers.workers()) == 1, "the minimum")
    managers.stage(12, request_memory="128m")
    eventually(lambda: len(managers.workers()) == 2, "the maximum")
    plan = managers.json("local-process", "--min", "1", "--max", "30", "--plan", "-o", "json")
    assert plan["staged"] == 12
    assert plan["active"] + plan["pending"] == 2


def test_a_plan_counts_what_fits_and_what_is_queued_for_the_tag(
    user: CodalabUser, managers: Managers
) -> None:
    for metadata in (
        {"request_memory": "128m"},
        {"request_memory": "64g"},
        {"request_cpus": 50},
        {"request_queue": "fast"},
        {"request_queue": "tag=fast"},
        {"request_queue": "other"},
    ):
        managers.stage(1, **{"request_memory": "128m", **metadata})
    with user.client() as client:
        eventually(lambda: client.count(["state=staged", ".mine"]) == 6, "six staged bundles")

    def staged(*options: str) -> int:
        plan = managers.json("local-process", "--min", "0", *options, "--plan", "-o", "json")
        count: int = plan["staged"]
        return count

    assert staged() == 1
    assert staged("--no-prefilter") == 6
    assert staged("--worker-tag", "fast") == 3
    assert staged("--worker-tag", "fast", "--worker-tag-exclusive") == 2
    assert staged("--search", "request_cpus=50", "--no-prefilter") == 1


def test_a_wrong_password_is_one_line_and_exit_1(user: CodalabUser, managers: Managers) -> None:
    user.env["CODALAB_PASSWORD"] = "wrong"
    done = managers.command("local-process", "--min", "1")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("worker-manager: ")]
    assert len(said) == 1
    assert "does not accept the password" in said[0]
    assert "Traceback" not in done.stderr
    assert managers.workers() == []


def test_while_the_server_is_away_nothing_is_launched(
    user: CodalabUser, managers: Managers
) -> None:
    manager = managers.start("--min", "0", "--max", "2", "--sleep-time", "0.3")
    eventually(lambda: "keeping" in managers.log(manager))
    user.server.stop_rest_server()
    try:
        eventually(lambda: "nothing is launched" in managers.log(manager), "the complaint")
        assert managers.workers() == []
    finally:
        user.server.start_rest_server()
    managers.stage(1, request_memory="128m")
    eventually(lambda: "carrying on" in managers.log(manager), "the manager to carry on")
    eventually(lambda: len(managers.workers()) == 1, "a worker")


def test_workers_that_the_manager_launches_drain_the_queue_and_leave(
    user: CodalabUser, managers: Managers
) -> None:
    uuids = managers.stage(4, command="echo $((6 * 7))", request_memory="128m")
    manager = managers.start(
        *("--min", "0", "--max", "2", "--sleep-time", "0.3", "--memory-mb", "512"),
        *("--worker-idle-seconds", "1", "--worker-checkin-frequency-seconds", "1"),
        *("--worker-delete-work-dir-on-exit",),
        stand_ins=False,
    )
    for uuid in uuids:
        user.wait(uuid, "ready")
        assert user.read(uuid, "stdout") == "42\n"
    eventually(lambda: "left with exit code 0" in managers.log(manager), "the workers to leave")
    eventually(lambda: managers.workers() == [], "every worker to leave")
    assert managers.kill(manager, signal.SIGTERM) == 0


@pytest.mark.engine("docker")
def test_codalabs_own_workers_are_launched_too(
    user: CodalabUser, managers: Managers, codalab_python: Path, docker_engine: DockerEngine
) -> None:
    worker = user.directory / "cl-worker"
    words = " ".join(program(codalab_python, "worker"))
    worker.write_text(f'#!/bin/sh\nexport HOME={user.directory}\nexec {words} "$@"\n')
    worker.chmod(0o755)
    user.env.update(docker_engine.env)
    uuid = user.run("echo hello", request_docker_image=IMAGE)
    manager = managers.start(
        *("--min", "0", "--max", "1", "--sleep-time", "0.3", "--memory-mb", "512"),
        *("--worker-executable", str(worker), "--worker-idle-seconds", "1"),
        *("--worker-checkin-frequency-seconds", "1"),
        stand_ins=False,
    )
    user.wait(uuid, "ready")
    assert user.read(uuid, "stdout") == "hello\n"
    eventually(lambda: "left with exit code 0" in managers.log(manager), "the worker to leave")


# The worker


def test_our_worker_runs_bundles_over_each_other_and_hands_in_what_they_leave(
    user: CodalabUser, worker: WorkerProcess
) -> None:
    (user.directory / "a.txt").write_text("hello\n")
    data = user.command("bundles", "upload", str(user.directory / "a.txt")).stdout.strip()
    first = user.run("cat in in > out; mkdir d; echo x > d/skip.tmp", [("in", data, "")])
    second = user.run("cat whole/out part", [("whole", first, ""), ("part", first, "out")])
    broken = user.run("echo oops >&2; exit 3")
    child = user.run("true", [("p", broken, "")])
    worker.start("--runtime", "process")
    assert user.wait(second, "ready").metadata["exitcode"] == 0
    assert user.read(first, "out") == "hello\n" * 2
    assert user.read(second, "stdout") == "hello\n" * 4
    failed = user.wait(broken, "failed")
    assert failed.metadata["exitcode"] == 3
    assert "3" in failed.metadata["failure_message"]
    assert user.read(broken, "stderr") == "oops\n"
    assert user.wait(child, "failed").state == "failed"


def test_a_bundle_that_our_worker_runs_can_be_read_and_killed(
    user: CodalabUser, worker: WorkerProcess
) -> None:
    worker.start("--runtime", "process")
    uuid = user.run("echo started; sleep 1000")
    user.wait(uuid, "running")
    with user.client() as client:
        eventually(lambda: client.contents_info(uuid, depth=1).contents, "files")
        names = {part.name for part in client.contents_info(uuid, depth=1).contents}
        assert {"stdout", "stderr"} <= names
    eventually(lambda: user.read(uuid, "stdout") == "started\n", "what it said")
    done = user.command("bundles", "kill", uuid)
    assert done.returncode == 0, done.stderr
    killed = user.wait(uuid, "killed")
    assert killed.metadata["failure_message"].startswith("Kill requested")
    assert user.read(uuid, "stdout") == "started\n"


def test_our_worker_gives_its_bundle_back_when_it_is_ended(
    user: CodalabUser, worker: WorkerProcess
) -> None:
    worker.start("--runtime", "process", "--pass-down-termination")
    uuid = user.run("sleep 1000")
    user.wait(uuid, "running")
    worker.stop()
    assert user.wait(uuid, "staged").state == "staged"


def test_our_worker_started_again_carries_on_with_its_bundle(
    user: CodalabUser, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.start("--runtime", "process")
    go = tmp_path / "go"
    uuid = user.run(f"echo before; until [ -e {go} ]; do sleep 0.1; done; echo after")
    user.wait(uuid, "running")
    worker.kill()
    go.touch()
    worker.start("--runtime", "process")
    user.wait(uuid, "ready")
    assert user.read(uuid, "stdout") == "before\nafter\n"
