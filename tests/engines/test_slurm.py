"""Slurm, for real: every state that can be brought about, lost replies, and what is refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from managing import eventually
from slurm_cluster import SlurmCluster
from slurm_pool import MIB, RESOURCES, UNTIL_TOLD, Pool

from backends.base import (
    BackendError,
    EndCause,
    Invalid,
    Job,
    JobResources,
    JobState,
    OutOfCapacity,
    Unreachable,
)

pytestmark = pytest.mark.engine("slurm")

STUBBORN = """
trap 'echo asked' TERM
echo running
while :; do sleep 0.1; done
"""


@pytest.fixture
def make(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    yield lambda **options: Pool(slurm_cluster, tmp_path, **options)
    slurm_cluster.clear()


@pytest.fixture
def pool(make: Callable[..., Pool]) -> Pool:
    return make()


# States


def test_a_job_that_somebody_holds_says_so_and_runs_when_it_is_released(pool: Pool) -> None:
    pool.cluster.command("scontrol", "update", "partitionname=main", "state=down")
    try:
        (job,) = pool.launch()
        eventually(lambda: pool.job(job).why == "PartitionDown")
        pool.cluster.command("scontrol", "hold", job.id)
    finally:
        pool.cluster.command("scontrol", "update", "partitionname=main", "state=up")
    eventually(lambda: pool.job(job).why.startswith("JobHeld"))
    assert pool.job(job).state is JobState.PENDING
    pool.cluster.command("scontrol", "release", job.id)
    eventually(lambda: pool.job(job).state is JobState.ACTIVE)


def test_a_requeued_job_waits_again_and_its_worker_starts_anew(pool: Pool) -> None:
    job = pool.run("echo running $0; trap 'exit 7' TERM; while :; do sleep 0.1; done")
    pool.update(job, "requeue=1")
    pool.cluster.command("scontrol", "requeue", job.id)
    eventually(lambda: pool.job(job).state is JobState.PENDING)
    eventually(lambda: pool.job(job).why == "BeginTime")
    eventually(
        lambda: pool.backend.logs(job.id).count(f"running {job.key}\n") == 2,
        "the worker starts anew",
    )
    # What the first life has left is not taken for the end of the second.
    eventually(lambda: pool.job(job).state is JobState.ACTIVE, "Slurm says so, too")
    assert pool.job(job).exit_code is None


def test_a_preempted_job_is_told_from_one_that_failed(make: Callable[..., Pool]) -> None:
    pool = make(partition="low")
    job = pool.run(resources=JobResources(4, 0, 64 * MIB))
    for _ in range(2):
        pool.cluster.command(
            *("sbatch", "-p", "high", "-c", "4", "--mem=10", "-o", "/dev/null"),
            *("--wrap", "sleep 1000"),
        )
    ended = pool.ended(job)
    assert (ended.cause, ended.why) == (EndCause.PREEMPTED, "preempted by another job")


def test_a_worker_is_asked_to_leave_before_its_time_limit_and_ended_at_it(
    make: Callable[..., Pool],
) -> None:
    """In one test: Slurm looks at time limits every half minute."""
    pool = make(time="1")
    good, stubborn = pool.run(), pool.run(STUBBORN)
    ends_at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
    pool.update(stubborn, f"endtime={ends_at}")
    ended = pool.ended(good)
    assert (ended.exit_code, ended.cause) == (7, EndCause.KILLED_BY_OTHERS)
    assert ended.why == "asked to leave before its time limit (--time)"
    assert pool.backend.logs(good.id).splitlines()[:2] == ["running", "asked"]
    ended = pool.ended(stubborn)
    assert (ended.cause, ended.exit_code) == (EndCause.KILLED_BY_OTHERS, None)
    assert ended.why == "it reached its time limit (--time)"


def test_a_worker_that_takes_too_much_memory_is_told_so(pool: Pool) -> None:
    job = pool.run("echo running; x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 1000")
    ended = pool.ended(job)
    assert ended.cause in (EndCause.FAILED, EndCause.KILLED_BY_OTHERS)
    assert ended.why


def test_a_job_whose_script_cannot_start_has_failed(pool: Pool) -> None:
    pool.cluster.command("scontrol", "update", "partitionname=main", "state=down")
    (job,) = pool.launch(secrets={"TOKEN": "x"})
    (place,) = pool.directory.glob("p-*")
    (place / "secrets").unlink()
    pool.cluster.command("scontrol", "update", "partitionname=main", "state=up")
    ended = pool.ended(job)
    assert (ended.cause, ended.exit_code) == (EndCause.FAILED, 5)
    assert "cannot be used on" in pool.backend.logs(job.id)


def test_a_stubborn_worker_is_killed_in_the_end(pool: Pool) -> None:
    job = pool.run(STUBBORN)
    assert pool.backend.terminate([job.id]) == {job.id: None}
    ended = pool.ended(job)
    assert (ended.cause, ended.exit_code) == (EndCause.KILLED_BY_US, None)
    # Two requests would be taken for impatience: a worker leaves without giving bundles back.
    assert pool.backend.logs(job.id).splitlines().count("asked") == 1


# What Slurm has forgotten


def test_jobs_that_the_controller_forgot_are_remembered_by_what_they_left(pool: Pool) -> None:
    good, bad = pool.launch("exit 0")[0], pool.launch("exit 3")[0]
    for job in (good, bad):
        pool.ended(job)
    with pool.commands.failing("forget"):
        jobs = {job.id: job for job in pool.restarted().list_jobs()}
    assert (jobs[good.id].cause, jobs[good.id].exit_code) == (EndCause.FINISHED, 0)
    assert (jobs[bad.id].cause, jobs[bad.id].exit_code) == (EndCause.FAILED, 3)
    assert not any(call.startswith("sacct") for call in pool.commands.calls)


def test_accounting_tells_of_those_that_left_nothing(pool: Pool) -> None:
    jobs = [pool.run(), pool.run()]
    pool.cluster.command("scancel", jobs[1].id)
    pool.ended(jobs[1])
    pool.lose(jobs[0])
    for path in pool.directory.glob("*/*.exit"):
        path.unlink()

    def remembered() -> list[Job]:
        before = len(pool.commands.calls)
        with pool.commands.failing("forget"):
            found = pool.restarted().list_jobs()
        assert sum(call.startswith("sacct") for call in pool.commands.calls[before:]) == 1
        return found

    causes = (EndCause.KILLED_BY_OTHERS, EndCause.KILLED_BY_OTHERS)
    eventually(lambda: tuple(job.cause for job in remembered()) == causes, "accounting knows")
    assert remembered()[1].why.startswith("cancelled by ")


def test_a_list_survives_accounting_that_is_away(pool: Pool) -> None:
    job = pool.run()
    pool.lose(job)
    backend = pool.restarted()
    pool.cluster.stop_accounting()
    try:
        with pool.commands.failing("forget"):
            (found,) = backend.list_jobs()
            before = len(pool.commands.calls)
            backend.list_jobs()
            assert len(pool.commands.calls) == before + 1, "it is left alone for a while"
    finally:
        pool.cluster.start_accounting()
    assert (found.state, found.cause) == (JobState.ENDED, EndCause.UNKNOWN)


def test_without_accounting_an_end_that_nobody_saw_is_unknown(tmp_path: Path) -> None:
    cluster = SlurmCluster(nodes=2, accounting=False)
    try:
        cluster.start()
        pool = Pool(cluster, tmp_path)
        seen, unseen = pool.launch("exit 3")[0], pool.run()
        pool.ended(seen)
        pool.lose(unseen)
        backend = pool.restarted()
        with pool.commands.failing("forget"):
            jobs = {job.id: job for job in backend.list_jobs()}
        assert jobs[seen.id].exit_code == 3
        assert jobs[unseen.id].cause is EndCause.UNKNOWN
        assert not any(call.startswith("sacct") for call in pool.commands.calls)
        assert "without accounting" in " ".join(f.sentence for f in backend.check())
    finally:
        cluster.stop()


# Lost replies


def test_a_submission_that_hangs_after_it_was_taken_is_found(pool: Pool) -> None:
    requests = pool.requests(UNTIL_TOLD, 3)
    backend = pool.restarted(submit_seconds=2.0)
    with pool.commands.failing("hang-after"):
        results = backend.launch(requests)
    assert all(isinstance(result, Job) for result in results), results
    assert pool.submissions() == 1
    assert len(backend.list_jobs()) == 3


def test_a_controller_that_stops_answering_takes_a_submission_once(pool: Pool) -> None:
    """It is stopped while sbatch waits; what lies in its socket it does when it goes on."""
    requests = pool.requests(UNTIL_TOLD, 2)
    pool.launch("exit 0")  # its configuration is known now
    submissions = pool.submissions()
    pool.cluster.signal_controller(signal.SIGSTOP)
    try:
        began = time.monotonic()
        results = pool.backend.launch(requests)
        assert time.monotonic() - began < 60
        assert [type(result) for result in results] == [Unreachable] * 2
        with pytest.raises(Unreachable):
            pool.backend.list_jobs()
    finally:
        pool.cluster.signal_controller(signal.SIGCONT)

    def again() -> bool:
        return all(isinstance(result, Job) for result in pool.restarted().launch(requests))

    eventually(again, "the jobs are found")
    keys = {job.key for job in pool.restarted().list_jobs()}
    assert {request.key for request in requests} < keys
    assert len(keys) == len(pool.restarted().list_jobs()) == 3
    assert pool.submissions() == submissions + 1


def test_a_controller_that_is_away_is_told_in_time_and_nothing_is_forgotten(
    pool: Pool,
) -> None:
    job = pool.run()
    pool.cluster.stop_controller()
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="Unable to contact slurm controller"):
            pool.backend.list_jobs()
        (result,) = pool.backend.launch(pool.requests(UNTIL_TOLD))
        assert isinstance(result, Unreachable)
        assert time.monotonic() - began < 60
    finally:
        pool.cluster.start_controller()
    eventually(lambda: pool.job(job).state is JobState.ACTIVE)
    assert [other.id for other in pool.backend.list_jobs()] == [job.id]


# What is refused, and what is wrong


@pytest.mark.parametrize(
    ("options", "resources", "option"),
    [
        ({"partition": "nope"}, RESOURCES, "--partition"),
        ({"account": "nope"}, RESOURCES, "--account"),
        ({"qos": "nope"}, RESOURCES, "--qos"),
        ({"constraint": "nope"}, RESOURCES, "--constraint"),
        ({"nodelist": "nope"}, RESOURCES, "--nodelist"),
        ({"exclude": "nope"}, RESOURCES, "--exclude"),
        ({}, JobResources(1, 0, 99_000 * MIB), "--memory-mb"),
        ({"partition": "gpu"}, JobResources(1, 9, 64 * MIB), "--gpus"),
        ({"partition": "gpu", "gpu_type": "h100"}, JobResources(1, 1, 64 * MIB), "--gpu"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_the_cluster_does_not_have_is_refused_and_found(
    make: Callable[..., Pool], options: dict[str, str], resources: JobResources, option: str
) -> None:
    pool = make(**options)
    pool.options = replace(pool.options, resources=resources)
    backend = pool.restarted()
    (result,) = backend.launch(pool.requests("exit 0", resources=resources))
    assert isinstance(result, Invalid), result
    assert option in str(result)
    assert backend.list_jobs() == []
    wrong = [finding for finding in backend.check() if finding.error]
    assert [type(finding.error) for finding in wrong] == [Invalid]
    assert wrong[0].subject.startswith("--")
    assert wrong[0].remedy


@pytest.mark.parametrize(
    ("options", "subject", "error"),
    [
        ({"partition": "shut"}, "--partition", OutOfCapacity),
        ({"partition": "short", "time": "10"}, "--time", Invalid),
    ],
)
def test_what_would_wait_for_ever_is_found(
    make: Callable[..., Pool], options: dict[str, str], subject: str, error: type[BackendError]
) -> None:
    pool = make(**options)
    (wrong,) = [finding for finding in pool.backend.check() if finding.error]
    assert (wrong.subject, type(wrong.error)) == (subject, error)


def test_without_slurm_s_commands_the_first_one_is_named(pool: Pool, tmp_path: Path) -> None:
    pool.environment["PATH"] = str(tmp_path)
    backend = pool.restarted()
    (result,) = backend.launch(pool.requests("exit 0"))
    assert isinstance(result, Invalid)
    assert "on PATH" in str(result)
    wrong = [finding.subject for finding in backend.check() if finding.error]
    assert wrong == ["sbatch", "squeue", "scancel", "scontrol"]


# What jobs are given


def test_a_job_has_what_was_asked_for_and_nothing_of_the_submitter(
    make: Callable[..., Pool],
) -> None:
    pool = make(partition="gpu", gpu_type="a100", job_name="named")
    pool.environment |= {
        "SBATCH_WAIT": "1",
        "SBATCH_PARTITION": "low",
        "SQUEUE_STATES": "FAILED",
        "SLURM_JOB_ID": "1",
    }
    pool.backend = pool.restarted()
    resources = JobResources(2, 2, 300 * MIB)
    job = pool.run(
        "env; echo running; sleep 1000",
        resources=resources,
        environment={"SHOWN": "it's"},
        secrets={"TOKEN": "$se'cret"},
    )
    (line,) = pool.cluster.command(
        "squeue", "-h", "-j", job.id, "-o", "%j %P %C %m %b"
    ).splitlines()
    assert line == "named gpu 2 300M gres:gpu:a100:2"
    environment = pool.backend.logs(job.id).splitlines()
    assert "SHOWN=it's" in environment
    assert "TOKEN=$se'cret" in environment
    assert not any(word.startswith("LEAK=") for word in environment)
    assert f"SLURM_ARRAY_JOB_ID={job.id.partition('_')[0]}" in environment


def test_secrets_are_gone_once_the_last_worker_of_a_launch_has_ended(pool: Pool) -> None:
    first, last = pool.launch("echo running; while [ ! -e go-$0 ]; do sleep 0.1; done", 2,
                              secrets={"TOKEN": "x"})  # fmt: skip
    (place,) = pool.directory.glob("p-*")
    (place / f"go-{first.key}").touch()
    pool.ended(first)
    assert (place / "secrets").stat().st_mode & 0o777 == 0o600
    (place / f"go-{last.key}").touch()
    pool.ended(last)
    assert not (place / "secrets").exists()


def test_a_thousand_workers_take_one_submission_and_are_listed_at_once(pool: Pool) -> None:
    pool.cluster.command("scontrol", "update", "partitionname=main", "state=down")
    try:
        pool.backend.list_jobs()
        pool.launch("exit 0", 1000)
        assert pool.submissions() == 1
        before = len(pool.commands.calls)
        assert len(pool.backend.list_jobs()) == 1000
        assert len(pool.commands.calls) == before + 1
    finally:
        pool.cluster.command("scancel", "--user=root")
        pool.cluster.command("scontrol", "update", "partitionname=main", "state=up")
