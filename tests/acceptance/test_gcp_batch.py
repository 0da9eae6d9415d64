"""GCP Batch: what our backend asks of it, and the stand-in under a client that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.gcp.refusal import Refusal
from gcp_stand import OWNER, PARENT, PROJECT, SECRET, Stand, only_jobs, requests_for
from google.api_core.exceptions import ServiceUnavailable
from googleapiclient import discovery
from googleapiclient.errors import HttpError

from backends import patience
from backends.base import (
    EndCause,
    Invalid,
    JobState,
    LaunchKey,
    OutOfCapacity,
    Preview,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)
from backends.gcp_batch.errors import backend_error


@pytest.fixture(params=["grpc", "rest"])
def stand(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stand]:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.05)
    made = Stand(tmp_path, transport=request.param)
    try:
        yield made
    finally:
        made.close()


def test_one_call_launches_a_thousand_where_workers_share_a_job(stand: Stand) -> None:
    backend = stand.backend(workers_per_job=1000)
    jobs = only_jobs(backend.launch(requests_for(1000)))
    assert stand.calls("CreateJob") == 1
    assert len({job.worker_id for job in jobs}) == 1000
    (held,) = stand.cloud.jobs.values()
    assert held.message.task_groups[0].task_count == 1000
    assert held.message.task_groups[0].parallelism == 1000


def test_a_tick_asks_for_the_tasks_of_those_jobs_alone_that_have_changed(stand: Stand) -> None:
    backend = stand.backend(workers_per_job=3)
    only_jobs(backend.launch(requests_for(3)))
    (name,) = stand.cloud.jobs
    stand.cloud.start(name, 1)

    def states() -> list[JobState]:
        before = stand.calls("ListTasks")
        found = [job.state for job in backend.list_jobs()]
        asked.append(stand.calls("ListTasks") - before)
        return found

    asked: list[int] = []
    some = [JobState.PENDING, JobState.ACTIVE, JobState.PENDING]
    assert states() == states() == some
    assert asked == [1, 0]
    stand.cloud.end(name, 1, 0)
    assert states() == states() == [JobState.PENDING, JobState.ENDED, JobState.PENDING]
    assert asked == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("exit_code", "cause", "seen"),
    [
        (0, EndCause.FINISHED, 0),
        (3, EndCause.FAILED, 3),
        (137, EndCause.KILLED_BY_OTHERS, 137),
        (50001, EndCause.PREEMPTED, None),
        (50002, EndCause.PREEMPTED, None),
        (50005, EndCause.KILLED_BY_OTHERS, None),
        (50000, EndCause.UNKNOWN, None),
    ],
)
def test_an_end_is_told_by_its_exit_code(
    stand: Stand, exit_code: int, cause: EndCause, seen: int | None
) -> None:
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(1)))
    (name,) = stand.cloud.jobs
    stand.cloud.start(name, 0)
    stand.cloud.end(name, 0, exit_code)
    (job,) = backend.list_jobs()
    assert (job.state, job.cause, job.exit_code) == (JobState.ENDED, cause, seen)
    assert job.started is not None
    assert job.ended is not None


def test_a_preempted_worker_of_a_spot_job_is_started_again(stand: Stand) -> None:
    backend = stand.backend(provisioning="spot")
    assert backend.capabilities.preemptible
    only_jobs(backend.launch(requests_for(1)))
    (name,) = stand.cloud.jobs
    stand.cloud.start(name, 0)
    stand.cloud.preempt(name, 0)
    (job,) = backend.list_jobs()
    assert job.state is JobState.PENDING
    stand.cloud.start(name, 0)
    stand.cloud.end(name, 0, 3)
    (job,) = backend.list_jobs()
    assert (job.cause, job.exit_code) == (EndCause.FAILED, 3)


def test_the_name_of_a_job_is_allowed_whatever_the_pool_is_called(stand: Stand) -> None:
    pools = ["p", "A_b", "a-b", "x" * 48, "X" * 48]
    for pool in pools:
        only_jobs(stand.backend(pool).launch(requests_for(1, pool)))
    assert len(stand.cloud.jobs) == len(pools)
    for pool in pools:
        (job,) = stand.backend(pool).list_jobs()
        assert job.key is not None
        assert job.key.pool == pool


def test_a_key_inside_a_row_is_not_launched_again(stand: Stand) -> None:
    backend = stand.backend(workers_per_job=10)
    requests = requests_for(5)
    first = only_jobs(backend.launch(requests))
    again = only_jobs(stand.backend(workers_per_job=10).launch(requests[2:4]))
    assert [job.id for job in again] == [job.id for job in first[2:4]]
    assert stand.calls("CreateJob") == 1


def test_ended_workers_are_forgotten_after_a_day_and_removed(stand: Stand) -> None:
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(1)))
    (name,) = stand.cloud.jobs
    stand.cloud.start(name, 0)
    stand.cloud.end(name, 0, 0)
    (job,) = backend.list_jobs()
    ended = job.ended
    assert ended is not None
    later = stand.backend(clock=lambda: ended + 25 * 3600)
    assert later.list_jobs() == []
    only_jobs(later.launch(requests_for(1)))
    assert name not in stand.cloud.jobs


def test_credentials_are_put_once_and_old_ones_destroyed(stand: Stand) -> None:
    backend = stand.backend()
    for number, token in enumerate(["one", "one", "two", "three"]):
        (request,) = requests_for(1, secrets={"WORKER_MANAGER_TOKEN": token})
        keyed = replace(request, key=LaunchKey.make("p", number + 1))
        only_jobs(backend.launch([keyed]))
    assert stand.cloud.secrets[SECRET] == [
        None,
        b"export WORKER_MANAGER_TOKEN=two",
        b"export WORKER_MANAGER_TOKEN=three",
    ]


def test_several_credentials_are_one_line(stand: Stand) -> None:
    secrets = {"CODALAB_USERNAME": "jane", "CODALAB_PASSWORD": "it's hush"}
    only_jobs(stand.backend().launch(requests_for(1, secrets=secrets)))
    (kept,) = stand.cloud.secrets[SECRET]
    assert kept is not None
    said = subprocess.run(
        ["sh", "-c", 'eval "$C" && unset C && echo "$CODALAB_USERNAME $CODALAB_PASSWORD"'],
        env={"C": kept.decode(), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert said == "jane it's hush\n"
    assert b"\n" not in kept


def test_without_a_secret_no_worker_is_launched_that_could_not_log_in(stand: Stand) -> None:
    (result,) = stand.backend(secret=None).launch(requests_for(1, secrets={"T": "t"}))
    assert isinstance(result, Invalid)
    assert "--secret" in str(result)
    assert stand.cloud.jobs == {}


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal("UNAUTHENTICATED", "Who?"), Unauthorized),
        (Refusal("PERMISSION_DENIED", "No.", "SERVICE_DISABLED"), Unauthorized),
        (Refusal("INVALID_ARGUMENT", "machine_type x is not valid"), Invalid),
        (Refusal("NOT_FOUND", "Location x is not found"), Invalid),
        (Refusal("RESOURCE_EXHAUSTED", "Quota exceeded for CPUS"), QuotaExceeded),
        (Refusal("RESOURCE_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED"), OutOfCapacity),
        (Refusal("INTERNAL", "Oops."), Unreachable),
        (Refusal("DEADLINE_EXCEEDED", "Late."), Unreachable),
    ],
)
def test_a_refusal_is_told_by_its_code(
    stand: Stand, refusal: Refusal, error: type[Exception]
) -> None:
    def refuse(method: str, request: Any) -> None:
        raise refusal

    with stand.wire.faulty(before=refuse):
        (result,) = stand.backend().launch(requests_for(1))
    assert type(result) is error
    if refusal.code != "UNAUTHENTICATED":  # over REST the library says it in its own words
        assert refusal.message in str(result)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("('invalid_grant: Token has been expired or revoked.', {})", Unauthorized),
        ("HTTPSConnectionPool(host='h'): Max retries exceeded with url: /token", Unreachable),
    ],
)
def test_a_token_that_google_does_not_give_is_told_from_one_that_did_not_come(
    said: str, kind: type[Exception]
) -> None:
    """As gRPC words it."""
    error = ServiceUnavailable(f"Getting metadata from plugin failed with error: {said}")
    assert type(backend_error(error, "listing")) is kind


@pytest.mark.parametrize(
    ("refusal", "calls"),
    [(Refusal("UNAUTHENTICATED", "Who?"), 2), (Refusal("PERMISSION_DENIED", "No."), 1)],
)
def test_credentials_that_are_not_taken_are_looked_for_anew(
    stand: Stand, refusal: Refusal, calls: int
) -> None:
    def refuse(method: str, request: Any) -> None:
        if stand.calls() == 1:
            raise refusal

    backend = stand.backend()
    with stand.wire.faulty(before=refuse):
        if calls == 1:
            with pytest.raises(Unauthorized):
                backend.list_jobs()
        else:
            assert backend.list_jobs() == []
    assert stand.calls() == calls
    assert backend.list_jobs() == []


def test_a_filter_that_is_refused_is_done_without(stand: Stand) -> None:
    """What filters mean is not written down; whose a job is, is looked at here anyway."""

    def refuse(method: str, request: Any) -> None:
        if method == "ListJobs" and request.filter:
            raise Refusal("INVALID_ARGUMENT", "The filter is not valid.")

    ours = only_jobs(stand.backend().launch(requests_for(2)))
    only_jobs(stand.backend(owner="f" * 16).launch(requests_for(2)))
    stand.cloud.page_limit = 3
    with stand.wire.faulty(before=refuse):
        assert {job.id for job in stand.backend().list_jobs()} == {job.id for job in ours}
        assert all(finding.error is None for finding in stand.backend().check())


def test_an_end_that_met_another_change_is_asked_for_again(stand: Stand) -> None:
    """What is Invalid the manager gives up."""

    def refuse(method: str, request: Any) -> None:
        if method == "CancelJob" and stand.calls("CancelJob") <= 1:
            raise Refusal("ABORTED", "The job is being changed.")

    backend = stand.backend()
    (job,) = only_jobs(backend.launch(requests_for(1)))
    with stand.wire.faulty(before=refuse):
        assert backend.terminate([job.id]) == {job.id: None}
    assert stand.calls("CancelJob") == 2
    (ended,) = backend.list_jobs()
    assert ended.cause is EndCause.KILLED_BY_US


def test_a_dry_run_shows_the_job_and_asks_nothing(stand: Stand) -> None:
    (result,) = stand.backend().launch(requests_for(1, secrets={"T": "hush"}), dry_run=True)
    assert isinstance(result, Preview)
    assert "hush" not in result.text
    shown = json.loads(result.text.partition(": ")[2])
    assert shown["task_groups"][0]["task_count"] == 1
    assert stand.wire.requests == []


def previewed(stand: Stand, gpus: int = 0, **settings: Any) -> dict[str, Any]:
    (request,) = requests_for(1)
    asked = replace(request, resources=replace(request.resources, gpus=gpus))
    (result,) = stand.backend(**settings).launch([asked], dry_run=True)
    assert isinstance(result, Preview)
    job: dict[str, Any] = json.loads(result.text.partition(": ")[2])
    return job


@pytest.mark.parametrize(
    ("network", "subnetwork", "asked"),
    [
        (
            "vpc",
            "sub",
            (
                f"projects/{PROJECT}/global/networks/vpc",
                f"projects/{PROJECT}/regions/europe-west4/subnetworks/sub",
            ),
        ),
        (
            "projects/host/global/networks/vpc",
            "regions/r/subnetworks/sub",
            ("projects/host/global/networks/vpc", "regions/r/subnetworks/sub"),
        ),
    ],
)
def test_a_network_is_named_as_batch_takes_it(
    stand: Stand, network: str, subnetwork: str, asked: tuple[str, str]
) -> None:
    job = previewed(stand, network=network, subnetwork=subnetwork)
    (interface,) = job["allocation_policy"]["network"]["network_interfaces"]
    assert (interface["network"], interface["subnetwork"]) == asked


def test_machines_with_gpus_have_an_engine_that_gives_them_to_containers(stand: Stand) -> None:
    def policy(gpus: int) -> dict[str, Any]:
        job = previewed(stand, gpus, gpu_type="nvidia-l4")
        found: dict[str, Any] = job["allocation_policy"]["instances"][0]["policy"]
        return found

    assert policy(1)["boot_disk"] == {"image": "batch-debian"}
    assert "boot_disk" not in policy(0)


def test_work_directories_are_where_container_optimized_os_lets_files_be_executed(
    stand: Stand,
) -> None:
    """Under /var only below these three may a bundle start a program of its own."""
    executable = ("/var/lib/google/", "/var/lib/docker/", "/var/lib/toolbox/")
    assert stand.backend().work_directory.startswith(executable)
    (runnable,) = previewed(stand)["task_groups"][0]["task_spec"]["runnables"]
    place = stand.backend().work_directory.rpartition("/")[0]
    assert f"{place}:{place}" in runnable["container"]["volumes"]


def test_a_secret_that_is_not_there_is_found_by_the_check(stand: Stand) -> None:
    findings = stand.backend(secret=f"projects/{PROJECT}/secrets/other").check()
    wrong = [finding for finding in findings if finding.error is not None]
    assert [finding.subject for finding in wrong] == ["--secret"]
    assert "gcloud secrets create" in wrong[0].remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zones": "us-central1-a"}, "--zones"),
        ({"gpus": 1}, "--gpu-type"),
        ({"secret": "workers"}, "--secret"),
        ({"subnetwork": "s"}, "--network"),
        ({"endpoint": "http://batch.example"}, "--endpoint"),
        ({"image": "two words"}, "--image"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    made = Stand(tmp_path)
    try:
        with pytest.raises(Invalid, match=words):
            made.backend(**options)
    finally:
        made.close()


def test_the_client_of_the_discovery_document_sees_what_ours_made(tmp_path: Path) -> None:
    """The document and the client are Google's, and know nothing of the SDK that we use."""
    made = Stand(tmp_path)
    http = _Http(made.wire.rest_url)
    try:
        backend = made.backend(provisioning="spot", gpus=1, gpu_type="nvidia-l4")
        only_jobs(backend.launch(requests_for(2)))
        with discovery.build("batch", "v1", static_discovery=True, http=http) as batch:
            jobs = batch.projects().locations().jobs()
            listed = jobs.list(parent=PARENT).execute()["jobs"]
            assert [job["status"]["state"] for job in listed] == ["SCHEDULED", "SCHEDULED"]
            assert {job["labels"]["worker-manager-owner"] for job in listed} == {OWNER}
            _is_of(batch, "Job", listed[0])
            (group,) = listed[0]["taskGroups"]
            assert group["taskSpec"]["lifecyclePolicies"] == [
                {"action": "RETRY_TASK", "actionCondition": {"exitCodes": [50001]}}
            ]
            tasks = jobs.taskGroups().tasks().list(parent=group["name"]).execute()["tasks"]
            _is_of(batch, "Task", tasks[0])
            assert [task["status"]["state"] for task in tasks] == ["PENDING"]
            operation = jobs.cancel(name=listed[0]["name"], body={}).execute()
            _is_of(batch, "Operation", operation)
            assert jobs.get(name=listed[0]["name"]).execute()["status"]["state"] == "CANCELLED"
            with pytest.raises(HttpError) as error:
                jobs.get(name=f"{PARENT}/jobs/none").execute()
            assert error.value.status_code == 404
    finally:
        made.close()


def _is_of(service: Any, schema: str, document: dict[str, Any]) -> None:
    """Whether every field of a document is one of the discovery document's schema."""
    schemas = service._schema.schemas
    properties = schemas[schema]["properties"]
    for name, value in document.items():
        assert name in properties, f"{schema} has no {name}"
        described = properties[name]
        items = described.get("items", described)
        values = value if isinstance(value, list) else [value]
        if "enum" in items:
            assert set(values) <= set(items["enum"]), (schema, name, values)
        if "$ref" in items:
            for each in values:
                _is_of(service, items["$ref"], each)


class _Http:
    """httplib2's interface, to another address than the document says."""

    def __init__(self, url: str) -> None:
        import httplib2

        self._url = url
        self._http = httplib2.Http(timeout=20)

    def request(self, uri: str, *arguments: Any, **keywords: Any) -> Any:
        moved = uri.replace("https://batch.googleapis.com", self._url)
        return self._http.request(moved, *arguments, **keywords)

    def close(self) -> None:
        self._http.close()
