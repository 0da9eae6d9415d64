"""CodaLab's own worker and manager with our server."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from codalab_server import PASSWORD, clean_environment, program
from codalab_user import queue_run, read, wait_for
from docker_engine import IMAGE, DockerEngine
from managing import eventually
from serving import Server

from bundles.client import Client
from bundles.errors import NotFound
from bundles.home import Credentials
from bundles.model import new_uuid

USER = "ann"

STOP_SECONDS = 40.0
"""Its websocket thread looks every ten seconds whether it should end."""


class CodalabWorker:
    """`cl-worker` over Docker; started again it carries on in the same directory."""

    def __init__(self, python: Path, engine: DockerEngine, server: Server) -> None:
        self.id = "their-worker"
        self.directory = server.directory / "their-work"
        self._python = python
        self._log = server.directory / "their-worker.log"
        self._url = server.url
        self._env = clean_environment(
            CODALAB_USERNAME=USER,
            CODALAB_PASSWORD=PASSWORD,
            HOME=str(server.directory),
            **engine.env,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = program(
            self._python,
            "worker",
            *("--server", self._url, "--id", self.id, "--work-dir", str(self.directory)),
            *("--gpuset", "NONE", "--network-prefix", "their-worker", "--verbose"),
            *("--checkin-frequency-seconds", "1"),
        )
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        return process.wait(timeout=STOP_SECONDS)

    def close(self) -> None:
        if self._process is not None:
            self.stop(signal.SIGKILL)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("ours"))
    server.start()
    try:
        with server.client() as admin:
            admin.add_user(USER, PASSWORD)
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, Credentials(username=USER, password=PASSWORD)) as client:
        yield client


@pytest.fixture(scope="module")
def worker(
    codalab_python: Path, docker_engine: DockerEngine, server: Server, client: Client
) -> Iterator[CodalabWorker]:
    worker = CodalabWorker(codalab_python, docker_engine, server)
    worker.start()
    try:
        eventually(lambda: client.workers(), "the worker to check in")
        yield worker
    finally:
        worker.close()


def run(client: Client, command: str, *dependencies: tuple[str, str, str], **metadata: Any) -> str:
    return queue_run(client, command, dependencies, request_docker_image=IMAGE, **metadata)


def upload(client: Client, name: str, content: bytes) -> str:
    uuid = new_uuid()
    client.create([{"uuid": uuid, "bundle_type": "dataset", "metadata": {"name": name}}])
    client.upload(uuid, content, filename=name, finalize=True)
    return uuid


@pytest.mark.engine("codalab")
@pytest.mark.engine("docker")
def test_their_worker_runs_bundles_over_each_other_and_is_told_that_we_have_them(
    client: Client, worker: CodalabWorker
) -> None:
    data = upload(client, "a.txt", b"hello\n")
    first = run(
        client,
        "cat in > out; mkdir d; echo x > d/left.tmp; echo y > d/kept",
        ("in", data, ""),
        exclude_patterns=["*.tmp"],
    )
    broken = run(client, "echo oops >&2; exit 3")
    second = run(client, "cat whole/out part", ("whole", first, ""), ("part", first, "out"))
    child = run(client, "true", ("p", broken, ""))
    ready = wait_for(client, second, "ready")
    assert ready.metadata["exitcode"] == 0
    assert ready.metadata["remote_history"] == [worker.id]
    assert read(client, second, "stdout") == "hello\n" * 2
    assert read(client, first, "d/kept") == "y\n"
    with pytest.raises(NotFound):
        client.contents_info(first, "d/left.tmp")
    failed = wait_for(client, broken, "failed")
    assert (failed.metadata["exitcode"], failed.metadata["failure_message"]) == (3, "Exit code 3")
    assert read(client, broken, "stderr") == "oops\n"
    assert wait_for(client, child, "failed").state == "failed"
    eventually(lambda: not list((worker.directory / "runs").iterdir()), "the runs' directories")
    assert client.workers()[0]["run_uuids"] == []


@pytest.mark.engine("codalab")
@pytest.mark.engine("docker")
def test_a_bundle_that_their_worker_runs_is_read_written_to_and_killed(
    client: Client, worker: CodalabWorker
) -> None:
    uuid = run(client, "echo started; until [ -e note ]; do sleep 0.1; done; cat note; sleep 1000")
    wait_for(client, uuid, "running")
    info = client.contents_info(uuid, depth=1)
    assert {"stdout", "stderr"} <= {part.name for part in info.contents}
    client.act([{"type": "write", "uuid": uuid, "subpath": "note", "string": "noted"}])
    eventually(lambda: read(client, uuid, "stdout") == "started\nnoted", "the note to be read")
    assert "Got websocket message" in worker.log
    client.act([{"type": "kill", "uuid": uuid}])
    killed = wait_for(client, uuid, "killed")
    assert killed.metadata["failure_message"] == "Kill requested"
    assert read(client, uuid, "stdout") == "started\nnoted"


@pytest.mark.engine("codalab")
@pytest.mark.engine("docker")
def test_their_worker_started_again_carries_on_with_its_bundle(
    client: Client, worker: CodalabWorker
) -> None:
    uuid = run(client, "echo before; until [ -e go ]; do sleep 0.1; done; echo after")
    wait_for(client, uuid, "running")
    assert worker.stop() == 0
    assert client.bundle(uuid).state == "running"
    worker.start()
    client.act([{"type": "write", "uuid": uuid, "subpath": "go", "string": ""}])
    wait_for(client, uuid, "ready")
    assert read(client, uuid, "stdout") == "before\nafter\n"


# CodaLab's manager

SLURM = """#!/bin/sh
# Answers like Slurm with every job running; sbatch keeps the scripts that it is given.
case "$(basename "$0")" in
  sbatch)
    number=$(ls "$STANDIN" | wc -l)
    cp "$1" "$STANDIN/$number"
    echo "Submitted batch job $number" ;;
  scontrol) echo "JobId=$4 JobState=RUNNING Reason=None" ;;
  squeue) case "$*" in *RUNNING*) ls "$STANDIN" ;; esac ;;
esac
"""


@pytest.mark.engine("codalab")
def test_their_manager_sees_what_is_staged_for_it_and_launches_up_to_its_maximum(
    client: Client, server: Server, codalab_python: Path, tmp_path: Path
) -> None:
    tools, submitted = tmp_path / "tools", tmp_path / "submitted"
    tools.mkdir()
    submitted.mkdir()
    for name in ("sbatch", "scontrol", "squeue"):
        (tools / name).write_text(SLURM)
        (tools / name).chmod(0o755)
    env = clean_environment(
        CODALAB_USERNAME=USER,
        CODALAB_PASSWORD=PASSWORD,
        HOME=str(tmp_path),
        STANDIN=str(submitted),
        PATH=f"{tools}:{os.environ['PATH']}",
    )
    command = program(
        codalab_python,
        "worker-manager",
        *("--server", server.url, "--min-workers", "0", "--max-workers", "2"),
        *("--sleep-time", "1", "--min-seconds-between-workers", "0", "--verbose"),
        *("--worker-tag", "theirs", "--worker-tag-exclusive"),
        *("slurm-batch", "--partition", "p", "--gpus", "0", "--cpus", "2"),
    )
    ignored = [
        queue_run(client, "true", request_queue="other"),
        queue_run(client, "true", request_queue="theirs", request_cpus=64),
    ]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=output, stderr=output)
    try:
        eventually(lambda: log.read_text().count("Sleeping") >= 2, "two looks")
        assert list(submitted.iterdir()) == []
        wanted = [queue_run(client, "true", request_queue="tag=theirs") for _ in range(3)]
        eventually(lambda: len(list(submitted.iterdir())) == 2, "two launches")
        looks = log.read_text().count("Sleeping")
        eventually(lambda: log.read_text().count("Sleeping") >= looks + 2, "two more looks")
        assert len(list(submitted.iterdir())) == 2
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert f"--server {server.url}" in (submitted / "0").read_text()
    client.act([{"type": "kill", "uuid": uuid} for uuid in ignored + wanted])
