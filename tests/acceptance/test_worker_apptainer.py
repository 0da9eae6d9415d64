"""The apptainer runtime against a program of the tests' own: how it is called, and what its ends
mean."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_apptainer
import pytest
from scripted_server import Content, ScriptedServer
from worker_process import WorkerProcess

DATA = "0x" + "d" * 32
IMAGE = "127.0.0.1:9/team/tool:1.2"
"""Nothing listens there: the registry is silent."""
WAIT = "echo here; while [ ! -e go ]; do sleep 0.02; done"


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.contents[DATA, ""] = Content(b"of the parent\n")
        yield server


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """On the worker's PATH, with apptainer in it."""
    place = tmp_path / "programs"
    place.mkdir()
    shutil.copy(fake_apptainer.__file__, place / "fake.py")
    (place / "apptainer").write_text(f'#!/bin/sh\nexec {sys.executable} {place}/fake.py "$@"\n')
    (place / "apptainer").chmod(0o755)
    return place


@pytest.fixture
def worker(tmp_path: Path, script: ScriptedServer, programs: Path) -> Iterator[WorkerProcess]:
    made = WorkerProcess(tmp_path, script.url)
    made.env |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DOCKER_CONFIG": str(tmp_path),
        "DOCKER_HOST": f"unix://{tmp_path}/nothing",
    }
    with contextlib.closing(made):
        yield made


def eventually(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    pause = threading.Event()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"this does not happen: {what}"
        pause.wait(0.02)


def calls(programs: Path, verb: str) -> list[list[str]]:
    try:
        lines = (programs / "log").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line for line in map(json.loads, lines) if verb in line]


def place(worker: WorkerProcess, uuid: str) -> Path:
    return next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))


def test_a_run_is_an_exec_in_a_file_that_was_pulled_once(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    worker.start("--runtime", "auto", "--cpus", "2")
    run = script.run(
        "pwd; echo $HOME; echo $CODALAB $TMPDIR; echo out > out; echo ouch >&2; exit 3",
        dependencies=[("in", DATA, "")],
        docker_image=IMAGE,
    )
    ended = script.until_over(run)
    assert ended["exitcode"] == 3, worker.log
    files = script.files(run)
    assert set(files) == {"stdout", "stderr", "out"}
    directory, home, rest = files["stdout"].decode().splitlines()
    assert directory == home
    assert rest == "true /tmp"
    assert files["stderr"] == b"ouch\n"
    assert script.runs[run]["docker_image"] in ("", None, IMAGE)
    for again in [script.run("true", docker_image=IMAGE) for _ in range(3)]:
        assert script.until_over(again)["exitcode"] == 0
    images = worker.work_directory / "images"
    (pulled,) = calls(programs, "pull")
    (file,) = images.glob("*.sif")
    assert pulled == [
        *("pull", "--force", "--disable-cache", "--no-https"),
        *(str(images / "partial" / file.name), f"docker://{IMAGE}"),
    ]
    first = calls(programs, "exec")[0]
    where = directory.removesuffix("/files")
    assert first[: first.index(str(file)) + 1] == [
        *("--silent", "exec", "--containall", "--no-home", "--pwd", f"/{run}"),
        *("--bind", f"{directory}:/{run}", "--bind", f"{where}/tmp:/tmp", "--bind"),
        f"{worker.work_directory}/dependencies/ready/{DATA}/content:/{run}_dependencies/in:ro",
        str(file),
    ]
    assert worker.stop() == 0
    assert worker.strays() == []


def test_a_run_with_gpus_sees_those_and_one_without_network_has_none(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-a'; echo '1, GPU-b'\n")
    (programs / "nvidia-smi").chmod(0o755)
    worker.start("--runtime", "apptainer", "--gpuset", "1")
    command = "echo $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"
    run = script.run(command, docker_image=IMAGE, gpus=1, network=False)
    assert script.until_over(run)["exitcode"] == 0, worker.log
    assert script.files(run)["stdout"] == b"1 PCI_BUS_ID\n"
    (line,) = calls(programs, "exec")
    before = line[: next(n for n, word in enumerate(line) if word.endswith(".sif"))]
    assert before[-4:] == ["--nv", "--net", "--network", "none"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("reading manifest 1.2: manifest unknown", f"There is no image {IMAGE}: "),
        ("requested access to the resource is denied", f"This worker may not pull image {IMAGE}: "),
    ],
)
def test_an_image_that_cannot_be_had_is_one_clear_sentence(
    script: ScriptedServer, worker: WorkerProcess, programs: Path, said: str, message: str
) -> None:
    (programs / "refuse").write_text(said)
    worker.start("--runtime", "apptainer")
    ended = script.until_over(script.run("true", docker_image=IMAGE))
    assert ended["failure_message"] == message + said
    assert list((worker.work_directory / "images" / "partial").iterdir()) == []


def test_what_apptainer_itself_fails_with_is_told_from_the_command_s_own_end(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    worker.start("--runtime", "apptainer")
    for code in (1, 127, 255):
        ended = script.until_over(script.run(f"exit {code}", docker_image=IMAGE))
        assert (ended["exitcode"], ended["failure_message"]) == (code, None)
    (programs / "fatal").write_text("exec /bin/sh failed: no such file or directory")
    ended = script.until_over(script.run("true", docker_image=IMAGE))
    assert ended["failure_message"] == (
        "The command cannot be started: exec /bin/sh failed: no such file or directory"
    )


def test_runs_wait_for_one_pull_and_a_killed_one_does_not(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    (programs / "hold").touch()
    worker.start("--runtime", "apptainer", "--cpus", "3", "--checkin-frequency-seconds", "0.2")
    first, second, third = (script.run("true", docker_image=IMAGE) for _ in range(3))
    other = script.run("true", docker_image="127.0.0.1:9/other:1")
    script.until(
        lambda: "Converting OCI blobs" in str(script.runs.get(first, {}).get("run_status")),
        "its status says how far it is",
    )
    for run in (third, other):
        script.send({"type": "kill", "uuid": run, "kill_message": "Kill requested"})
        assert script.until_over(run)["failure_message"] == "Kill requested"
    (programs / "hold").unlink()
    for run in (first, second):
        assert script.until_over(run)["exitcode"] == 0
    assert len([line for line in calls(programs, "pull") if line[-1].endswith(IMAGE)]) == 1
    eventually(lambda: worker.strays() == [], "the pull of nobody has ended")


def test_a_worker_that_was_killed_takes_its_runs_up_and_can_end_them(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    worker.start("--runtime", "apptainer", "--cpus", "2")
    ending = script.run(WAIT + "; exit 5", docker_image=IMAGE)
    living = script.run("trap 'echo bye; exit 6' TERM; " + WAIT, docker_image=IMAGE)
    for run in (ending, living):
        script.until_state(run, "running")
        stdout = place(worker, run) / "stdout"
        eventually(stdout.read_text, "the command runs")
    worker.kill()
    (place(worker, ending) / "go").touch()
    eventually((place(worker, ending).parent / "exit").exists, "the end is written down")
    worker.start("--runtime", "apptainer", "--cpus", "2")
    assert script.until_over(ending)["exitcode"] == 5
    script.send({"type": "kill", "uuid": living, "kill_message": "Kill requested"})
    assert script.until_over(living)["exitcode"] == 6
    assert worker.stop() == 0
    assert worker.strays() == []


def test_the_least_recently_used_image_makes_room(
    script: ScriptedServer, worker: WorkerProcess, programs: Path
) -> None:
    images = worker.work_directory / "images"
    worker.start("--runtime", "apptainer", "--max-image-cache-size", "1500")
    assert script.until_over(script.run("true", docker_image="127.0.0.1:9/old:1"))["exitcode"] == 0
    (old,) = images.glob("*.sif")
    os.utime(old, (1, 1))
    assert script.until_over(script.run("true", docker_image=IMAGE))["exitcode"] == 0
    eventually(lambda: not old.exists(), "the older one is removed")
    assert len(list(images.glob("*.sif"))) == 1
    again = script.run("true", docker_image="127.0.0.1:9/old:1")
    assert script.until_over(again)["exitcode"] == 0
    assert len(calls(programs, "pull")) == 3
