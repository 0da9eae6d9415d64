"""Slurm's words: what its commands print, what they are given, what they complain of."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from backends.base import (
    KEY,
    BackendError,
    EndCause,
    Invalid,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from backends.slurm import options
from backends.slurm.cluster import Configuration
from backends.slurm.commands import Commands
from backends.slurm.errors import slurm_error, was_never_asked
from backends.slurm.jobs import (
    SEPARATOR,
    Element,
    Evidence,
    Mark,
    gone_job,
    job,
    parse_history,
    parse_queue,
)
from backends.slurm.launches import Launches
from backends.slurm.script import script, secrets_text, submission
from backends.slurm.settings import Options, time_limit_seconds

OWNER = "0123456789abcdef"
FIRST = LaunchKey("p-1", 7, "01234567")
MARK = Mark(OWNER, "p-1", FIRST, 3)
RESOURCES = JobResources(2, 0, 300 * 1024**2)


def line(*fields: str) -> str:
    return SEPARATOR.join(fields) + "\n"


def queued(state: str = "RUNNING", comment: str = str(MARK), name: str = "12_1") -> str:
    times = ("1700000000", "1700000010", "1700009999")
    return line(name, state, "None", *times, "n1", "ours", comment)


# squeue and sacct


def test_a_mark_says_whose_an_array_is_and_which_keys_it_has() -> None:
    assert Mark.parse(str(MARK)) == MARK
    assert MARK.key(2) == LaunchKey("p-1", 9, "01234567")


@pytest.mark.parametrize(
    "comment",
    [
        "", "(null)", f"{MARK}0x", f" {MARK}", str(MARK).upper(),
        str(MARK).replace("/p-1/", "/p/"), str(MARK).replace(OWNER, OWNER[1:]),
        str(MARK).rpartition("/")[0],
    ],
)  # fmt: skip
def test_a_comment_that_is_not_a_mark_to_the_letter_is_nobody_s(comment: str) -> None:
    assert Mark.parse(comment) is None
    assert parse_queue(queued(comment=comment), {}) == []


def test_the_queue_is_read_with_whatever_others_call_their_jobs() -> None:
    text = (
        queued()
        + queued(comment="two\nlines | and , more")
        + queued(name="13")
        + queued(name="14_[1-5]")
        + queued("PENDING", name="12_2").replace("1700000010", "N/A")
    )
    running, pending = parse_queue(text, {})
    assert running == (
        Element(12, 1, "RUNNING", "None", 1.7e9, 1.7e9 + 10, 1.7e9 + 9999, "n1"),
        MARK,
    )
    assert pending[0].id == "12_2"
    assert pending[0].started is None


@pytest.mark.parametrize("cut", [1, 20, len(str(MARK))])
def test_a_queue_that_was_not_read_to_its_end_is_not_believed(cut: int) -> None:
    with pytest.raises(ValueError, match="stopped in the midst"):
        parse_queue((queued() + queued(name="12_2"))[:-cut], {})


def test_an_array_whose_comment_the_cluster_has_replaced_is_still_ours() -> None:
    text = "".join(queued(comment="site", name=name) for name in ("11_1", "12_0", "12_2", "12_3"))
    found = parse_queue(text, {12: ("ours", MARK)})
    assert [(element.id, mark) for element, mark in found] == [("12_0", MARK), ("12_2", MARK)]
    assert parse_queue(text, {12: ("another", MARK)}) == []
    another = str(MARK).replace(OWNER, OWNER[::-1])
    ((_, mark),) = parse_queue(queued(comment=another), {12: ("ours", MARK)})
    assert mark.owner == OWNER[::-1]


def test_history_is_of_our_jobs_alone() -> None:
    text = (
        line("12_0", "ours", "CANCELLED by 1000", "0:15", "1", "2", "3", "n1")
        + line("12_1", "ours", "FAILED", "3:0", "1", "2", "Unknown", "n1")
        + line("12_2", "another", "FAILED", "3:0", "1", "2", "3", "n1")
        + line("13_0", "ours", "FAILED", "3:0", "1", "2", "3", "n1")
        + line("12_[3-9]", "ours", "PENDING", "0:0", "1", "Unknown", "Unknown", "")
    )
    cancelled, failed = parse_history(text, {12: "ours"})
    assert (cancelled.state, cancelled.reason, cancelled.exit_code) == (
        "CANCELLED",
        "by 1000",
        None,
    )
    assert (failed.exit_code, failed.ended) == (3, None)


# States


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING", JobState.PENDING),
        ("CONFIGURING", JobState.PENDING),
        ("REQUEUED", JobState.PENDING),
        ("REQUEUE_HOLD", JobState.PENDING),
        ("SPECIAL_EXIT", JobState.PENDING),
        ("RUNNING", JobState.ACTIVE),
        ("COMPLETING", JobState.ACTIVE),
        ("SUSPENDED", JobState.ACTIVE),
        ("STAGE_OUT", JobState.ACTIVE),
        ("A_STATE_TO_COME", JobState.ACTIVE),
    ],
)
def test_what_has_not_ended_counts(state: str, expected: JobState) -> None:
    found = job(Element(1, 0, state, "None", 1.0, 2.0), FIRST, Evidence())
    assert (found.state, found.cause, found.ended) == (expected, None, None)
    assert found.why or state == "RUNNING"


def test_a_pending_job_waits_for_what_slurm_says_it_waits_for() -> None:
    for reason in ("Resources", "Priority", "JobHeldAdmin", "BeginTime", "ReqNodeNotAvail"):
        assert job(Element(1, 0, "PENDING", reason), FIRST, Evidence()).why == reason


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("COMPLETED", EndCause.FINISHED),
        ("FAILED", EndCause.FAILED),
        ("OUT_OF_MEMORY", EndCause.FAILED),
        ("NODE_FAIL", EndCause.PREEMPTED),
        ("PREEMPTED", EndCause.PREEMPTED),
        ("BOOT_FAIL", EndCause.PREEMPTED),
        ("TIMEOUT", EndCause.KILLED_BY_OTHERS),
        ("CANCELLED", EndCause.KILLED_BY_OTHERS),
        ("DEADLINE", EndCause.OUT_OF_CAPACITY),
        ("REVOKED", EndCause.UNKNOWN),
    ],
)
def test_every_end_has_a_cause(state: str, cause: EndCause) -> None:
    found = job(Element(1, 0, state, "None", 1.0, 2.0, 3.0), FIRST, Evidence())
    assert (found.state, found.cause, found.ended) == (JobState.ENDED, cause, 3.0)
    assert found.why or state in ("COMPLETED", "FAILED")


@pytest.mark.parametrize(
    ("state", "evidence", "cause", "exit_code"),
    [
        # A worker that had nothing to do when it was asked to end left in good order.
        ("CANCELLED", Evidence(exit_code=0, was_asked=True), EndCause.FINISHED, 0),
        ("CANCELLED", Evidence(exit_code=7, was_asked=True), EndCause.KILLED_BY_US, 7),
        ("CANCELLED", Evidence(was_asked=True), EndCause.KILLED_BY_US, None),
        ("CANCELLED", Evidence(exit_code=7), EndCause.KILLED_BY_OTHERS, 7),
        ("FAILED", Evidence(exit_code=7, was_warned=True), EndCause.KILLED_BY_OTHERS, 7),
        ("FAILED", Evidence(exit_code=3), EndCause.FAILED, 3),
        ("NODE_FAIL", Evidence(exit_code=7), EndCause.PREEMPTED, 7),
        ("PREEMPTED", Evidence(exit_code=0, was_asked=True), EndCause.PREEMPTED, 0),
        ("OUT_OF_MEMORY", Evidence(was_asked=True), EndCause.FAILED, None),
    ],
)
def test_slurm_s_word_and_the_worker_s_make_one_cause(
    state: str, evidence: Evidence, cause: EndCause, exit_code: int | None
) -> None:
    found = job(Element(1, 0, state, "None", 1.0, 2.0, 3.0), FIRST, evidence)
    assert (found.cause, found.exit_code) == (cause, exit_code)


def test_a_job_that_was_cancelled_before_it_ran_never_started() -> None:
    found = job(Element(1, 0, "CANCELLED", "None", 1.0, 3.0, 3.0), FIRST, Evidence())
    assert found.started is None


def test_the_evidence_alone_tells_of_jobs_that_slurm_forgot() -> None:
    left = Evidence(array=1, started=2.0, ended=3.0, exit_code=3)
    assert gone_job(1, 0, FIRST, left, 1.0).cause is EndCause.FAILED
    assert gone_job(1, 0, FIRST, Evidence(was_asked=True), 1.0).cause is EndCause.KILLED_BY_US
    unknown = gone_job(1, 0, FIRST, Evidence(started=2.0), 1.0)
    assert (unknown.cause, unknown.state) == (EndCause.UNKNOWN, JobState.ENDED)
    assert "no longer" in unknown.why


# Errors


@pytest.mark.parametrize(
    ("said", "error", "word"),
    [
        ("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission "
         "failed: Invalid partition name specified", Invalid, "--partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition "
         "combination specified", Invalid, "--account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", Invalid, "--qos"),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job "
         "submit limit, user's size and/or time limits)", QuotaExceeded, "--account"),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
         QuotaExceeded, ""),
        ("sbatch: error: Batch job submission failed: User's group not permitted to use this "
         "partition", Unauthorized, "--partition"),
        ("slurm_load_jobs error: Protocol authentication error", Unauthorized, "munged"),
        ("sbatch: error: Batch job submission failed: Required partition not available (inactive "
         "or drain)", OutOfCapacity, ""),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
         Unreachable, "slurmctld"),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
         Unreachable, ""),
        ("squeue: error: RPC rate limit exceeded", Throttled, ""),
        ("sbatch: error: Batch job submission failed: A refusal to come", Invalid, "to come"),
        ("", Unreachable, "nothing"),
        ("Segmentation fault", Unreachable, "Segmentation"),
    ],
)  # fmt: skip
def test_every_complaint_is_one_error_of_the_taxonomy(
    said: str, error: type[BackendError], word: str
) -> None:
    found = slurm_error("submitting", said)
    assert type(found) is error
    assert word in str(found)
    assert "\n" not in str(found)


def test_only_a_refused_connection_says_that_nothing_was_asked() -> None:
    assert was_never_asked("Unable to contact slurm controller (connect failure)")
    assert not was_never_asked("Socket timed out on send/recv operation")


def test_of_slurm_s_variables_its_commands_get_those_that_say_where_the_cluster_is() -> None:
    kept = {"SLURM_CONF": "c", "SLURM_CONF_SERVER": "head:6817", "SBATCH_PARTITION": "p"}
    left_out = {"SQUEUE_STATES": "FAILED", "SLURM_CLUSTERS": "all", "SBATCH_WAIT": "1"}
    commands = Commands({"PATH": os.environ["PATH"], **kept, **left_out})
    given = dict(line.split("=", 1) for line in commands.run("", ["env"], 60).output.splitlines())
    assert kept.items() <= given.items()
    assert not left_out.keys() & given.keys()
    assert commands.partition == "p"


# Options and what is submitted


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400.0), ("2:30", 150.0), ("1:02:03", 3723.0), ("2-12", 216_000.0),
        ("1-01:30", 91_800.0), ("1-00:00:30", 86_430.0), ("UNLIMITED", None), ("0", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_does(text: str, seconds: float | None) -> None:
    assert time_limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1-", "1:2:3:4", "-5", "1d"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        time_limit_seconds(text)


def settings(*words: str) -> dict[str, Any]:
    command = click.Command("slurm", params=list(options()))
    return dict(command.make_context("slurm", list(words)).params)


def test_the_options_of_cl_worker_manager_are_taken(tmp_path: Path) -> None:
    found = Options.from_settings(
        settings(
            *("--job-name", "n", "--nodelist", "a[1-2]", "--exclude", "b", "--partition", "p"),
            *("--cpus", "3", "--gpus", "2", "--gpu-type", "a100", "--constraint", "c"),
            *("--memory-mb", "100", "--time", "1-0", "--account", "acc", "--qos", "q"),
            *("--slurm-work-dir", str(tmp_path), "--exit-after-num-failed", "3"),
        )
    )
    assert found == Options(
        JobResources(3, 2, 100 * 1024**2), "n", "p", "acc", "q", "c", "a[1-2]", "b", "1-0", "a100",
        tmp_path,
    )  # fmt: skip


def test_nothing_is_asked_for_that_was_not_said() -> None:
    words = submission(Path("/l"), MARK, request(), Options.from_settings(settings()))
    names = {word.partition("=")[0] for word in words}
    assert not names & {"--account", "--partition", "--gres", "--qos", "--constraint"}
    assert "--array=0-2" in words
    assert "--mem=300M" in words
    assert "--time=10-0" in words
    assert "--no-requeue" in words


def test_another_user_s_jobs_cannot_be_asked_for() -> None:
    with pytest.raises(Invalid, match="--user nobody-at-all"):
        Options.from_settings(settings("--user", "nobody-at-all"))


@pytest.mark.parametrize(
    ("time", "seconds"), [("10-0", 120), ("UNLIMITED", 120), ("4", 60), ("1", 15)]
)
def test_workers_are_warned_early_and_short_jobs_keep_their_time(time: str, seconds: int) -> None:
    words = submission(Path("/l"), MARK, request(), Options(RESOURCES, time=time))
    assert f"--signal=B:USR1@{seconds}" in words


def test_gpus_are_asked_for_by_type_when_there_is_one() -> None:
    asked = LaunchRequest(FIRST, ("w",), JobResources(1, 2, 1024**2))
    assert "--gres=gpu:2" in submission(Path("/l"), MARK, asked, Options(RESOURCES))
    typed = Options(RESOURCES, gpu_type="a100")
    assert "--gres=gpu:a100:2" in submission(Path("/l"), MARK, asked, typed)


def request(*argv: str, **more: Any) -> LaunchRequest:
    return LaunchRequest(FIRST, argv or ("worker", "--id", KEY), RESOURCES, **more)


def test_the_configuration_says_what_concerns_us() -> None:
    text = (
        "Configuration data as of 2026\nMaxArraySize            = 5001\n"
        "AccountingStorageType   = accounting_storage/slurmdbd\nClusterName = c\n"
        "ProctrackType           = proctrack/cgroup\nSLURM_VERSION = 23.11.1\n"
    )
    assert Configuration.parse(text) == Configuration("c", "23.11.1", 5001, True, False)
    assert Configuration.parse("").array_size == 1001
    shorter = text + "SchedulerParameters = bf_interval=1,max_array_tasks=100\n"
    assert Configuration.parse(shorter).array_size == 100


# The script, run by a shell


def run_script(
    place: Path, asked: LaunchRequest, index: int = 1, **more: Any
) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    options: dict[str, Any] = {"removes": "work/{}", "signals_all": True, **more}
    (place / "script").write_text(script(place, MARK, asked, **options))
    (place / "secrets").write_text(secrets_text(asked))
    environment = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "12"}
    return subprocess.Popen(
        ["/bin/sh", str(place / "script")],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_script_runs_one_worker_with_its_key_and_secrets_and_leaves_word(
    tmp_path: Path,
) -> None:
    place = tmp_path / "a place's"
    work = tmp_path / "work" / "p-1-8-01234567"
    work.mkdir(parents=True)
    asked = request(
        "/bin/sh", "-c", 'echo "$0 $1 $TOKEN $SHOWN"', KEY, "it's $HOME",
        environment={"SHOWN": "a b"}, secrets={"TOKEN": "'$x\n"},
    )  # fmt: skip
    output, _ = run_script(place, asked).communicate(timeout=60)
    assert output == "p-1-8-01234567 it's $HOME '$x\n a b\n"
    assert (place / "1.exit").read_text() == "0 no\n"
    assert (place / "1.start").read_text().split()[0] == "12"
    assert not work.exists()


def test_the_exit_code_is_the_worker_s_and_its_files_stay_when_it_is_not_good(
    tmp_path: Path,
) -> None:
    work = tmp_path / "work" / "p-1-8-01234567"
    work.mkdir(parents=True)
    process = run_script(tmp_path / "l", request("/bin/sh", "-c", "exit 3"))
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert (tmp_path / "l" / "1.exit").read_text() == "3 no\n"
    assert work.exists()


@pytest.mark.parametrize(
    ("signal", "signals_all", "expected"),
    [("USR1", True, "7 yes\n"), ("USR1", False, "7 yes\n"), ("TERM", False, "7 no\n")],
)
def test_a_signal_for_the_script_alone_reaches_the_worker(
    tmp_path: Path, signal: str, signals_all: bool, expected: str
) -> None:
    worker = f"trap 'exit 7' TERM; kill -{signal} $PPID; while :; do sleep 0.05; done"
    process = run_script(tmp_path / "l", request("/bin/sh", "-c", worker), signals_all=signals_all)
    process.communicate(timeout=60)
    assert process.returncode == 7
    assert (tmp_path / "l" / "1.exit").read_text() == expected


def test_a_signal_that_everybody_gets_is_not_handed_on(tmp_path: Path) -> None:
    worker = "trap 'exit 7' TERM; kill -TERM $PPID; sleep 0.3; exit 0"
    process = run_script(tmp_path / "l", request("/bin/sh", "-c", worker))
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_job_whose_directory_is_not_there_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    asked = request("/bin/echo", "ran", secrets={"TOKEN": "x"})
    text = script(tmp_path / "l", MARK, asked, removes=None, signals_all=True)
    done = subprocess.run(
        ["/bin/sh", "-c", text],
        env={"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert "--slurm-work-dir" in done.stderr


# What is kept


def test_a_launch_is_kept_before_it_is_submitted_and_read_again(tmp_path: Path) -> None:
    launches = Launches(tmp_path / "jobs")
    words = submission(launches.place(FIRST), MARK, request(), Options(RESOURCES))
    kept = launches.intend(MARK, words, "script", "TOKEN=x\n", job_name="n", intended=5.0)
    assert (kept.place / "secrets").stat().st_mode & 0o777 == 0o600
    assert shlex.split((kept.place / "command").read_text()) == words
    assert launches.read(OWNER, "p-1") == [kept]
    assert launches.read(OWNER[::-1], "p-1") == []
    assert launches.read(OWNER, "p") == []
    assert MARK.key(2) in kept
    assert LaunchKey("p-1", 10, "01234567") not in kept
    launches.learn(kept, 12)
    assert launches.read(OWNER, "p-1")[0].array == 12


def test_an_array_s_id_that_was_never_written_down_is_told_by_its_elements(tmp_path: Path) -> None:
    launches = Launches(tmp_path)
    kept = launches.intend(MARK, [], "", "", job_name="n", intended=5.0)
    (kept.place / "2.start").write_text("12 n1\n")
    (kept.place / "2.exit").write_text("7 yes\n")
    launches.ask_to_end(kept, 1)
    (read,) = launches.read(OWNER, "p-1")
    assert read.array == 12
    evidence = read.evidence()
    assert (evidence[2].exit_code, evidence[2].was_warned, evidence[2].was_asked) == (
        7,
        True,
        False,
    )
    assert evidence[1].was_asked


@pytest.mark.parametrize("record", ["", "{", "[]", '{"owner": "0123456789abcdef"}'])
def test_a_torn_record_is_no_launch(tmp_path: Path, record: str) -> None:
    place = tmp_path / str(FIRST)
    place.mkdir()
    (place / "record").write_text(record)
    assert Launches(tmp_path).read(OWNER, "p-1") == []
