"""Bundles in containers that do what no bundle should: the worker and the others live on, and
nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from containers import Containers, eventually, touch
from docker_engine import IMAGE

pytestmark = pytest.mark.engine("docker")

WAIT = ": > here; while [ ! -e go ]; do sleep 0.05; done"
FOREVER = "while :; do sleep 0.1; done"


def until_here(stand: Containers, uuid: str) -> None:
    stand.until(uuid, "running")
    eventually((stand.place(uuid) / "here").exists, "the command runs")


def test_what_forks_away_ends_with_its_run(containers: Containers) -> None:
    containers.start()
    run = containers.run(f"(trap '' HUP TERM; exec >&- 2>&- <&-; {FOREVER}) & disown; echo gone")
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert containers.read(run) == "gone\n"
    containers.leave()


def test_output_without_end_meets_the_disk_limit_and_fills_no_log(containers: Containers) -> None:
    containers.start("--cpus", "2")
    run = containers.run(
        ": > here; while :; do echo 0123456789012345678901234567890123456789; done",
        request_disk="1m",
        request_memory="256m",
    )
    bundle = containers.end(run)
    assert bundle.state == "failed"
    assert bundle.metadata["failure_message"].startswith("Disk limit 1mb exceeded")
    logs = containers.engine.directory / "data" / "containers"
    assert sum(path.stat().st_size for path in logs.rglob("*.log")) == 0
    containers.leave()


def test_a_sparse_file_counts_with_its_length(containers: Containers) -> None:
    """It is uploaded and unpacked with its length: blocks that it has here are no measure."""
    containers.start()
    run = containers.run(f"truncate -s 10G sparse; {FOREVER}", request_disk="10m")
    bundle = containers.end(run)
    assert bundle.state == "failed"
    assert bundle.metadata["failure_message"].startswith("Disk limit 10mb exceeded")
    containers.leave()


def test_a_run_may_delete_all_that_it_has(containers: Containers, tmp_path: Path) -> None:
    containers.start()
    run = containers.run("echo lost; cd /; rm -rf $HOME/* $HOME/.[!.]* $HOME; echo x; exit 0")
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    files = containers.files(run, tmp_path / "back")
    assert [*files.iterdir()] == []
    containers.leave()


def test_a_command_that_is_too_long_is_one_clear_sentence(containers: Containers) -> None:
    containers.start()
    fits, too_long = (containers.run(f": {'x' * length}") for length in (131_069, 131_070))
    assert containers.end(fits).state == "ready"
    message = containers.end(too_long).metadata["failure_message"]
    assert message == "The command cannot be started: Argument list too long"
    containers.leave()


def test_a_run_that_removes_its_output_keeps_the_rest_whatever_it_ends_with(
    containers: Containers,
) -> None:
    """Its image has a shell, though it ends as one without would."""
    containers.start()
    run = containers.run("rm stdout stderr; echo x > kept; exit 127")
    assert containers.end(run).metadata["exitcode"] == 127
    assert containers.read(run, "kept") == "x\n"
    containers.leave()


def test_directories_without_any_right_are_uploaded_and_removed(
    containers: Containers, tmp_path: Path
) -> None:
    containers.start()
    run = containers.run("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b/c a/b a; chmod 0 .")
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    files = containers.files(run, tmp_path / "back")
    assert (files / "a" / "b" / "c").read_text() == "x\n"
    containers.leave()


def test_files_cannot_be_given_to_others(containers: Containers, tmp_path: Path) -> None:
    containers.start()
    run = containers.run("echo x > f; perl -e 'exit chown 4711, 4711, \"f\"'")
    bundle = containers.end(run)
    assert bundle.state == "ready", "as many as it could give away"
    assert (containers.files(run, tmp_path / "back") / "f").read_text() == "x\n"
    containers.leave()


def test_pipes_and_links_in_the_results_hold_nobody_up(
    containers: Containers, tmp_path: Path
) -> None:
    containers.start()
    run = containers.run(
        "mkfifo pipe; ln -s loop loop; ln -s . self; ln -s /etc/passwd out; ln -s nowhere dangling;"
        " rm stdout; mkfifo stdout; echo kept > kept"
    )
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    files = containers.files(run, tmp_path / "back")
    assert (files / "kept").read_text() == "kept\n"
    assert not (files / "pipe").exists()
    assert not (files / "out").is_symlink()
    containers.leave()


def test_names_of_any_bytes_come_back(containers: Containers, tmp_path: Path) -> None:
    containers.start()
    run = containers.run(
        "for name in $'new\\nline' $'\\x1b[31mred' $'\\xff\\xfe' ' ' '-rf' '*' '\\'; do"
        ' echo "$name" > "./$name"; done'
    )
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    files = containers.files(run, tmp_path / "back")
    names = {bytes(path.relative_to(files)) for path in files.iterdir()}
    assert names >= {b"new\nline", b"\x1b[31mred", b"\xff\xfe", b" ", b"-rf", b"*", b"\\"}
    containers.leave()


@pytest.mark.timeout(240)
def test_a_fork_bomb_goes_off_in_its_own_container(containers: Containers) -> None:
    containers.start("--cpus", "2")
    bomb = containers.run(": > here; bomb() { bomb | bomb & }; bomb; sleep 1000", request_time="3s")
    until_here(containers, bomb)
    neighbour = containers.run("echo alive")
    assert containers.end(neighbour).state == "ready"
    bundle = containers.end(bomb)
    assert bundle.state == "failed", bundle.metadata
    containers.leave()


def test_processes_are_bounded(containers: Containers) -> None:
    containers.start()
    run = containers.run("cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max")
    assert containers.end(run).state == "ready"
    assert containers.read(run) == "4096\n"
    containers.leave()


def test_shared_memory_is_bounded_and_is_the_runs_own(containers: Containers) -> None:
    containers.start("--cpus", "2")
    neighbour = containers.run(f"echo x > /dev/shm/mine; {WAIT}")
    until_here(containers, neighbour)
    run = containers.run(
        "ls /dev/shm; head -c 2G /dev/zero > /dev/shm/all; wc -c < /dev/shm/all",
        request_memory="4g",
    )
    assert containers.end(run).state == "ready"
    assert containers.read(run) == f"{1 << 30}\n"
    touch(containers.place(neighbour) / "go")
    assert containers.end(neighbour).state == "ready"
    containers.leave()


def test_an_image_whose_shell_answers_nothing_can_still_be_killed(containers: Containers) -> None:
    containers.start()
    run = containers.run(f"trap '' TERM INT HUP QUIT; : > here; {FOREVER}", image=IMAGE)
    until_here(containers, run)
    containers.client.act([{"type": "kill", "uuid": run}])
    assert containers.end(run).state == "killed"
    containers.leave()
