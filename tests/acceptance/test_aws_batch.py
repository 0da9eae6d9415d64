"""AWS Batch at a socket: what is asked, how often, and what becomes of it. Jobs do not run here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.aws.server import FakeAws, Fault, moto

from backends.aws_batch.backend import AwsBatch
from backends.aws_batch.connection import Patience
from backends.aws_batch.mark import SET_TAG, definition_name, ending_reason
from backends.aws_batch.options import AwsSettings
from backends.base import (
    KEY,
    BackendError,
    Context,
    EndCause,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Throttled,
    Unauthorized,
    Unreachable,
)

OWNER, POOL = "0123456789abcdef", "night"
RESOURCES = JobResources(cpus=1, gpus=0, memory_bytes=2048 * 1024**2)
PATIENCE = Patience(
    read_seconds=5.0, first_wait_seconds=0.02, longest_wait_seconds=0.5, longest_seconds=10.0
)
DAY_SECONDS = 24 * 3600.0


@pytest.fixture(scope="module", autouse=True)
def other_services() -> None:
    moto()


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    with FakeAws(runs=False) as running:
        running.batch.capacity = 0
        running.batch.add_queue("workers", "EC2")
        running.batch.add_queue("spots", "SPOT")
        running.batch.add_queue("boxes", "FARGATE")
        yield running


class Manager:
    """A manager's backend, and its keys."""

    def __init__(self, aws: FakeAws, directory: Path, **settings: Any) -> None:
        self.aws = aws
        self.context = Context(directory, OWNER, POOL)
        self.settings = AwsSettings(
            **{
                "image": "workers:1",
                "job_queue": "workers",
                "region": "us-east-1",
                "endpoint": aws.url,
                "execution_role": aws.add_role("execution"),
                **settings,
            }
        )
        self.sequence = 1
        self.backend = self.restarted()

    def restarted(self) -> AwsBatch:
        return AwsBatch(
            self.context,
            self.settings,
            patience=PATIENCE,
            clock=self.aws.clock,
            pause=lambda seconds: None,
        )

    def requests(self, number: int = 1, **more: Any) -> list[LaunchRequest]:
        keys = LaunchKey.make_row(POOL, self.sequence, number)
        self.sequence += number
        argv = ("bundle-worker", "--id", KEY)
        return [LaunchRequest(key, argv, RESOURCES, **more) for key in keys]

    def launch(self, number: int = 1, **more: Any) -> list[Job]:
        return jobs_of(self.backend.launch(self.requests(number, **more)))

    def listed(self) -> dict[str, Job]:
        return {job.id: job for job in self.backend.list_jobs()}

    def only(self) -> Job:
        (job,) = self.backend.list_jobs()
        return job


@pytest.fixture
def manager(aws: FakeAws, tmp_path: Path) -> Manager:
    return Manager(aws, tmp_path / "jobs")


def jobs_of(results: Sequence[LaunchResult]) -> list[Job]:
    assert all(isinstance(result, Job) for result in results), results
    return [result for result in results if isinstance(result, Job)]


# What is registered and submitted


def test_many_launches_of_one_kind_have_one_job_definition(aws: FakeAws, manager: Manager) -> None:
    for _ in range(3):
        manager.launch(2)
    manager.backend = manager.restarted()
    manager.launch(1)
    (registered,) = aws.asked("RegisterJobDefinition")
    assert registered["jobDefinitionName"] == f"codalab-worker-{OWNER}-{POOL}"
    (definition,) = aws.batch.definitions
    arns = {asked["jobDefinition"] for asked in aws.asked("SubmitJob")}
    assert arns == {definition["jobDefinitionArn"]}


def test_what_makes_another_definition_is_a_revision_of_it_and_the_first_is_found_again(
    aws: FakeAws, manager: Manager, tmp_path: Path
) -> None:
    manager.launch(1)
    other = Manager(aws, tmp_path / "jobs", image="workers:2")
    other.sequence = 10
    other.launch(1)
    assert [definition["revision"] for definition in aws.batch.definitions] == [1, 2]
    for number in range(150):  # more than a page
        strange = {**aws.asked("RegisterJobDefinition")[0], "tags": {SET_TAG: str(number)}}
        aws.batch.call("RegisterJobDefinition", strange)
    manager.backend = manager.restarted()
    manager.launch(1)
    assert aws.calls("RegisterJobDefinition") == 2
    assert aws.asked("SubmitJob")[-1]["jobDefinition"].endswith(":1")


def test_a_definition_that_somebody_deregistered_is_made_again(
    aws: FakeAws, manager: Manager
) -> None:
    manager.launch(1)
    aws.batch.definitions[0]["status"] = "INACTIVE"
    (refused,) = manager.backend.launch(manager.requests(1))
    assert isinstance(refused, Invalid)
    manager.launch(1)
    assert [d["status"] for d in aws.batch.definitions] == ["INACTIVE", "ACTIVE"]


def test_a_lost_reply_to_a_registration_makes_no_second_revision(
    aws: FakeAws, manager: Manager
) -> None:
    with aws.trouble(Fault.REPLY_LOST, "RegisterJobDefinition"):
        manager.launch(1)
    assert len(aws.batch.definitions) == 1


def test_a_thousand_workers_are_one_submission_and_one_worker_is_a_plain_job(
    aws: FakeAws, manager: Manager
) -> None:
    many, one = manager.launch(1000), manager.launch(1)
    first, second = aws.asked("SubmitJob")
    assert first["arrayProperties"] == {"size": 1000}
    assert first["jobName"] == str(many[0].key)
    assert first["containerOverrides"]["command"][:2] == ["/bin/sh", "-c"]
    assert "arrayProperties" not in second
    assert second["containerOverrides"]["command"] == ["bundle-worker", "--id", str(one[0].key)]
    assert [job.id.rpartition(":")[2] for job in many[:2]] == ["0", "1"]
    assert ":" not in one[0].id


def test_more_workers_than_an_array_has_are_several_arrays(aws: FakeAws, manager: Manager) -> None:
    aws.batch.unspread = True
    manager.launch(10_001)
    sizes = [asked.get("arrayProperties") for asked in aws.asked("SubmitJob")]
    assert sizes == [{"size": 10_000}, None]


def test_jobs_are_tagged_and_their_tasks_too(aws: FakeAws, manager: Manager) -> None:
    (job,) = manager.launch(1)
    (asked,) = aws.asked("SubmitJob")
    assert asked["tags"] == {
        "worker-manager-owner": OWNER,
        "worker-manager-pool": POOL,
        "worker-manager-key": str(job.key),
    }
    assert asked["propagateTags"] is True


def test_workers_on_machines_of_ec2_have_the_engine_and_their_directory(
    aws: FakeAws, manager: Manager
) -> None:
    manager.launch(1)
    (asked,) = aws.asked("RegisterJobDefinition")
    container = asked["containerProperties"]
    places = [volume["host"]["sourcePath"] for volume in container["volumes"]]
    assert places == ["/var/run/docker.sock", "/var/tmp/worker-manager"]
    assert [point["containerPath"] for point in container["mountPoints"]] == places
    assert manager.backend.work_directory == f"/var/tmp/worker-manager/{KEY}"
    capabilities = manager.backend.capabilities
    assert (capabilities.worker_runtime, capabilities.preemptible) == ("docker", False)


def test_workers_on_fargate_run_bundles_as_processes(aws: FakeAws, tmp_path: Path) -> None:
    manager = Manager(aws, tmp_path, job_queue="boxes")
    manager.launch(1)
    (asked,) = aws.asked("RegisterJobDefinition")
    assert "volumes" not in asked["containerProperties"]
    assert asked["platformCapabilities"] == ["FARGATE"]
    assert manager.backend.capabilities.worker_runtime == "process"


def test_a_spot_queue_is_preemptible(aws: FakeAws, tmp_path: Path) -> None:
    assert Manager(aws, tmp_path, job_queue="spots").backend.capabilities.preemptible


def test_who_starts_while_aws_is_away_waits_for_it(aws: FakeAws, tmp_path: Path) -> None:
    """A set of pools asks each for its capabilities once, and must not fall with one of them."""
    manager = Manager(aws, tmp_path, job_queue="boxes")
    aws.close()
    assert manager.backend.capabilities.launches_per_call == 10_000
    with pytest.raises(Unreachable):
        manager.backend.list_jobs()
    aws.open()
    with aws.trouble(Fault.THROTTLED):
        assert manager.backend.capabilities.idempotency is Idempotency.LOOKUP
    assert manager.backend.list_jobs() == []
    assert manager.backend.capabilities.worker_runtime == "process"


def test_what_only_a_submission_needs_is_said_there(aws: FakeAws, tmp_path: Path) -> None:
    aws.batch.queues["workers"]["schedulingPolicyArn"] = "arn:aws:batch:::scheduling-policy/fair"
    manager = Manager(
        aws, tmp_path, share_identifier="night", scheduling_priority=7, timeout=3600, attempts=3
    )
    gpus = JobResources(cpus=4, gpus=2, memory_bytes=8 * 1024**3)
    (request,) = manager.requests(1, environment={"A": "b"})
    jobs_of(manager.backend.launch([LaunchRequest(request.key, request.argv, gpus, {"A": "b"})]))
    (asked,) = aws.asked("SubmitJob")
    assert asked["shareIdentifier"] == "night"
    assert asked["schedulingPriorityOverride"] == 7
    assert asked["timeout"] == {"attemptDurationSeconds": 3600}
    assert asked["retryStrategy"]["attempts"] == 3
    overrides = asked["containerOverrides"]
    assert {r["type"]: r["value"] for r in overrides["resourceRequirements"]} == {
        "VCPU": "4",
        "MEMORY": "8192",
        "GPU": "2",
    }
    assert overrides["environment"] == [{"name": "A", "value": "b"}]


def test_an_empty_word_of_a_command_line_stays_one(aws: FakeAws, manager: Manager) -> None:
    (request,) = manager.requests(1)
    request = LaunchRequest(request.key, ("worker", "", "x y"), RESOURCES)
    jobs_of(manager.backend.launch([request]))
    (asked,) = aws.asked("SubmitJob")
    assert asked["containerOverrides"]["command"] == ["/bin/sh", "-c", "exec worker '' 'x y'"]


# Secrets


def test_secrets_are_kept_once_and_again_when_they_change(aws: FakeAws, manager: Manager) -> None:
    for value in ("one", "one", "two"):
        manager.launch(1, secrets={"WORKER_MANAGER_TOKEN": value})
    kept = aws.asked("PutParameter")
    name = f"/worker-manager/{OWNER}/{POOL}/WORKER_MANAGER_TOKEN"
    assert [(asked["Name"], asked["Value"]) for asked in kept] == [(name, "one"), (name, "two")]
    assert {asked["Type"] for asked in kept} == {"SecureString"}
    (registered,) = aws.asked("RegisterJobDefinition")
    assert registered["containerProperties"]["secrets"] == [
        {
            "name": "WORKER_MANAGER_TOKEN",
            "valueFrom": f"arn:aws:ssm:us-east-1:123456789012:parameter{name}",
        }
    ]


def test_a_secret_of_the_operator_s_own_is_named_and_never_written(
    aws: FakeAws, tmp_path: Path
) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:workers-AbCdEf"
    manager = Manager(aws, tmp_path, secret=arn)
    manager.launch(1, secrets={"CODALAB_USERNAME": "u", "CODALAB_PASSWORD": "p"})
    (registered,) = aws.asked("RegisterJobDefinition")
    assert registered["containerProperties"]["secrets"] == [
        {"name": "CODALAB_PASSWORD", "valueFrom": f"{arn}:CODALAB_PASSWORD::"},
        {"name": "CODALAB_USERNAME", "valueFrom": f"{arn}:CODALAB_USERNAME::"},
    ]
    assert {asked.service for asked in aws.requests} == {"batch"}


def test_secrets_without_a_role_to_read_them_are_refused_before_anything_is_done(
    aws: FakeAws, tmp_path: Path
) -> None:
    manager = Manager(aws, tmp_path, execution_role=None)
    (refused,) = manager.backend.launch(manager.requests(1, secrets={"A": "b"}))
    assert isinstance(refused, Invalid)
    assert "--execution-role" in str(refused)
    assert aws.calls("PutParameter") + aws.calls("RegisterJobDefinition") == 0
    manager.launch(1)


def test_credentials_that_cannot_be_kept_launch_nothing(aws: FakeAws, manager: Manager) -> None:
    with aws.trouble(Fault.FORBIDDEN, "PutParameter"):
        (refused,) = manager.backend.launch(manager.requests(1, secrets={"A": "hush"}))
    assert isinstance(refused, Unauthorized)
    assert "hush" not in str(refused)
    assert aws.calls("SubmitJob") == 0


# Never two jobs of one key


def test_a_submission_whose_reply_is_lost_is_asked_for_once_and_looked_up(
    aws: FakeAws, manager: Manager
) -> None:
    requests = manager.requests(3)
    with aws.trouble(Fault.REPLY_LOST, "SubmitJob"):
        jobs = jobs_of(manager.backend.launch(requests))
    assert aws.calls("SubmitJob") == 1
    assert {job.id for job in jobs} == set(manager.listed())


def test_a_submission_that_aws_is_slow_to_show_is_not_made_again(
    aws: FakeAws, manager: Manager
) -> None:
    aws.batch.lag_seconds = 30.0
    requests = manager.requests(2)
    with aws.trouble(Fault.REPLY_LOST, "SubmitJob"):
        results = manager.backend.launch(requests)
    assert [type(result) for result in results] == [Unreachable] * 2
    assert aws.calls("ListJobs") == 3
    for backend in (manager.backend, manager.restarted()):
        assert {type(result) for result in backend.launch(requests)} == {Unreachable}
    aws.advance(31.0)
    jobs = jobs_of(manager.restarted().launch(requests))
    assert [job.key for job in jobs] == [request.key for request in requests]
    assert aws.calls("SubmitJob") == 1


def test_a_submission_that_the_service_broke_at_is_not_made_again(
    aws: FakeAws, manager: Manager
) -> None:
    requests = manager.requests(2)
    with aws.trouble(Fault.BROKEN, "SubmitJob"):
        results = manager.backend.launch(requests)
    assert [type(result) for result in results] == [Unreachable] * 2
    assert aws.calls("SubmitJob") == 1


def test_a_submission_that_never_left_this_machine_may_be_made_again(
    aws: FakeAws, manager: Manager
) -> None:
    manager.launch(1)
    requests = manager.requests(1)
    aws.close()
    (lost,) = manager.backend.launch(requests)
    aws.open()
    assert isinstance(lost, Unreachable)
    assert isinstance(manager.backend.launch(requests)[0], Job)


def test_a_throttled_submission_is_made_again_when_aws_says(aws: FakeAws, manager: Manager) -> None:
    with aws.trouble(Fault.THROTTLED, "SubmitJob", left=2, retry_after_seconds=0.1):
        manager.launch(2)
    assert aws.calls("SubmitJob") == 3
    assert len(aws.batch.jobs) == 3


def test_a_pause_longer_than_ours_is_left_to_the_manager(aws: FakeAws, manager: Manager) -> None:
    with aws.trouble(Fault.THROTTLED, "SubmitJob", retry_after_seconds=60.0):
        (throttled,) = manager.backend.launch(manager.requests(1))
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after_seconds == 60.0
    assert aws.calls("SubmitJob") == 1


def test_another_job_of_the_same_name_is_not_taken_for_the_lost_one(
    aws: FakeAws, manager: Manager
) -> None:
    (request,) = manager.requests(1)
    manager.launch(1)
    theirs = aws.client("batch")
    for name in (str(request.key), str(request.key).upper()):
        theirs.submit_job(
            jobName=name,
            jobQueue="workers",
            jobDefinition=definition_name(manager.context, "codalab-worker"),
        )
    with aws.trouble(Fault.BROKEN, "SubmitJob"):
        (lost,) = manager.backend.launch([request])
    assert isinstance(lost, Unreachable)
    assert request.key not in {job.key for job in manager.backend.list_jobs()}


def test_a_damaged_record_of_a_launch_stops_everything_and_says_what_to_do(
    aws: FakeAws, manager: Manager
) -> None:
    (job,) = manager.launch(1)
    path = manager.context.directory / f"{job.key}.json"
    path.write_text("{")
    (refused,) = manager.restarted().launch(manager.requests(1))
    assert isinstance(refused, Invalid)
    assert str(path) in str(refused)
    with pytest.raises(Invalid):
        manager.restarted().list_jobs()


# The list


def test_a_thousand_living_workers_take_a_call_for_each_hundred_and_one_list(
    aws: FakeAws, manager: Manager
) -> None:
    manager.launch(1000)
    manager.backend.list_jobs()
    for backend in (manager.backend, manager.restarted()):
        before = aws.calls()
        assert len(backend.list_jobs()) == 1000
        assert aws.calls() - before <= 10 + 1 + 2
        assert aws.calls("ListJobs") <= 3


def test_small_launches_cost_no_more_than_a_large_one(aws: FakeAws, manager: Manager) -> None:
    for _ in range(30):
        manager.launch(4)
    manager.backend.list_jobs()
    before = aws.calls()
    assert len(manager.backend.list_jobs()) == 120
    assert aws.calls() - before == 2 + 1


def test_what_has_ended_is_not_asked_for_again(aws: FakeAws, manager: Manager) -> None:
    jobs = manager.launch(150)
    for job in jobs:
        aws.batch.start(job.id)
        aws.batch.exited(job.id, 0)
    assert len(manager.backend.list_jobs()) == 150
    before = aws.calls("DescribeJobs")
    assert {job.cause for job in manager.backend.list_jobs()} == {EndCause.FINISHED}
    assert aws.calls("DescribeJobs") == before
    (ended, living) = manager.launch(2)
    aws.batch.start(ended.id)
    aws.batch.exited(ended.id, 0)
    for _ in range(2):
        manager.backend.list_jobs()
    assert aws.asked("DescribeJobs")[-1]["jobs"] == [living.id]


def test_a_list_goes_back_only_to_the_last_one(aws: FakeAws, manager: Manager) -> None:
    aws.batch.largest_page = 5
    for _ in range(20):
        manager.launch(1)
    aws.advance(3600.0)
    manager.launch(1)
    for backend in (manager.backend, manager.restarted()):
        assert len(backend.list_jobs()) == 21
        aws.advance(3600.0)
        before = aws.calls("ListJobs")
        backend.list_jobs()
        assert aws.calls("ListJobs") - before == 1


def test_a_list_whose_second_page_fails_is_an_error(aws: FakeAws, manager: Manager) -> None:
    manager.launch(1)
    manager.launch(1)
    aws.batch.largest_page = 1
    with (
        aws.trouble(Fault.BROKEN, "ListJobs", when=lambda asked: "nextToken" in asked),
        pytest.raises(Unreachable),
    ):
        manager.restarted().list_jobs()
    assert len(manager.restarted().list_jobs()) == 2


def test_children_are_pending_before_their_array_is_spread_out(
    aws: FakeAws, manager: Manager
) -> None:
    aws.batch.unspread = True
    manager.launch(3)
    for backend in (manager.backend, manager.restarted()):
        assert [job.state for job in backend.list_jobs()] == [JobState.PENDING] * 3
    manager.backend.terminate([job.id for job in manager.backend.list_jobs()])


def test_an_array_that_is_cancelled_before_it_is_spread_out_has_ended_children(
    aws: FakeAws, manager: Manager
) -> None:
    aws.batch.unspread = True
    (first, _) = manager.launch(2)
    aws.client("batch").cancel_job(jobId=first.id.partition(":")[0], reason="no")
    jobs = manager.backend.list_jobs()
    assert [job.cause for job in jobs] == [EndCause.KILLED_BY_OTHERS] * 2
    assert {job.why for job in jobs} == {"no"}


def test_a_job_that_aws_does_not_show_yet_is_pending(aws: FakeAws, manager: Manager) -> None:
    aws.batch.lag_seconds = 30.0
    jobs = manager.launch(2)
    assert {job.id: job.state for job in manager.backend.list_jobs()} == {
        job.id: JobState.PENDING for job in jobs
    }


def test_a_job_that_aws_showed_and_does_not_show_is_not_taken_for_gone(
    aws: FakeAws, manager: Manager
) -> None:
    first, second = [*manager.launch(1), *manager.launch(1)]
    assert len(manager.listed()) == 2
    aws.batch.hidden = {first.id}
    with pytest.raises(Unreachable):
        manager.backend.list_jobs()
    aws.advance(601.0)
    assert set(manager.listed()) == {second.id}
    aws.batch.hidden = set()
    assert set(manager.listed()) == {first.id, second.id}


def test_an_id_that_cannot_be_written_down_is_looked_up(aws: FakeAws, manager: Manager) -> None:
    requests = manager.requests(2)
    obstacle = manager.context.directory / f"{requests[0].key}.new"

    def obstruct(asked: dict[str, Any]) -> bool:
        obstacle.mkdir()
        return False

    with aws.trouble(Fault.BROKEN, "SubmitJob", when=obstruct):
        jobs = jobs_of(manager.backend.launch(requests))
    assert jobs_of(manager.restarted().launch(requests)) == [*manager.listed().values()]
    assert {job.id for job in jobs} == set(manager.listed())
    assert aws.calls("SubmitJob") == 1


def test_jobs_that_another_option_would_hide_are_still_listed(
    aws: FakeAws, manager: Manager
) -> None:
    (old,) = manager.launch(1)
    (request,) = manager.requests(1)
    aws.batch.lag_seconds = 30.0
    with aws.trouble(Fault.REPLY_LOST, "SubmitJob"):
        manager.backend.launch([request])
    moved = Manager(
        aws, manager.context.directory, job_queue="spots", job_definition_name="another"
    )
    moved.sequence = 5
    (new,) = moved.launch(1)
    aws.advance(31.0)
    assert {job.key for job in moved.backend.list_jobs()} == {old.key, request.key, new.key}


def test_jobs_are_found_without_anything_on_this_machine(
    aws: FakeAws, manager: Manager, tmp_path: Path
) -> None:
    jobs = [*manager.launch(3), *manager.launch(1)]
    other = Manager(aws, tmp_path / "new home")
    assert set(other.listed()) == {job.id for job in jobs}
    assert {job.key for job in other.backend.list_jobs()} == {job.key for job in jobs}


def test_ended_jobs_leave_the_list_after_a_day_and_the_memory_after_eight(
    aws: FakeAws, manager: Manager
) -> None:
    (short, long) = manager.launch(2)
    for job in (short, long):
        aws.batch.start(job.id)
    aws.batch.exited(short.id, 0)
    assert manager.listed()[short.id].state is JobState.ENDED
    aws.advance(DAY_SECONDS + 1)
    for backend in (manager.backend, manager.restarted()):
        assert [job.id for job in backend.list_jobs()] == [long.id]
    aws.advance(8 * DAY_SECONDS)
    assert set(manager.listed()) == {long.id}
    manager.launch(1)
    assert len([*manager.context.directory.iterdir()]) == 2
    aws.batch.exited(long.id, 0)
    manager.listed()
    aws.advance(9 * DAY_SECONDS)
    assert manager.listed().keys().isdisjoint({short.id, long.id})
    manager.launch(1)
    assert not (manager.context.directory / f"{short.key}.json").exists()


# States and ends


def test_a_worker_whose_machine_was_taken_back_is_tried_again_as_often_as_was_asked(
    aws: FakeAws, tmp_path: Path
) -> None:
    manager = Manager(aws, tmp_path, job_queue="spots", attempts=2)
    (job,) = manager.launch(1)
    aws.batch.start(job.id)
    aws.batch.reclaim(job.id)
    again = manager.only()
    assert (again.state, again.started, again.exit_code) == (JobState.PENDING, None, None)
    assert again.why.startswith("Host EC2")
    aws.batch.start(job.id)
    assert manager.only().state is JobState.ACTIVE
    aws.batch.reclaim(job.id)
    assert manager.only().cause is EndCause.PREEMPTED


def test_a_worker_that_failed_is_not_tried_again(aws: FakeAws, tmp_path: Path) -> None:
    manager = Manager(aws, tmp_path, attempts=5)
    (job,) = manager.launch(1)
    aws.batch.start(job.id)
    aws.batch.exited(job.id, 3)
    ended = manager.only()
    assert (ended.cause, ended.exit_code) == (EndCause.FAILED, 3)


def test_a_worker_that_ran_too_long_was_killed_by_the_service(aws: FakeAws, tmp_path: Path) -> None:
    manager = Manager(aws, tmp_path, timeout=60)
    (job,) = manager.launch(1)
    aws.batch.start(job.id)
    aws.advance(61.0)
    ended = manager.only()
    assert ended.cause is EndCause.KILLED_BY_OTHERS
    assert ended.why == "Job attempt duration exceeded timeout"


def test_a_worker_whose_image_cannot_be_pulled_has_failed_and_says_why(
    aws: FakeAws, manager: Manager
) -> None:
    (job,) = manager.launch(1)
    aws.batch.fail_to_start(job.id, "CannotPullContainerError: no such image")
    ended = manager.only()
    assert (ended.cause, ended.exit_code, ended.started) == (EndCause.FAILED, None, None)
    assert "CannotPullContainerError" in ended.why


def test_a_hundred_jobs_are_ended_and_keep_our_reason(aws: FakeAws, manager: Manager) -> None:
    jobs = manager.launch(100)
    ids = [job.id for job in jobs]
    assert manager.backend.terminate(ids) == dict.fromkeys(ids)
    assert {asked["reason"] for asked in aws.asked("TerminateJob")} == {
        ending_reason(manager.context)
    }
    assert {job.cause for job in manager.restarted().list_jobs()} == {EndCause.KILLED_BY_US}


def test_an_array_is_no_worker_and_neither_is_a_child_that_it_does_not_have(
    aws: FakeAws, manager: Manager
) -> None:
    (first, _) = manager.launch(2)
    array = first.id.partition(":")[0]
    for job_id in (array, f"{array}:2", f"{array}:0:0"):
        assert isinstance(manager.backend.terminate([job_id])[job_id], Invalid)
    assert aws.calls("TerminateJob") == 0


def test_the_last_mebibyte_of_a_log_is_read_backwards(aws: FakeAws, manager: Manager) -> None:
    (job,) = manager.launch(1)
    assert manager.backend.logs(job.id) == ""
    aws.batch.start(job.id)
    assert manager.backend.logs(job.id) == ""
    lines = [f"{number:07d} {'x' * 40}" for number in range(40_000)]
    aws.processes.logs[str(aws.batch.jobs[job.id].stream)] = lines
    said = manager.backend.logs(job.id)
    assert len(said) == 1024**2
    assert said.endswith(f"{lines[-1]}\n")


# What is wrong with a configuration


def faults(manager: Manager) -> dict[str, Finding]:
    return {f.subject: f for f in manager.backend.check() if f.error is not None}


def test_a_queue_that_does_not_exist_is_said_and_nothing_is_launched(
    aws: FakeAws, tmp_path: Path
) -> None:
    manager = Manager(aws, tmp_path, job_queue="nowhere")
    (finding,) = faults(manager).values()
    assert isinstance(finding.error, Invalid)
    assert "'nowhere'" in finding.sentence
    assert "us-east-1" in finding.sentence
    (refused,) = manager.backend.launch(manager.requests(1))
    assert isinstance(refused, Invalid)
    with pytest.raises(Invalid):
        manager.backend.list_jobs()
    assert aws.calls("RegisterJobDefinition") + aws.calls("SubmitJob") == 0


def test_a_queue_that_takes_no_jobs_is_said(aws: FakeAws, manager: Manager) -> None:
    aws.batch.queues["workers"]["state"] = "DISABLED"
    assert "DISABLED" in faults(manager)["--job-queue"].sentence
    (refused,) = manager.backend.launch(manager.requests(1))
    assert isinstance(refused, Invalid)


def test_machines_that_are_too_small_or_not_there_are_said(aws: FakeAws, tmp_path: Path) -> None:
    manager = Manager(aws, tmp_path, cpus=300)
    (finding,) = faults(manager).values()
    assert "300" in finding.sentence
    aws.batch.environments["workers-environment"]["status"] = "INVALID"
    (finding,) = faults(manager).values()
    assert "INVALID" in finding.sentence


def test_a_pair_that_fargate_does_not_have_is_said_with_the_next_one(
    aws: FakeAws, tmp_path: Path
) -> None:
    manager = Manager(aws, tmp_path, job_queue="boxes", cpus=3, memory_mb=5000, gpus=1)
    found = faults(manager)
    assert set(found) == {"--memory-mb", "--gpus"}
    assert found["--memory-mb"].remedy == "the next are --cpus 4 --memory-mb 8192"
    (refused,) = manager.backend.launch(manager.requests(1))
    assert isinstance(refused, Invalid)
    assert aws.calls("SubmitJob") == 0


@pytest.mark.parametrize("prefix", ["work", "/"])
def test_a_work_directory_that_no_container_can_have_is_said(
    aws: FakeAws, manager: Manager, prefix: str
) -> None:
    context = Context(manager.context.directory, OWNER, POOL, work_directory_prefix=prefix)
    with pytest.raises(Invalid, match="--worker-work-dir-prefix"):
        AwsBatch(context, manager.settings)


def test_a_platform_that_the_queue_is_not_is_said(aws: FakeAws, tmp_path: Path) -> None:
    manager = Manager(aws, tmp_path, platform="fargate")
    assert "--platform fargate" in faults(manager)["--job-queue"].sentence


@pytest.mark.parametrize("kind", ["EKS", "ECS_MANAGED_INSTANCES"])
def test_a_queue_of_machines_that_workers_cannot_run_on_is_said(
    aws: FakeAws, manager: Manager, kind: str
) -> None:
    environment = aws.batch.environments["workers-environment"]
    if kind == "EKS":
        environment["containerOrchestrationType"] = kind
    else:
        environment["computeResources"]["type"] = kind
    assert kind in faults(manager)["--job-queue"].sentence


def test_whose_share_it_is_must_be_said_on_a_fair_queue_alone(
    aws: FakeAws, manager: Manager, tmp_path: Path
) -> None:
    named = Manager(aws, tmp_path / "named", share_identifier="night")
    assert set(faults(named)) == {"--share-identifier"}
    aws.batch.queues["workers"]["schedulingPolicyArn"] = "arn:aws:batch:::scheduling-policy/fair"
    assert faults(Manager(aws, tmp_path / "named", share_identifier="night")) == {}
    (refused,) = manager.backend.launch(manager.requests(1))
    assert isinstance(refused, Invalid)
    assert "--share-identifier" in str(refused)


def test_roles_secrets_images_and_log_groups_that_are_not_there_are_said(
    aws: FakeAws, tmp_path: Path
) -> None:
    arn = "arn:aws:iam::123456789012:role/"
    manager = Manager(
        aws,
        tmp_path,
        execution_role=f"{arn}nobody",
        job_role=aws.add_role("lambda", "lambda.amazonaws.com"),
        secret="arn:aws:secretsmanager:us-east-1:123456789012:secret:none-AbCdEf",
        image="123456789012.dkr.ecr.us-east-1.amazonaws.com/workers:1",
        log_group="nothing",
    )
    found = faults(manager)
    assert set(found) == {"--execution-role", "--job-role", "--secret", "--image", "--log-group"}
    for finding in found.values():
        assert isinstance(finding.error, Invalid)
        assert finding.remedy
    assert "does not trust" in found["--job-role"].sentence


def test_what_may_not_be_looked_at_is_no_fault(aws: FakeAws, manager: Manager) -> None:
    with aws.trouble(Fault.FORBIDDEN, "GetRole"):
        findings = {finding.subject: finding for finding in manager.backend.check()}
    assert findings["--execution-role"].error is None
    assert "AccessDenied" in findings["--execution-role"].sentence


@pytest.mark.parametrize(
    ("region", "kind"), [("eu-nowhere-1", Invalid), ("eu-west-1", Unreachable)]
)
def test_of_a_region_that_gives_no_answer_it_is_said_whether_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: str, kind: type[BackendError]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    settings = AwsSettings(image="x", region=region)
    patience = Patience(connect_seconds=1.0, attempts=1)
    (finding,) = AwsBatch(Context(tmp_path, OWNER, POOL), settings, patience=patience).check()
    assert type(finding.error) is kind
    assert finding.subject == "--region"
    assert "\n" not in finding.sentence


def test_a_profile_that_does_not_exist_is_said(
    aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    manager = Manager(aws, tmp_path / "jobs", profile="night")
    (finding,) = faults(manager).values()
    assert isinstance(finding.error, Invalid)
    assert "night" in finding.sentence


# Credentials and endpoints


def test_credentials_that_were_exchanged_in_their_file_are_read_again(
    aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kept))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def write(key: str) -> None:
        kept.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")

    write("OLD")
    manager = Manager(aws, tmp_path / "jobs")
    manager.launch(1)
    assert "Credential=OLD/" in aws.requests[-1].headers
    write("NEW")
    with aws.trouble(Fault.UNAUTHORIZED, left=1):
        assert len(manager.listed()) == 1
    assert "Credential=NEW/" in aws.requests[-1].headers


def test_who_is_known_and_may_not_is_not_asked_for_other_credentials(
    aws: FakeAws, manager: Manager
) -> None:
    with aws.trouble(Fault.FORBIDDEN, "DescribeJobQueues"), pytest.raises(Unauthorized):
        manager.backend.list_jobs()
    assert aws.calls() == 1


def test_an_emulator_on_this_machine_needs_no_credentials(
    aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    Manager(aws, tmp_path / "jobs").launch(1)
    assert "Credential=anonymous/" in aws.requests[-1].headers


def test_the_endpoint_that_boto3_knows_is_asked_without_an_option(
    aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    manager = Manager(aws, tmp_path, endpoint=None)
    manager.launch(1, secrets={"A": "b"})
    assert aws.calls("SubmitJob") == aws.calls("PutParameter") == 1


# Dry runs


def test_a_dry_run_is_what_the_command_line_of_aws_would_take(
    aws: FakeAws, manager: Manager
) -> None:
    (shown, _) = manager.backend.launch(
        manager.requests(2, secrets={"WORKER_MANAGER_TOKEN": "hush"}), dry_run=True
    )
    first, second = str(getattr(shown, "text", "")).splitlines()
    assert first.startswith("aws batch register-job-definition --cli-input-json '")
    asked = json.loads(first.partition("'")[2][:-1])
    assert asked["tags"][SET_TAG]
    assert second.startswith("aws batch submit-job --cli-input-json '")
    assert "hush" not in first + second
    assert aws.calls() == 0
