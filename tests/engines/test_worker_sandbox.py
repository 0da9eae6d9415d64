"""Runs of the process runtime in bubblewrap: what they cannot reach, and that all else holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from containers import eventually
from scripted_server import Content, ScriptedServer
from worker_process import WorkerProcess

from bundles.exits import WorkerExit
from worker.runtimes.base import Job
from worker.runtimes.process import STDERR
from worker.runtimes.sandbox import find_sandbox

pytestmark = pytest.mark.engine("bubblewrap")

DATA = "0x" + "d" * 32
OTHER = "0x" + "e" * 32
NOBODY = 65534
WAIT = "echo here; while [ ! -e go ]; do sleep 0.02; done"


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.contents[DATA, ""] = Content(b"of the parent\n")
        server.contents[OTHER, ""] = Content(b"of another\n")
        yield server


@pytest.fixture
def worker(tmp_path: Path, script: ScriptedServer) -> Iterator[WorkerProcess]:
    made = WorkerProcess(tmp_path, script.url)
    made.sandbox = "bubblewrap"
    with contextlib.closing(made):
        yield made


def said(script: ScriptedServer, uuid: str, file: str = "stdout") -> str:
    return script.files(uuid)[file].decode()


def place(worker: WorkerProcess, uuid: str) -> Path:
    return next(worker.work_directory.glob(f"workers/*/runs/{uuid}*/files"))


def until_here(script: ScriptedServer, worker: WorkerProcess, uuid: str) -> Path:
    script.until_state(uuid, "running")
    directory = place(worker, uuid)
    eventually(lambda: (directory / "stdout").read_text(), "the command runs")
    return directory


def test_a_run_reads_its_dependency_and_its_results_come_back(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    run = script.run(
        "cat in sub/in; echo out > out; (echo no > in) 2>&- || echo kept; echo t > $TMPDIR/x; "
        "cat $TMPDIR/x /tmp/x; pwd; echo $HOME; echo ouch >&2; exit 3",
        dependencies=[("in", DATA, ""), ("sub/in", DATA, "")],
    )
    ended = script.until_over(run)
    assert ended["exitcode"] == 3, worker.log
    lines = said(script, run).splitlines()
    assert lines[:5] == ["of the parent"] * 2 + ["kept", "t", "t"]
    assert lines[5] == lines[6]
    assert said(script, run, "stderr") == "ouch\n"
    assert set(script.files(run)) == {"stdout", "stderr", "out"}


def test_a_run_reaches_no_state_of_its_worker_no_home_and_no_other_run(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("codalab\nsecret-password\n")
    password.chmod(0o600)
    worker.start("--cpus", "2", "--password-file", str(password))
    neighbour = script.run("echo mine > mine; " + WAIT, dependencies=[("in", OTHER, "")])
    directory = until_here(script, worker, neighbour)
    assert worker.process is not None
    tried = [
        password,
        worker.work_directory / "dependencies",
        (directory / "in").resolve(),
        worker.work_directory / "workers" / "w1" / "lock",
        directory / "mine",
        directory.parent / "run.json",
        Path.home(),
        Path("/var/run/docker.sock"),
        Path(f"/proc/{worker.process.pid}/environ"),
        Path("/etc/shadow"),
    ]
    run = script.run(
        "; ".join(f"(ls -R {path} && cat {path}) && echo REACHED {path}" for path in tried)
        + "; ls ..; ls ../..; ls /tmp /home /root; cat /proc/[0-9]*/comm; "
        "touch /etc/mine /usr/mine /mine ../mine /var/mine; true",
        dependencies=[("in", DATA, "")],
    )
    assert script.until_over(run)["exitcode"] == 0
    output = said(script, run)
    assert not [line for line in output.splitlines() if line.startswith("REACHED")]
    assert "secret" not in output
    assert "of another" not in output
    assert "python" not in output
    assert "mine" not in output
    errors = said(script, run, "stderr")
    assert errors.count("Read-only file system") + errors.count("Permission denied") >= 5
    (directory / "go").touch()
    assert script.until_over(neighbour)["exitcode"] == 0


def test_the_interpreter_of_the_worker_is_there_wherever_it_lies(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    run = script.run(f"{sys.executable} -c 'import json, ssl; print(42)'")
    assert script.until_over(run)["exitcode"] == 0
    assert said(script, run) == "42\n"


def test_an_interpreter_below_tmp_is_there_beside_the_run_s_own_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        prefix = Path(name) / "environment"
        prefix.mkdir()
        (prefix / "word").write_text("here")
        (prefix / "secret").write_text("hush")
        monkeypatch.setattr(sys, "prefix", str(prefix))
        (tmp_path / "tmp").mkdir()
        command = f"cat {prefix}/word {prefix}/secret; touch /tmp/own; ls {name}"
        line = find_sandbox([prefix / "secret"]).command_line(
            Job("k", "0x1", command, tmp_path, tmp_path), "/bin/sh"
        )
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {STDERR}>&2', "sh", *line],
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.stdout.decode() == "hereenvironment\n"
    assert (tmp_path / "tmp" / "own").exists()


def test_a_run_of_root_may_do_nothing_that_is_root_s(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    run = script.run("grep -E 'CapEff|NoNewPrivs' /proc/self/status; mount -t tmpfs none /tmp")
    assert script.until_over(run)["exitcode"] != 0
    assert said(script, run).split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_a_run_without_network_has_none_and_one_with_it_has_its_worker_s(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    port = script.url.rpartition(":")[2]
    command = f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>&- && echo reached || echo alone"
    interfaces = "; while read -r name rest; do echo $name; done < /proc/net/dev"
    without = script.run(command + interfaces, network=False)
    assert script.until_over(without)["exitcode"] == 0
    lines = said(script, without).splitlines()
    assert lines[0] == "alone"
    assert [line for line in lines if line.endswith(":")] == ["lo:"]
    with_it = script.run(command)
    assert script.until_over(with_it)["exitcode"] == 0
    assert said(script, with_it) == "reached\n"


@pytest.mark.parametrize("network", [True, False])
def test_a_port_of_a_run_can_be_talked_to_whether_it_has_a_network_or_not(
    script: ScriptedServer, worker: WorkerProcess, network: bool
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listen = (
        f'socket(S, 2, 1, 6); bind(S, pack("S n a4 x8", 2, {port}, pack("C4", 127, 0, 0, 1))); '
        "listen(S, 5); $| = 1; print 1; accept(C, S); sysread(C, $b, 99); syswrite(C, uc $b);"
    )
    worker.start()
    run = script.run(f"perl -e '{listen}'", network=network)
    until_here(script, worker, run)
    message = {"type": "netcat", "uuid": run, "socket_id": 1, "port": port, "message": "hello"}
    script.send(message)
    script.until(lambda: 1 in script.replies)
    assert bytes(script.replies[1]) == b"HELLO"
    assert script.until_over(run)["exitcode"] == 0


def test_exit_codes_and_signals_are_those_of_the_command(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    for command, code in (
        ("exit 1", 1),
        ("exit 126", 126),
        ("no-such-program", 127),
        ("exit 255", 255),
        ("kill -SEGV $$", 139),
        ("kill -9 $$", 137),
    ):
        ended = script.until_over(script.run(command))
        assert ended["exitcode"] == code, (command, ended)


def test_nothing_of_a_run_outlives_it_and_what_it_used_is_known(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    run = script.run(
        "(setsid sleep 2000 &) ; (env -i setsid sleep 2001 > /dev/null 2>&1 &) ; sleep 2002 & "
        "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done"
    )
    ended = script.until_over(run)
    assert ended["exitcode"] == 0
    assert ended["container_time_user"] > 0.05
    assert worker.strays() == []
    names = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert not [name for name in names if name in ("sleep 2000", "sleep 2001", "sleep 2002")]


def test_a_kill_asks_the_command_first_and_ends_what_ignores_it(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    polite = script.run("trap 'echo bye; exit 9' TERM; " + WAIT)
    stubborn = script.run("trap '' TERM INT; (setsid sleep 3000 &); " + WAIT)
    until_here(script, worker, polite)
    until_here(script, worker, stubborn)
    for run in (polite, stubborn):
        script.send({"type": "kill", "uuid": run, "kill_message": "Kill requested"})
    assert script.until_over(polite)["exitcode"] == 9
    assert said(script, polite) == "here\nbye\n"
    assert script.until_over(stubborn)["failure_message"] == "Kill requested"
    assert worker.strays() == []


def test_limits_hold(script: ScriptedServer, worker: WorkerProcess) -> None:
    worker.start()
    slow = script.run("sleep 1000", time=1)
    assert "Time limit" in script.until_over(slow)["failure_message"]
    memory = script.run(
        "y=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27; "
        "do y=$y$y; done; sleep 1000",
        memory=64 << 20,
    )
    assert "Memory limit 64m exceeded" in script.until_over(memory)["failure_message"]
    assert worker.strays() == []


def test_a_worker_that_was_killed_takes_its_runs_up_again(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    ending = script.run(WAIT + "; echo one; exit 5")
    living = script.run("trap 'echo bye; exit 6' TERM; " + WAIT)
    directory = until_here(script, worker, ending)
    until_here(script, worker, living)
    worker.kill()
    (directory / "go").touch()
    eventually((directory.parent / "exit").exists, "the end is written down")
    worker.start("--cpus", "2")
    assert script.until_over(ending)["exitcode"] == 5
    assert said(script, ending) == "here\none\n"
    script.send({"type": "kill", "uuid": living, "kill_message": "Kill requested"})
    assert script.until_over(living)["exitcode"] == 6
    assert worker.stop() == 0
    assert worker.strays() == []


def broken(directory: Path, script_text: str) -> dict[str, str]:
    """An environment whose `bwrap` is this script."""
    programs = directory / "programs"
    programs.mkdir()
    (programs / "bwrap").write_text(f"#!/bin/sh\n{script_text}\n")
    (programs / "bwrap").chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_where_it_does_not_work_runs_are_not_confined_unless_that_was_asked_for(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.env |= broken(tmp_path, "echo 'bwrap: No permissions to create namespace' >&2; exit 1")
    worker.start()
    assert worker.wait() == WorkerExit.NO_RUNTIME
    assert "--sandbox bubblewrap: bwrap: No permissions to create namespace" in worker.log
    worker.sandbox = "auto"
    worker.start()
    run = script.run(f"ls {tmp_path}")
    assert script.until_over(run)["exitcode"] == 0
    assert "they are not confined" in worker.log
    assert "are confined by bubblewrap" not in worker.log


def test_a_sandbox_that_cannot_be_made_is_one_clear_sentence(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    once = "[ ! -e $0.gone ] || { echo 'bwrap: out of namespaces' >&2; exit 1; }"
    worker.env |= broken(tmp_path, f'{once}; exec {shutil.which("bwrap")} "$@"')
    worker.start()
    assert script.until_over(script.run("true"))["exitcode"] == 0
    (tmp_path / "programs" / "bwrap.gone").touch()
    ended = script.until_over(script.run("true"))
    message = "The command cannot be started: bwrap: out of namespaces"
    assert ended["failure_message"] == message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_s_runs_are_confined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours may lie where only root gets to.
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    with tempfile.TemporaryDirectory(prefix="of-nobody-") as name:
        place = Path(name)
        (place / "tmp").mkdir()
        for directory in (place, place / "tmp"):
            os.chown(directory, NOBODY, NOBODY)
        job = Job("k", "0x1", "id -u; : > here; ls ~root", place, place, network=False)
        line = find_sandbox([]).command_line(job, "/bin/sh")
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {STDERR}>&2', "sh", *line],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert done.stdout.decode() == f"{NOBODY}\n"
        assert (place / "here").exists()
