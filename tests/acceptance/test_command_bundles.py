"""The command `bundles` as its users type it, against a real server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_worker import HandWorker
from serving import Server

from bundles.cli import COMMANDS

HEAVY = ("httpx", "rich", "sqlalchemy", "starlette", "uvicorn", "pydantic")


@pytest.fixture
def worker(server: Server, tmp_path: Path) -> Iterator[HandWorker]:
    with HandWorker(server.client(), tmp_path / "runs") as worker:
        yield worker


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("alpha\n")
    (root / "sub" / "b.txt").write_text("beta\n")
    return root


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("bundles: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from bundles.cli import main\n"
        "try:\n"
        f"    main({[*arguments, '--help']!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_a_directory_goes_up_and_comes_down_the_same(server: Server, corpus: Path) -> None:
    uuid = server.output("upload", str(corpus), "--tags", "text,v1").strip()
    assert server.output("info", uuid, "-f", "name,state,tags") == "corpus\tready\ttext v1\n"
    assert server.output("cat", f"{uuid}/sub/b.txt") == "beta\n"
    assert server.output("cat", f"{uuid[:10]}/a.txt") == "alpha\n"
    listed = json.loads(server.output("cat", uuid, "-o", "json"))
    assert [(entry["name"], entry["type"]) for entry in listed] == [
        ("a.txt", "file"),
        ("sub", "directory"),
    ]
    assert "sub/" in server.output("cat", "corpus")
    there = server.directory / "there"
    assert server.output("download", "corpus", "-o", str(there)) == f"{there}\n"
    assert (there / "a.txt").read_text() == "alpha\n"
    assert (there / "sub" / "b.txt").read_text() == "beta\n"
    one_line(server.command("download", "corpus", "-o", str(there)), 2)
    server.output("download", "corpus/sub", "-o", str(there), "--force")
    assert os.listdir(there) == ["b.txt"]


def test_a_file_is_a_bundle_of_its_own(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "numbers.bin").write_bytes(content)
    uuid = server.output("upload", "numbers.bin").strip()
    with server.start_command("cat", uuid) as process:
        assert process.stdout is not None
        assert process.stdout.buffer.read() == content  # type: ignore[attr-defined]
    assert process.returncode == 0
    server.output("download", uuid, "-o", "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == content


def test_a_run_is_queued_run_and_read_back(
    server: Server, worker: HandWorker, corpus: Path
) -> None:
    data = server.output("upload", str(corpus)).strip()
    uuid = server.output(
        "run", f"data:{data}/sub", ":corpus", "cat data/*", "--cpus", "2", "--memory", "512m",
        "--name", "reader",
    ).strip()  # fmt: skip
    run = worker.start(uuid)
    (run.directory / "stdout").write_text("beta\n")
    (run.directory / "stderr").write_text("")
    worker.finish(run)
    assert server.output("wait", uuid) == f"{uuid} ready\n"
    assert server.output("cat", f"{uuid}/stdout") == "beta\n"
    assert server.output("logs", uuid) == "beta\n"
    assert server.output("logs", "-f", "reader") == "beta\n"
    shown = json.loads(server.output("info", "reader", "-o", "json"))
    assert shown["uuid"] == uuid
    assert shown["command"] == "cat data/*"
    assert shown["metadata"]["request_cpus"] == 2
    assert shown["metadata"]["request_memory"] == "512m"
    assert [
        (d["child_path"], d["parent_uuid"], d["parent_path"]) for d in shown["dependencies"]
    ] == [("data", data, "sub"), ("corpus", data, "")]
    again = server.output("run", "-m", f"data:{data}/sub", ":corpus", "cat data/*").strip()
    assert again == uuid
    other = server.output("run", "-m", f"data:{data}", ":corpus", "cat data/*").strip()
    assert other != uuid


def test_a_list_is_newest_first(server: Server) -> None:
    uuids = [server.output("run", f"echo {n}", "--name", f"run {n}").strip() for n in range(4)]
    listed = json.loads(server.output("ls", "-o", "json"))
    assert [bundle["uuid"] for bundle in listed] == uuids[::-1]
    assert {"uuid", "name", "state", "owner", "command", "created", "metadata"} <= set(listed[0])
    assert listed[0]["owner"] == "admin"
    assert [b["uuid"] for b in json.loads(server.output("ls", "-n", "2", "-o", "json"))] == [
        uuids[3],
        uuids[2],
    ]
    assert json.loads(server.output("ls", "--state", "ready", "-o", "json")) == []
    assert server.output("ls", "state=staged", ".count") == "4\n"
    (found,) = json.loads(server.output("ls", "name=run 1", "-o", "json"))
    assert found["uuid"] == uuids[1]
    table = server.output("ls").splitlines()
    assert len(table) == 5
    assert table[1].startswith(uuids[3][:10])
    assert max(map(len, table)) <= 80
    assert not any("\x1b" in line for line in table)


def test_wait_tells_ready_from_failed(server: Server, worker: HandWorker) -> None:
    good, bad = server.output("run", "true").strip(), server.output("run", "false").strip()
    child = server.output("run", f"x:{bad}", "cat x").strip()
    with server.start_command("wait", good, bad, child) as waiting:
        worker.finish(worker.start(good))
        worker.finish(worker.start(bad), 1)
        stdout, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert stderr == ""
    lines = stdout.splitlines()
    assert lines[0] == f"{good} ready"
    assert lines[1].startswith(f"{bad} failed ")
    assert lines[2].startswith(f"{child} failed ")
    assert server.command("wait", good).returncode == 0
    assert server.command("wait", good, bad).returncode == 1


def test_wait_outlives_the_server(server: Server, tmp_path: Path) -> None:
    uuid = server.output("run", "true").strip()
    with server.start_command("wait", uuid, "--verbose") as waiting:
        assert waiting.stderr is not None
        while "/rest/changes?" not in waiting.stderr.readline():
            assert waiting.poll() is None
        server.stop(signal.SIGKILL)
        server.start()
        with HandWorker(server.client(), tmp_path / "runs") as worker:
            worker.finish(worker.start(uuid))
            stdout, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, stdout) == (0, f"{uuid} ready\n")


def test_wait_gives_up_after_its_time(server: Server) -> None:
    uuid = server.output("run", "true").strip()
    assert f"{uuid} is staged" in one_line(server.command("wait", uuid, "--timeout", "0.2s"), 1)


def test_wait_shows_progress_on_a_terminal_only(server: Server, worker: HandWorker) -> None:
    uuid = server.output("run", "true").strip()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bundles", "wait", uuid],
        env=server.env | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        run = worker.start(uuid)
        seen = read_until(ours, b"running")
        worker.finish(run)
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"0/1" in seen
    assert (process.returncode, stdout.decode()) == (0, f"{uuid} ready\n")


def read_until(terminal: int, text: bytes, limit_seconds: float = 60.0) -> bytes:
    seen = b""
    deadline = time.monotonic() + limit_seconds
    while text not in seen:
        readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, seen
        seen += os.read(terminal, 4096)
    return seen


def test_logs_follow_a_run_to_its_end(server: Server, worker: HandWorker) -> None:
    uuid = server.output("run", "many lines").strip()
    with server.start_command("logs", "-f", uuid) as following:
        assert following.stdout is not None
        run = worker.start(uuid)
        with (run.directory / "stdout").open("a", buffering=1) as file:
            file.write("one\n")
            assert following.stdout.readline() == "one\n"
            file.write("two\n")
            assert following.stdout.readline() == "two\n"
            file.write("three\n")
        worker.finish(run, 3)
        stdout, stderr = following.communicate(timeout=60)
    assert (following.returncode, stdout, stderr) == (0, "three\n", "")


def test_logs_follow_ends_with_a_bundle_that_never_ran(server: Server) -> None:
    uuid = server.output("run", "true").strip()
    with server.start_command("logs", "-f", uuid, "--verbose") as following:
        assert following.stderr is not None
        while "/rest/changes?" not in following.stderr.readline():
            assert following.poll() is None
        assert server.output("kill", uuid) == f"{uuid}\n"
        stdout, stderr = following.communicate(timeout=60)
    assert (following.returncode, stdout) == (0, "")
    assert "is killed and has written nothing" in stderr


def test_kill_ends_what_runs_and_what_does_not(server: Server, worker: HandWorker) -> None:
    running = server.output("run", "sleep 1000").strip()
    waiting = server.output("run", "x", "--queue", "nobody").strip()
    worker.start(running)
    assert server.output("kill", running, waiting) == f"{running}\n{waiting}\n"
    done = server.command("wait", running, waiting)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["killed", "killed"]


def test_write_reaches_a_running_bundle(server: Server, worker: HandWorker) -> None:
    uuid = server.output("run", "sleep 1000").strip()
    run = worker.start(uuid)
    assert server.output("write", f"{uuid}/in/control", "go on") == f"{uuid}\n"
    worker.wait_for(lambda: run.written == {"in/control": "go on"})
    server.output("kill", uuid)
    assert server.command("wait", uuid).returncode == 1


def test_rm_keeps_what_others_need_unless_forced(server: Server, corpus: Path) -> None:
    data = server.output("upload", str(corpus)).strip()
    run = server.output("run", f"data:{data}", "ls", "--queue", "nobody").strip()
    one_line(server.command("rm", data), server.command("rm", data).returncode)
    server.output("kill", run)
    assert server.output("rm", "--force", data) == f"{data}\n"
    one_line(server.command("info", data), 1)
    assert json.loads(server.output("info", run, "-o", "json"))["uuid"] == run


def test_users_see_and_do_what_is_theirs(server: Server) -> None:
    mine = server.output("run", "true", "--name", "mine").strip()
    added = server.command("user", "add", "ann", stdin="secret\n")
    assert (added.returncode, added.stdout) == (0, "ann\n")
    ann = {"CODALAB_USERNAME": "ann", "CODALAB_PASSWORD": "secret"}
    theirs = server.command("run", "true", env=ann).stdout.strip()
    listed = json.loads(server.command("ls", "-o", "json", env=ann).stdout)
    assert [(bundle["uuid"], bundle["owner"]) for bundle in listed] == [(theirs, "ann")]
    one_line(server.command("info", "mine", env=ann), 1)
    one_line(server.command("kill", mine, env=ann), 1)
    wrong = server.command("ls", env=ann | {"CODALAB_PASSWORD": "wrong"})
    assert "secret" not in one_line(wrong, 1)
    one_line(server.command("user", "add", "bob", stdin="x\n", env=ann), 1)
    one_line(server.command("user", "add", "ann", stdin="again\n"), 1)
    one_line(server.command("user", "add", "bob", stdin="\n"), 2)


# Bad input


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that leave nothing behind."""
    server = Server(tmp_path_factory.mktemp("empty"))
    server.start()
    try:
        yield server
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", f"data:0x{'9' * 32}", "ls"], "9" * 32),
        (["run", "data:nosuch", "ls"], "nosuch"),
        (["run", "../up:0x1", "ls"], "../up"),
        (["run", "/abs:0x1", "ls"], "/abs"),
        (["run", "--cpus", "-1", "ls"], "-1"),
        (["run", "--gpus", "-1", "ls"], "-1"),
        (["run", "--memory", "2x", "ls"], "2x"),
        (["run", "--memory=-1g", "ls"], "-1g"),
        (["run", "--time", "2x", "ls"], "2x"),
        (["run", "--disk", "2x", "ls"], "2x"),
        (["run", ""], "command"),
        (["upload", "nosuch.txt"], "nosuch.txt"),
        (["ls", "--limit", "-1"], "-1"),
        (["ls", "--nosuch"], "--nosuch"),
        (["nosuch"], "nosuch"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    empty_server: Server, arguments: list[str], said: str
) -> None:
    assert said in one_line(empty_server.command(*arguments), 2)
    assert empty_server.output("ls", ".count") == "0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "nosuch"],
        ["info", f"0x{'9' * 32}"],
        ["cat", "nosuch/stdout"],
        ["logs", "-f", "nosuch"],
        ["download", "nosuch"],
        ["wait", "nosuch"],
        ["wait", f"0x{'9' * 32}"],
        ["kill", "nosuch"],
        ["write", "nosuch/x", "y"],
        ["rm", f"0x{'9' * 32}"],
    ],
)
def test_a_bundle_that_is_not_there_is_one_line_and_exit_1(
    empty_server: Server, arguments: list[str]
) -> None:
    one_line(empty_server.command(*arguments), 1)


def test_a_path_that_is_not_there_is_one_line(server: Server, corpus: Path) -> None:
    uuid = server.output("upload", str(corpus)).strip()
    assert "nosuch" in one_line(server.command("cat", f"{uuid}/nosuch"), 1)
    one_line(server.command("download", f"{uuid}/nosuch"), 1)
    assert not (server.directory / "nosuch").exists()
    one_line(server.command("cat", f"{uuid}/../../token"), 2)


@pytest.mark.parametrize("arguments", [["ls"], ["run", "true"], ["wait", f"0x{'9' * 32}"]])
def test_a_wrong_token_is_one_line_and_exit_1(empty_server: Server, arguments: list[str]) -> None:
    done = empty_server.command(*arguments, env={"WORKER_MANAGER_TOKEN": "not-a-token"})
    assert "not-a-token" not in one_line(done, 1)


def test_an_expired_token_is_one_line_and_exit_1(server: Server) -> None:
    with server.client() as client:
        token = client.worker_token()
    user = {"WORKER_MANAGER_TOKEN": token}
    assert "expired" not in server.command("ls", env=user).stderr  # it opens other doors only
    server.stop()
    with contextlib.closing(sqlite3.connect(server.home.path / "bundles.sqlite")) as database:
        digest = hashlib.sha256(token.encode()).hexdigest()
        changed = database.execute("UPDATE token SET expires = 1 WHERE digest = ?", (digest,))
        assert changed.rowcount == 1
        database.commit()
    server.start()
    assert "expired" in one_line(server.command("ls", env=user), 1)


@pytest.mark.parametrize("arguments", [["ls"], ["run", "true"], ["logs", "-f", f"0x{'9' * 32}"]])
def test_a_server_that_is_not_there_is_one_line_and_exit_1(
    server: Server, arguments: list[str]
) -> None:
    server.stop()
    assert server.url in one_line(server.command(*arguments), 1)


def test_without_a_server_or_a_token_the_line_says_what_to_do(tmp_path: Path) -> None:
    server = Server(tmp_path)
    assert "bundles serve" in one_line(server.command("ls"), 1)
    assert "nonsense" in one_line(server.command("ls", "--server", "nonsense"), 2)


def test_a_reader_that_leaves_is_no_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 5_000_000)
    uuid = server.output("upload", "big").strip()
    with server.start_command("cat", uuid) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(timeout=60)


def test_an_interrupted_wait_is_silent(server: Server) -> None:
    uuid = server.output("run", "true").strip()
    with server.start_command("wait", uuid, "--verbose") as waiting:
        assert waiting.stderr is not None
        while "/rest/changes?" not in waiting.stderr.readline():
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        stdout, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "bundles:" not in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_upload_leaves_no_bundle(
    server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(200 * 1024**3)  # sparse: takes far longer to send than the test runs
    with server.start_command("upload", str(huge), "--verbose") as uploading:
        assert uploading.stderr is not None
        while "POST" not in (line := uploading.stderr.readline()):
            assert line, uploading.poll()
        uploading.send_signal(number)
        stdout, stderr = uploading.communicate(timeout=60)
    assert uploading.returncode == 128 + number
    assert stdout == ""
    assert "cut off" in stderr
    assert server.output("ls", ".count") == "0\n"
