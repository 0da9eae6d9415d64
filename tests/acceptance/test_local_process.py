"""Local processes, for real: what the backend starts, finds, ends and leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from managing import kill_jobs

from backends.base import (
    KEY,
    Context,
    Invalid,
    Job,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
)
from backends.local_process import ENDED_KEPT, GRACE_SECONDS, LOG_KEPT_BYTES, LocalProcess

PATIENCE_SECONDS = 30.0
RESOURCES = JobResources(1, 0, 1024**3)


def eventually(condition: Callable[[], object]) -> None:
    """Look until it holds; processes end when they end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


class Clock:
    now: float | None = None

    def __call__(self) -> float:
        return time.time() if self.now is None else self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(tmp_path: Path, clock: Clock) -> Iterator[LocalProcess]:
    yield make(tmp_path, clock=clock)
    kill_jobs(tmp_path)
    psutil.wait_procs(psutil.Process().children(), timeout=PATIENCE_SECONDS)


def make(tmp_path: Path, pool: str = "p", clock: Callable[[], float] = time.time) -> LocalProcess:
    environment = {"PATH": os.environ["PATH"]}
    return LocalProcess(
        Context(tmp_path / "jobs" / pool, "0123456789abcdef", pool, environment), clock=clock
    )


def request(script: str, sequence: int = 1, **more: object) -> LaunchRequest:
    argv = ("/bin/sh", "-c", script)
    return LaunchRequest(LaunchKey.make("p", sequence), argv, RESOURCES, **more)  # type: ignore[arg-type]


def launch(backend: LocalProcess, script: str, sequence: int = 1) -> Job:
    (job,) = backend.launch([request(script, sequence)])
    assert isinstance(job, Job), job
    return job


def listed(backend: LocalProcess, job: Job) -> Job:
    (found,) = [other for other in backend.list_jobs() if other.id == job.id]
    return found


def has_ended(backend: LocalProcess, job: Job) -> Callable[[], bool]:
    return lambda: listed(backend, job).state is JobState.ENDED


def place(tmp_path: Path, job: Job) -> Path:
    return tmp_path / "jobs" / "p" / job.id


def script_process(tmp_path: Path, job: Job) -> psutil.Process:
    eventually((place(tmp_path, job) / "process").exists)
    return psutil.Process(int((place(tmp_path, job) / "process").read_text().split()[0]))


LONG = "trap 'exit 7' TERM; while :; do sleep 0.05; done"


def test_a_worker_runs_until_it_leaves_and_its_exit_code_is_known(
    backend: LocalProcess, tmp_path: Path
) -> None:
    job = launch(backend, "mkfifo go; read line < go; exit 5")
    assert listed(backend, job).state is JobState.ACTIVE
    eventually((place(tmp_path, job) / "go").exists)
    assert listed(backend, job).state is JobState.ACTIVE
    (place(tmp_path, job) / "go").write_text("\n")
    eventually(has_ended(backend, job))
    ended = listed(backend, job)
    assert ended.exit_code == 5
    assert ended.ended is not None


def test_what_a_worker_prints_is_its_log(backend: LocalProcess) -> None:
    job = launch(backend, "echo out; echo err >&2")
    eventually(has_ended(backend, job))
    assert backend.logs(job.id) == "out\nerr\n"


def test_ending_a_job_lets_the_worker_finish_and_tells_its_exit_code(
    backend: LocalProcess,
) -> None:
    job = launch(backend, "echo ready; " + LONG)
    eventually(lambda: "ready" in backend.logs(job.id))
    assert backend.terminate([job.id]) == {job.id: None}
    eventually(has_ended(backend, job))
    assert listed(backend, job).exit_code == 7


def test_a_job_that_is_ended_while_it_starts_ends(backend: LocalProcess, tmp_path: Path) -> None:
    for sequence in range(20):
        job = launch(backend, LONG, sequence)
        script_process(tmp_path, job)
        assert backend.terminate([job.id]) == {job.id: None}
        eventually(has_ended(backend, job))


def test_ending_what_is_gone_is_success(backend: LocalProcess) -> None:
    job = launch(backend, "exit 0")
    eventually(has_ended(backend, job))
    never = str(LaunchKey.make("p", 9))
    assert backend.terminate([job.id, never]) == {job.id: None, never: None}


def test_a_worker_that_does_not_follow_is_killed_when_asked_again(
    backend: LocalProcess, clock: Clock
) -> None:
    job = launch(backend, "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    eventually(lambda: "ready" in backend.logs(job.id))
    clock.now = 1000.0
    backend.terminate([job.id])
    backend.terminate([job.id])
    assert listed(backend, job).state is JobState.ACTIVE
    clock.now += GRACE_SECONDS
    assert backend.terminate([job.id]) == {job.id: None}
    eventually(has_ended(backend, job))
    assert listed(backend, job).why == "killed by force"


def test_a_worker_that_was_killed_is_started_again_over_its_directory(
    backend: LocalProcess, tmp_path: Path
) -> None:
    job = launch(backend, "echo x >> starts; [ $(wc -l < starts) -eq 3 ] || kill -9 $$; exit 0")
    eventually(has_ended(backend, job))
    assert listed(backend, job).exit_code == 0
    assert (place(tmp_path, job) / "starts").read_text() == "x\nx\nx\n"


def test_a_worker_that_is_killed_every_time_is_given_up(
    backend: LocalProcess, tmp_path: Path
) -> None:
    job = launch(backend, "echo x >> starts; kill -9 $$")
    eventually(has_ended(backend, job))
    ended = listed(backend, job)
    assert (ended.exit_code, ended.why) == (137, "killed by signal 9")
    assert (place(tmp_path, job) / "starts").read_text().count("x") == 10


def test_what_a_worker_that_was_killed_for_good_left_running_is_ended(
    backend: LocalProcess, tmp_path: Path
) -> None:
    key = LaunchKey.make("p", 1)
    home = f"{backend.work_directory.replace(KEY, str(key))}/runs/one"
    script = f"HOME={home} setsid sleep 1000 9>&- & echo $! > stray; wait"
    (job,) = backend.launch([LaunchRequest(key, ("/bin/sh", "-c", script), RESOURCES)])
    assert isinstance(job, Job)
    with subprocess.Popen(["sleep", "1000"], env={"HOME": str(tmp_path)}) as neighbour:
        pid = place(tmp_path, job) / "stray"
        eventually(lambda: pid.exists() and pid.read_text().strip())
        stray = psutil.Process(int(pid.read_text()))
        group = int((place(tmp_path, job) / "process").read_text().split()[0])
        os.killpg(group, signal.SIGKILL)
        eventually(has_ended(backend, job))
        assert stray.is_running()
        launch(backend, "exit 0", sequence=2)
        eventually(lambda: not stray.is_running() or stray.status() == psutil.STATUS_ZOMBIE)
        is_left_alone = neighbour.poll() is None
        neighbour.kill()
    assert is_left_alone


def test_workers_outlive_the_manager_and_are_found_again(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "import test_local_process as t; b = t.make(Path(sys.argv[1]));"
        "print(t.launch(b, t.LONG).id, flush=True)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    backend = make(tmp_path)
    (job,) = backend.list_jobs()
    assert (job.id, job.state) == (told.stdout.strip(), JobState.ACTIVE)
    script_process(tmp_path, job)
    backend.terminate([job.id])
    eventually(has_ended(backend, job))


def test_a_key_launched_twice_is_one_job(backend: LocalProcess, tmp_path: Path) -> None:
    asked = request("echo x >> ../starts; " + LONG)
    jobs = [job for _ in range(3) for job in backend.launch([asked])]
    assert {job.id for job in jobs if isinstance(job, Job)} == {str(asked.key)}
    eventually((tmp_path / "jobs" / "p" / "starts").exists)
    backend.terminate([str(asked.key)])
    job = jobs[0]
    assert isinstance(job, Job)
    eventually(has_ended(backend, job))
    (again,) = backend.launch([asked])
    assert isinstance(again, Job)
    assert again.state is JobState.ENDED
    assert (tmp_path / "jobs" / "p" / "starts").read_text() == "x\n"


def test_a_launch_that_died_between_record_and_process_is_made_good_by_the_same_key(
    backend: LocalProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*arguments: object, **more: object) -> int:
        raise KilledError

    asked = request(LONG)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", killed)
        with pytest.raises(KilledError):
            backend.launch([asked])
    (left,) = backend.list_jobs()
    assert (left.state, left.started, left.why) == (JobState.ENDED, None, "never started")
    (job,) = backend.launch([asked])
    assert isinstance(job, Job)
    assert job.state is JobState.ACTIVE


def test_a_torn_record_hides_no_live_worker(backend: LocalProcess, tmp_path: Path) -> None:
    job = launch(backend, LONG)
    script_process(tmp_path, job)
    (place(tmp_path, job) / "record").write_text('{"key": "p-1')
    assert listed(backend, job).state is JobState.ACTIVE
    assert backend.terminate([job.id]) == {job.id: None}
    eventually(has_ended(backend, job))


def test_a_worker_whose_script_was_killed_is_alive_until_it_ends_itself(
    backend: LocalProcess, tmp_path: Path
) -> None:
    job = launch(backend, "echo ready; " + LONG)
    eventually(lambda: "ready" in backend.logs(job.id))
    script_process(tmp_path, job).kill()
    psutil.wait_procs(psutil.Process().children(), timeout=1)
    assert listed(backend, job).state is JobState.ACTIVE
    backend.terminate([job.id])
    eventually(has_ended(backend, job))
    ended = listed(backend, job)
    assert (ended.exit_code, ended.why) in [
        (None, "killed by force"),
        (None, "its process is gone"),
    ]


def test_a_process_that_got_a_jobs_old_number_is_not_ended(
    backend: LocalProcess, tmp_path: Path
) -> None:
    job = launch(backend, LONG)
    process = script_process(tmp_path, job)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        stat = Path(f"/proc/{stranger.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        fields[19] = "1"  # a start time that is not the stranger's
        before = stat.rpartition(")")[0]
        (place(tmp_path, job) / "process").write_text(f"{before}) {' '.join(fields)}")
        assert backend.terminate([job.id])[job.id] is not None
        assert stranger.poll() is None
        stranger.kill()
    os.killpg(process.pid, signal.SIGKILL)


def test_jobs_of_other_pools_and_owners_are_never_counted_or_ended(
    backend: LocalProcess, tmp_path: Path
) -> None:
    other = make(tmp_path, pool="q")
    (theirs,) = other.launch(
        [LaunchRequest(LaunchKey.make("q", 1), ("/bin/sh", "-c", LONG), RESOURCES)]
    )
    assert isinstance(theirs, Job)
    assert backend.list_jobs() == []
    assert isinstance(backend.terminate([theirs.id])[theirs.id], Invalid)
    assert isinstance(backend.terminate(["../q/" + theirs.id])["../q/" + theirs.id], Invalid)

    job = launch(backend, LONG)
    script_process(tmp_path, job)
    record = place(tmp_path, job) / "record"
    record.write_text(json.dumps({**json.loads(record.read_text()), "owner": "f" * 16}))
    assert backend.list_jobs() == []
    assert isinstance(backend.terminate([job.id])[job.id], Invalid)
    assert other.list_jobs()[0].state is JobState.ACTIVE


def test_a_secret_is_in_the_workers_environment_and_in_no_file(
    backend: LocalProcess, tmp_path: Path
) -> None:
    (job,) = backend.launch(
        [request('[ "$TOKEN" = "hu""sh" ] && echo got it', secrets={"TOKEN": "hush"})]
    )
    assert isinstance(job, Job)
    eventually(has_ended(backend, job))
    assert backend.logs(job.id) == "got it\n"
    for path in place(tmp_path, job).rglob("*"):
        assert path.is_dir() or "hush" not in path.read_text()


def test_an_executable_that_is_not_there_is_invalid_and_leaves_nothing(
    backend: LocalProcess,
) -> None:
    asked = LaunchRequest(LaunchKey.make("p", 1), ("no-such-worker",), RESOURCES)
    (result,) = backend.launch([asked])
    assert isinstance(result, Invalid)
    assert "no-such-worker" in str(result)
    assert backend.list_jobs() == []


def test_one_request_that_fails_does_not_fail_the_others(backend: LocalProcess) -> None:
    bad = LaunchRequest(LaunchKey.make("p", 1), ("no-such-worker",), RESOURCES)
    results = backend.launch([request("exit 0", 2), bad, request("exit 0", 3)])
    assert [type(result) for result in results] == [Job, Invalid, Job]


def test_ended_jobs_and_their_logs_are_kept_within_bounds(
    backend: LocalProcess, tmp_path: Path
) -> None:
    loud = launch(backend, f"head -c {LOG_KEPT_BYTES + 5} /dev/zero | tr '\\0' x; echo end")
    eventually(has_ended(backend, loud))
    for sequence in range(ENDED_KEPT + 3):
        eventually(has_ended(backend, launch(backend, "exit 0", 2 + sequence)))
        if sequence == 0:
            log = (place(tmp_path, loud) / "log").read_text()
            assert len(log) == LOG_KEPT_BYTES
            assert log.endswith("xend\n")
    assert len(backend.list_jobs()) <= ENDED_KEPT + 1
    assert not place(tmp_path, loud).exists()


def test_ended_workers_leave_no_zombies(backend: LocalProcess) -> None:
    job = launch(backend, "exit 0")
    eventually(has_ended(backend, job))
    eventually(lambda: backend.list_jobs() and not psutil.Process().children())


def test_a_list_that_cannot_be_read_is_an_error_and_not_an_empty_list(
    backend: LocalProcess, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "p").write_text("not a directory")
    with pytest.raises(Invalid):
        backend.list_jobs()


def test_listing_makes_and_changes_nothing(backend: LocalProcess, tmp_path: Path) -> None:
    assert backend.list_jobs() == []
    assert list(tmp_path.iterdir()) == []
