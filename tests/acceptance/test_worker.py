"""The worker against a server by script: what it does with a run, from message to forgetting it."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from scripted_server import Content, Fault, ScriptedServer, tar_gz
from worker_process import Gate, WorkerProcess

from bundles.exits import WorkerExit
from bundles.model import new_uuid

PATIENCE_SECONDS = 30.0


def eventually(condition: Callable[[], object], what: str = "") -> None:
    """For what no request tells: processes and files."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"this does not happen: {what}"
        pause.wait(0.02)


def test_a_run_is_reported_uploaded_and_forgotten(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    uuid = script.run("echo out; echo err >&2; mkdir d; echo deep > d/f")
    report = script.until_over(uuid)
    assert (report["exitcode"], report["failure_message"]) == (0, None)
    assert report["claim"] == 1
    assert script.files(uuid) == {
        "stdout": b"out\n",
        "stderr": b"err\n",
        "d/": b"",
        "d/f": b"deep\n",
    }
    assert script.checkins[0]["cpus"] == 2
    assert "Worker started!" in worker.log
    assert worker.stop() == WorkerExit.FINISHED
    assert script.checkouts[0]["reason"] == "terminated"
    assert worker.left_files() == []


def test_a_command_that_fails_or_is_killed_by_a_signal_says_so(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    failed = script.until_over(script.run("exit 3"))
    assert (failed["exitcode"], failed["failure_message"]) == (3, None)
    shot = script.until_over(script.run("kill -9 $$"))
    assert shot["exitcode"] == 137
    assert shot["failure_message"] == "Killed by signal SIGKILL (9)"
    patricide = script.until_over(script.run("kill -9 $PPID; sleep 60"))
    assert patricide["exitcode"] == 137
    assert worker.strays() == []


def test_the_environment_of_a_run_holds_no_secret_of_the_worker(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start(env={"CODALAB_PASSWORD": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter3"})
    uuid = script.run("env; echo here $PWD; test -d $TMPDIR && echo scratch > $TMPDIR/x")
    script.until_over(uuid)
    output = script.files(uuid)["stdout"].decode()
    assert "hunter" not in output
    assert "secret-token" not in output
    environment = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    assert environment["CODALAB_BUNDLE_UUID"] == uuid
    assert environment["CODALAB"] == "true"
    assert f"here {environment['HOME']}" in output
    assert set(script.files(uuid)) == {"stdout", "stderr"}


def test_what_matches_an_exclude_pattern_is_not_uploaded(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("touch keep skip.tmp", metadata={"exclude_patterns": ["*.tmp", "stderr"]})
    script.until_over(uuid)
    assert set(script.files(uuid)) == {"stdout", "keep"}


def test_a_kill_ends_everything_of_a_run_even_what_ignores_it(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run(
        "trap '' TERM; setsid sleep 1000 & (trap '' TERM; sleep 1000) & echo up; wait"
    )
    script.until_state(uuid, "running")
    eventually(lambda: len(worker.strays()) >= 3, "it runs")
    script.send({"type": "kill", "uuid": uuid})
    report = script.until_over(uuid)
    assert report["failure_message"] == "Kill requested"
    assert worker.strays() == []


def test_daemons_do_not_outlive_their_run_and_other_runs_do(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    worker.start("--cpus", "2")
    other = script.run(
        f"(setsid sleep 1000 > /dev/null 2>&1 &) ; read line < {gate.path}; pgrep -f 'sleep 1000'"
    )
    script.until_state(other, "running")
    uuid = script.run(
        "(setsid sleep 2000 &) ; sleep 2000 & (nohup sh -c 'sleep 2000; true' &) ; echo done"
    )
    assert script.until_over(uuid)["exitcode"] == 0
    assert [command for command in worker.stray_commands() if "2000" in command] == []
    gate.open()
    assert script.until_over(other)["exitcode"] == 0
    assert worker.strays() == []


def test_a_daemon_that_hides_its_environment_goes_with_the_last_run(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("env -i setsid sleep 3000 > /dev/null 2>&1 & sleep 0.1; echo $! > pid")
    script.until_over(uuid)
    pid = int(script.files(uuid)["pid"])
    assert not psutil.pid_exists(pid) or "3000" not in psutil.Process(pid).cmdline()


def test_limits_of_time_memory_and_disk_are_enforced_and_reported(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "3", "--max-memory", "8g")
    slow = script.run("sleep 1000", time=1)
    greedy = script.run("cat /dev/zero | tail -c 300M", memory=40 * 1024**2)
    large = script.run("yes > file", disk=10 * 1024**2)
    assert script.until_over(slow)["failure_message"].startswith("Time limit exceeded")
    assert script.until_over(greedy)["failure_message"].startswith("Memory limit 40m exceeded")
    assert script.until_over(large)["failure_message"].startswith("Disk limit 10mb exceeded")
    quick = script.run("head -c 20m /dev/zero > file", disk=10 * 1024**2)
    assert script.until_over(quick)["failure_message"].startswith("Disk limit 10mb exceeded")
    assert worker.strays() == []


def test_dependencies_are_linked_fetched_once_and_not_uploaded(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    tree, file = new_uuid(), new_uuid()
    script.contents[(tree, "")] = Content(tar_gz({"a.txt": b"A", "sub/b.txt": b"B"}), True)
    script.contents[(tree, "sub")] = Content(tar_gz({"b.txt": b"B"}), True)
    script.contents[(file, "")] = Content(b"F")
    worker.start("--cpus", "2")
    command = "cat d/a.txt d/sub/b.txt deep/er/f; echo; (echo no > d/a.txt) 2> /dev/null; ls d"
    wanted = [("d", tree, ""), ("deep/er/f", file, "")]
    uuids = [script.run(command, dependencies=wanted) for _ in range(3)]
    for uuid in uuids:
        assert script.until_over(uuid)["failure_message"] is None
        assert script.files(uuid)["stdout"].startswith(b"ABF\n")
        assert set(script.files(uuid)) == {"stdout", "stderr"}
    beside = script.run(
        "cat a.txt sub/b.txt own/b.txt", dependencies=[(".", tree, ""), ("own", tree, "sub")]
    )
    script.until_over(beside)
    assert script.files(beside)["stdout"] == b"ABB"
    assert set(script.files(beside)) == {"stdout", "stderr"}
    within = script.run(
        "cat d/a.txt d/sub/f", dependencies=[("d", tree, ""), ("d/sub/f", file, "")]
    )
    script.until_over(within)
    assert script.files(within)["stdout"] == b"AF"
    assert sorted(script.downloads) == sorted([(tree, ""), (file, ""), (tree, "sub")])
    assert sorted(map(tuple, script.checkins[-1]["dependencies"])) == sorted(script.downloads)


def test_a_run_that_waits_for_a_dependency_says_so(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    hold = script.fault("download", Fault(hold=threading.Event()))
    worker.start("--checkin-frequency-seconds", "0.1")
    uuid = script.run("cat f", dependencies=[("f", file, "")])
    script.until(
        lambda: "Downloading dependency" in script.runs.get(uuid, {}).get("run_status", "")
    )
    assert script.runs[uuid]["state"] == "preparing"
    assert hold.hold is not None
    hold.hold.set()
    script.until_over(uuid)
    assert script.files(uuid)["stdout"] == b"F"


def test_a_dependency_that_cannot_be_had_fails_the_run_with_the_reason(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    missing, broken = new_uuid(), new_uuid()
    script.contents[(broken, "")] = Content(b"no archive", True)
    worker.start("--download-dependencies-max-retries", "1")
    gone = script.until_over(script.run("cat f", dependencies=[("f", missing, "x/y")]))
    assert f"Cannot fetch dependency {missing}/x/y" in gone["failure_message"]
    assert gone["exitcode"] is None
    torn = script.until_over(script.run("cat f", dependencies=[("f", broken, "")]))
    assert "cannot be unpacked" in torn["failure_message"]
    assert script.downloads.count((broken, "")) == 2
    leaving = script.until_over(script.run("true", dependencies=[("../f", broken, "")]))
    assert "leaves the bundle" in leaving["failure_message"]


def test_a_download_outlasts_a_server_that_fails_and_breaks_off(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    script.fault("download", Fault(status=500, times=2))
    script.fault("download", Fault(drop=True, times=2))
    worker.start("--download-dependencies-max-retries", "0")
    uuid = script.run("cat f", dependencies=[("f", file, "")])
    assert script.until_over(uuid)["failure_message"] is None


def test_uploads_and_reports_outlast_a_server_that_fails(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    script.fault("upload", Fault(status=500, times=2))
    script.fault("upload", Fault(status=429))
    script.fault("upload", Fault(drop=True))
    script.fault("upload", Fault(drop=True, late=True))
    worker.start()
    uuid = script.run("echo out")
    script.until_state(uuid, "running")
    script.fault("checkin", Fault(status=503, times=3))
    script.fault("checkin", Fault(drop=True, late=True, times=2))
    assert script.until_over(uuid)["exitcode"] == 0
    assert script.files(uuid)["stdout"] == b"out\n"


def test_a_check_in_that_is_never_answered_does_not_keep_a_run_from_running(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.start()
    uuid = script.run(f"sleep 0.2; touch {tmp_path}/ran")
    script.until(lambda: script.checkins)
    hold = threading.Event()
    script.fault("checkin", Fault(hold=hold, status=500, times=2))
    eventually((tmp_path / "ran").exists, "it runs")
    hold.set()
    assert script.until_over(uuid)["exitcode"] == 0


def test_a_message_that_comes_twice_is_carried_out_once(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.start()
    uuid = script.run(f"echo ran >> {tmp_path}/ran; sleep 0.3")
    script.until_state(uuid, "running")
    script.run(f"echo ran >> {tmp_path}/ran", uuid=uuid)  # the same claim, another letter
    script.until_over(uuid)
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_a_later_claim_of_a_bundle_replaces_the_run_of_the_earlier_one(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--cpus", "2")
    uuid = script.run("echo one; sleep 1000")
    script.until_state(uuid, "running")
    script.run("echo two", uuid=uuid, claim=2)
    script.until(
        lambda: script.runs[uuid]["claim"] == 2 and script.runs[uuid]["state"] == "finalizing"
    )
    assert script.files(uuid)["stdout"] == b"two\n"
    assert len(script.uploads[uuid]) == 1
    eventually(lambda: not worker.strays(), "the first is gone")


def test_a_revoked_run_uploads_nothing_and_leaves_nothing(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = script.run("sleep 1000")
    script.until_state(uuid, "running")
    script.send({"type": "revoke", "uuid": uuid})
    script.until(lambda: script.checkins[-1]["runs"] == [])
    eventually(lambda: worker.left_files() == [], "nothing is left")
    assert uuid not in script.uploads
    assert worker.strays() == []


def test_an_upload_that_the_server_refuses_fails_the_run_and_a_conflict_revokes_it(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    uuid = new_uuid()
    script.refused_uploads[uuid] = (413, "it is too large")
    script.run("true", uuid=uuid)
    assert "it is too large" in script.until_over(uuid)["failure_message"]
    other = new_uuid()
    script.refused_uploads[other] = (409, "the claim is another's")
    script.run("true", uuid=other)
    script.until(lambda: other in script.refused)
    eventually(lambda: worker.left_files() == [], "nothing is left")
    assert "finalizing" not in script.history.get(other, ())


def test_messages_that_make_no_sense_are_acknowledged_and_hinder_nobody(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start()
    odd = [
        script.send({"type": "dance", "uuid": new_uuid()}),
        script.send({"type": "run", "bundle": {"uuid": "../../etc"}}),
        script.send({"type": "kill", "uuid": new_uuid()}),
        script.send({"type": "read", "uuid": new_uuid()}),
    ]
    uuid = script.run("true")
    assert script.until_over(uuid)["exitcode"] == 0
    acknowledged = {i for checkin in script.checkins for i in checkin["acknowledged"]}
    assert set(odd) <= acknowledged


def read(script: ScriptedServer, uuid: str, path: str, **arguments: object) -> object:
    number = len(script.replies) + 1
    script.send(
        {"type": "read", "uuid": uuid, "socket_id": number, "path": path, "read_args": arguments}
    )
    script.until(lambda: number in script.replies)
    return script.replies[number]


def test_the_directory_of_a_run_can_be_read_and_nothing_else(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    worker.start()
    uuid = script.run(
        f"ln -s {tmp_path}/secret out; ln -s stdout in; touch $(printf 'no\\377text'); "
        f"mkdir d; seq 100 > d/n; echo up; "
        f"read line < {gate.path}"
    )
    script.until_state(uuid, "running")
    eventually(lambda: list(worker.work_directory.rglob("d/n")), "it has written")
    info = read(script, uuid, "", type="get_target_info", depth=1)
    assert isinstance(info, dict)
    names = {child["name"]: child["type"] for child in info["target_info"]["contents"]}
    assert names["d"] == "directory"
    assert names["in"] == "link"
    assert names["no\ufffdtext"] == "file"
    section = read(script, uuid, "d/n", type="read_file_section", offset=2, length=4)
    assert isinstance(section, bytes)
    assert gzip.decompress(section) == b"2\n3\n"
    whole = read(script, uuid, "in", type="stream_file")
    assert isinstance(whole, bytes)
    assert gzip.decompress(whole) == b"up\n"
    for path in ("out", "../run.json", "/etc/passwd", "nothing"):
        refused = read(script, uuid, path, type="stream_file")
        assert isinstance(refused, dict)
        assert refused["error_code"] in (400, 404)
    summary = read(
        script,
        uuid,
        "d/n",
        type="summarize_file",
        num_head_lines=1,
        num_tail_lines=1,
        max_line_length=10,
        truncation_text="...\n",
    )
    assert isinstance(summary, bytes)
    assert gzip.decompress(summary) == b"1\n...\n100\n"
    gone = read(script, new_uuid(), "", type="get_target_info", depth=0)
    assert gone == {"error_code": 500, "error_message": "Bundle no longer running"}
    gate.open()
    script.until_over(uuid)


def test_a_file_can_be_written_into_a_run_but_not_out_of_it(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate, tmp_path: Path
) -> None:
    worker.start()
    uuid = script.run(f"ln -s {tmp_path} out; read line < {gate.path}; cat said/it")
    script.until_state(uuid, "running")
    eventually(lambda: list(worker.work_directory.rglob("out")), "the link is there")
    script.send({"type": "write", "uuid": uuid, "subpath": "out/escaped", "string": "no"})
    written = script.send({"type": "write", "uuid": uuid, "subpath": "said/it", "string": "hello"})
    script.until(lambda: any(written in c["acknowledged"] for c in script.checkins))
    gate.open()
    script.until_over(uuid)
    assert script.files(uuid)["stdout"] == b"hello"
    assert not (tmp_path / "escaped").exists()


def test_a_worker_of_one_cpu_runs_one_at_a_time_and_cpus_are_not_shared(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two cpus")
    worker.start("--cpuset", ",".join(map(str, cpus)))
    # One for each: what is written for two may all be read by one.
    gates = [Gate(tmp_path / f"gate-{cpu}") for cpu in cpus]
    first, second = (
        script.run(f"grep Cpus_allowed_list /proc/self/status; read line < {gate.path}")
        for gate in gates
    )
    third = script.run("true")
    script.until_state(first, "running")
    script.until_state(second, "running")
    script.until(lambda: "Waiting for 1 cpus" in script.runs.get(third, {}).get("run_status", ""))
    for gate in gates:
        gate.open()
    for uuid in (first, second, third):
        script.until_over(uuid)
    lists = {script.files(uuid)["stdout"].split()[-1] for uuid in (first, second)}
    assert lists == {str(cpu).encode() for cpu in cpus}


def test_a_run_that_asks_for_no_cpu_stays_on_those_of_its_worker(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    cpu = min(os.sched_getaffinity(0))
    worker.start("--cpuset", str(cpu))
    uuid = script.run("grep Cpus_allowed_list /proc/self/status", cpus=0)
    script.until_over(uuid)
    assert script.files(uuid)["stdout"].split()[-1] == str(cpu).encode()


def test_an_idle_worker_leaves_and_says_so(script: ScriptedServer, worker: WorkerProcess) -> None:
    worker.start("--exit-when-idle", "--idle-seconds", "1", "--delete-work-dir-on-exit")
    uuid = script.run("sleep 1.5")
    assert worker.wait() == WorkerExit.FINISHED
    assert script.history[uuid][-1] == "finalizing"
    assert script.checkouts[0]["reason"] == "idle"
    assert not worker.work_directory.exists()


def test_a_worker_leaves_after_as_many_runs_as_it_should(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--exit-after-num-runs", "2")
    first, second = script.run("true"), script.run("true")
    assert worker.wait() == WorkerExit.FINISHED
    assert script.history[first][-1] == script.history[second][-1] == "finalizing"
    assert {checkin["exit_after_num_runs"] for checkin in script.checkins} >= {0, 2}


def test_on_sigterm_runs_go_on_and_the_next_start_takes_them_up(
    script: ScriptedServer, worker: WorkerProcess, gate: Gate
) -> None:
    worker.start()
    uuid = script.run(f"read line < {gate.path}; echo $line; exit 5")
    script.until_state(uuid, "running")
    assert worker.stop() == WorkerExit.TERMINATED
    assert script.checkouts == []
    assert script.checkins[-1]["is_terminating"]
    assert len(worker.strays()) >= 1
    worker.start()
    script.until(lambda: not script.checkins[-1]["is_terminating"])
    assert [run["uuid"] for run in script.checkins[-1]["runs"]] == [uuid]
    gate.open()
    assert script.until_over(uuid)["exitcode"] == 5
    assert script.files(uuid)["stdout"] == b"go\n"
    assert worker.strays() == []


def test_with_pass_down_termination_runs_are_given_back_first(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    file = new_uuid()
    script.contents[(file, "")] = Content(b"F")
    script.fault("download", Fault(hold=threading.Event()))
    worker.start("--pass-down-termination", "--cpus", "2")
    waits = script.run("true", dependencies=[("f", file, "")])
    script.until_state(waits, "preparing")
    runs = script.run("sleep 1000")
    script.until_state(runs, "running")
    assert worker.stop(signal.SIGINT) == WorkerExit.TERMINATED
    assert script.history[runs][-1] == script.history[waits][-1] == "staged"
    assert script.checkouts[0]["reason"] == "terminated"
    assert script.uploads == {}
    assert worker.strays() == []
    assert worker.left_files() == []


def test_a_second_worker_over_the_same_directory_and_id_leaves_at_once(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    worker.start()
    script.until(lambda: script.checkins)
    second = WorkerProcess(tmp_path, script.url).start()
    assert second.wait() == WorkerExit.REPLACED
    assert "another worker w1 is at work" in second.log
    uuid = script.run("true")
    assert script.until_over(uuid)["exitcode"] == 0


def test_a_worker_whose_id_was_taken_over_stops_its_runs_and_leaves(
    script: ScriptedServer, worker: WorkerProcess
) -> None:
    worker.start("--checkin-frequency-seconds", "0.2")
    uuid = script.run("sleep 1000")
    script.until_state(uuid, "running")
    script.session_refused.add(script.checkins[0]["session"])
    assert worker.wait() == WorkerExit.REPLACED
    assert worker.strays() == []
    assert worker.left_files() == []
    assert uuid not in script.uploads


def test_bad_credentials_and_a_server_that_is_not_there_have_their_own_exit_codes(
    script: ScriptedServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    script.fault("checkin", Fault(status=401, text="who are you?"))
    worker.start()
    assert worker.wait() == WorkerExit.UNAUTHORIZED
    script.fault("checkin", Fault(status=400, text="there is no group 'x'"))
    worker.start("--group", "x")
    assert worker.wait() == WorkerExit.USAGE
    assert "there is no group 'x'" in worker.log


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-memory", "2x"], "'2x' is not a size"),
        (["--cpus", "-1"], "-1 is not in the range"),
        (["--cpuset", "0-x"], "is no set of cpus"),
        (["--cpuset", "4000"], "there is no cpu 4000"),
        (["--network-prefix", "a b"], "no network can be called 'a b'"),
        (["--tag", "a b"], "letters, digits and hyphens"),
        (["--idle-seconds", "-5"], "is not in the range"),
        (["--password-file", "/nonexistent"], "cannot be read"),
    ],
)
def test_bad_options_get_one_line_and_exit_2(
    worker: WorkerProcess, options: list[str], sentence: str
) -> None:
    worker.start(*options)
    assert worker.wait() == WorkerExit.USAGE
    assert sentence in worker.log
    assert "Traceback" not in worker.log


def test_a_work_directory_that_cannot_be_used_is_an_exit_code_of_its_own(
    worker: WorkerProcess,
) -> None:
    worker.work_directory.write_text("a file")
    worker.start()
    assert worker.wait() in (WorkerExit.UNUSABLE, WorkerExit.USAGE)
    assert "Traceback" not in worker.log


def test_a_codalab_server_gets_plain_check_ins_and_is_asked_before_a_start(tmp_path: Path) -> None:
    with ScriptedServer(features="") as script:
        worker = WorkerProcess(tmp_path, script.url)
        with contextlib.closing(worker):
            worker.start("--checkin-frequency-seconds", "0.2")
            uuid = script.run("echo out", claim=None)
            report = script.until_over(uuid)
            assert script.started == [uuid]
            assert "claim" not in report
            assert report["exitcode"] == 0
            assert script.files(uuid)["stdout"] == b"out\n"
            assert worker.stop() == WorkerExit.FINISHED
            assert script.checkouts == []
            assert worker.left_files() == []
