"""Azure Batch over a real socket: what is Azure's alone, and so not in the conformance suite."""

from __future__ import annotations

import json
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from azure_stand import JOB, POOL, Stand, only_jobs, requests_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes.azure.batch import ACCOUNT_KEY, refusal
from fakes.azure.blobs import STORAGE_ACCOUNT, STORAGE_KEY, BlobService
from fakes.azure.wire import Fault
from serving import Server

from backends import patience
from backends.azure_batch.backend import ENDED_LISTED_SECONDS, PRUNE_SECONDS
from backends.azure_batch.service import LOG_KEPT_BYTES
from backends.azure_batch.storage import CREDENTIALS_SECONDS
from backends.base import (
    EndCause,
    Finding,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    OutOfCapacity,
    Preview,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)

COLLECTION = "/addtaskcollection"
IDENTITY = (
    "/subscriptions/0/resourceGroups/g/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/workers"
)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    made = Stand(tmp_path)
    for name, value in made.keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.02)
    try:
        yield made
    finally:
        made.close()


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def said(findings: list[Finding]) -> list[tuple[str, type[Exception] | None]]:
    return [(one.subject, type(one.error) if one.error else None) for one in findings]


# Many at once


def test_a_thousand_workers_are_ten_calls_and_listed_in_three(stand: Stand) -> None:
    backend = stand.backend()
    assert backend.list_jobs() == []
    before = stand.calls("POST")
    asked = requests_for(1000, secrets={"TOKEN": "hush"})
    only_jobs(backend.launch(asked))
    assert stand.calls("POST", COLLECTION) == 10
    assert stand.calls("POST") - before == 11  # and one for the job, which was not there
    assert len(stand.blobs.wire.requests("PUT")) == 1
    before = stand.calls()
    assert len(backend.list_jobs()) == 1000
    assert stand.calls() - before == 3  # the list, the job, the pool


def test_a_list_of_many_pages_is_read_to_its_end(stand: Stand) -> None:
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(250)))
    stand.batch.largest_page = 100
    assert len({job.id for job in backend.list_jobs()}) == 250


def test_a_page_that_fails_once_is_asked_for_again_alone(stand: Stand) -> None:
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(30)))
    stand.batch.largest_page = 10
    stand.batch.wire.faults.append(Fault(target="skiptoken=20", times=1))
    before = stand.calls("GET", "/tasks$")
    assert len(backend.list_jobs()) == 30
    assert stand.calls("GET", "/tasks$") - before == 4


def test_a_collection_that_is_too_large_is_sent_in_halves(stand: Stand) -> None:
    stand.batch.wire.faults.append(
        Fault("POST", COLLECTION, times=2, answer=refusal(413, "RequestBodyTooLarge"))
    )
    only_jobs(stand.backend().launch(requests_for(100)))
    assert len(stand.tasks) == 100
    sizes = [
        len(json.loads(request.body)["value"])
        for request in stand.batch.wire.requests("POST", COLLECTION)
    ]
    assert sizes == [100, 50, 25, 25, 50]


def test_one_task_that_is_refused_does_not_refuse_the_others(stand: Stand) -> None:
    asked = requests_for(3)
    stand.batch.task_errors[str(asked[1].key)] = (1, "clienterror", "InvalidPropertyValue")
    results = stand.backend().launch(asked)
    assert [type(result) for result in results] == [Job, Invalid, Job]
    assert "\n" not in str(results[1])


def test_a_task_that_azure_itself_failed_at_is_tried_again_alone(stand: Stand) -> None:
    asked = requests_for(3)
    stand.batch.task_errors[str(asked[1].key)] = (1, "servererror", "InternalError")
    only_jobs(stand.backend().launch(asked))
    first, second = stand.batch.wire.requests("POST", COLLECTION)
    assert len(json.loads(first.body)["value"]) == 3
    assert [task["id"] for task in json.loads(second.body)["value"]] == [str(asked[1].key)]


def test_a_task_that_azure_fails_at_every_time_may_be_there(stand: Stand) -> None:
    asked = requests_for(1)
    stand.batch.task_errors[str(asked[0].key)] = (99, "servererror", "InternalError")
    (result,) = stand.backend().launch(asked)
    assert isinstance(result, Unreachable)


def test_what_was_added_is_known_when_trying_the_rest_again_fails(stand: Stand) -> None:
    asked = requests_for(3)
    stand.batch.task_errors[str(asked[1].key)] = (9, "servererror", "InternalError")
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(1)))
    busy = refusal(503, "ServerBusy", "", {"Retry-After": "300"})
    with stand.batch.wire.failing(Fault("POST", COLLECTION, answer=busy, after=1)):
        results = backend.launch(asked)
    assert [type(result) for result in results] == [Job, Unreachable, Job]


# Once only


def test_a_reply_that_was_lost_and_then_a_busy_service_is_no_certainty(stand: Stand) -> None:
    backend = stand.backend()
    backend.list_jobs()
    asked = requests_for(1)
    stand.account.create_job({"id": JOB, "poolInfo": {"poolId": POOL}})
    backend.list_jobs()
    stand.batch.wire.faults += [
        Fault("POST", COLLECTION, times=1, carried_out=True),
        Fault("POST", COLLECTION, times=9, answer=refusal(503, "ServerBusy")),
    ]
    (result,) = backend.launch(asked)
    assert isinstance(result, Unreachable)
    assert [job.key for job in backend.list_jobs()] == [asked[0].key]


def test_a_reply_that_was_lost_once_is_found_to_be_ours(stand: Stand) -> None:
    stand.batch.wire.faults.append(Fault("POST", COLLECTION, times=1, carried_out=True))
    asked = requests_for(3)
    jobs = only_jobs(stand.backend().launch(asked))
    assert {job.key for job in jobs} == {request.key for request in asked}
    assert len(stand.tasks) == 3


def test_an_id_that_differs_in_case_only_is_taken_and_not_ours(stand: Stand) -> None:
    """Azure tells ids apart without regard to case."""
    (theirs,) = requests_for(1, pool="P")
    only_jobs(stand.backend(pool="P").launch([theirs]))
    ours = requests_for(1)[0]
    ours = type(ours)(LaunchKey("p", 1, theirs.key.random), ours.argv, ours.resources)
    (result,) = stand.backend().launch([ours])
    assert isinstance(result, Invalid)
    assert "not of this manager" in str(result)
    assert stand.backend().list_jobs() == []


def test_a_key_whose_task_ended_long_ago_is_still_the_job_that_it_has(stand: Stand) -> None:
    clock = Clock()
    backend = stand.backend(clock=clock)
    asked = requests_for(1)
    only_jobs(backend.launch(asked))
    stand.account.start(JOB, str(asked[0].key))
    stand.account.finish(JOB, str(asked[0].key))
    clock.ahead = ENDED_LISTED_SECONDS + 60
    assert backend.list_jobs() == []
    (job,) = only_jobs(backend.launch(asked))
    assert job.state is JobState.ENDED


def test_two_managers_that_make_the_job_at_once_both_launch(stand: Stand) -> None:
    first, second = stand.backend(), stand.backend(owner="f" * 16)
    assert first.list_jobs() == second.list_jobs() == []
    only_jobs(first.launch(requests_for(1)))
    only_jobs(second.launch(requests_for(1)))
    assert stand.calls("POST", "/jobs$") == 2
    assert len(first.list_jobs()) == len(second.list_jobs()) == 1


# Credentials of workers


def resource_file(stand: Stand) -> dict[str, Any]:
    (task,) = stand.tasks.values()
    (file,) = task["resourceFiles"]
    return dict(file)


def test_a_signature_opens_one_blob_to_be_read_and_nothing_else(stand: Stand) -> None:
    (request,) = requests_for(1, secrets={"TOKEN": "hush"})
    only_jobs(stand.backend().launch([request]))
    url = resource_file(stand)["httpUrl"]
    assert httpx.get(url).text == "export TOKEN=hush\n"
    assert httpx.get(url.partition("?")[0]).status_code == 403
    assert httpx.put(url, content=b"mine").status_code == 403
    assert httpx.get(url.replace(str(request.key), "other")).status_code == 403
    expired = url.replace("se=20", "se=19")
    assert httpx.get(expired).status_code == 403
    assert STORAGE_KEY not in url


def test_with_an_identity_of_the_pool_there_is_no_signature_in_the_task(stand: Stand) -> None:
    only_jobs(stand.backend(identity=IDENTITY).launch(requests_for(1, secrets={"TOKEN": "hush"})))
    file = resource_file(stand)
    assert urlsplit(file["httpUrl"]).query == ""
    assert file["identityReference"] == {"resourceId": IDENTITY}
    assert httpx.get(file["httpUrl"]).status_code == 403


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of this machine's loopback address, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + made.public_bytes(Encoding.PEM)
    )
    return path


def test_without_a_storage_key_our_identity_signs(
    stand: Stand, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", STORAGE_ACCOUNT)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    blobs = BlobService(tls=tls)
    try:
        backend = stand.backend(secrets_container_url=blobs.url)
        assert [one for one in backend.check() if one.error] == []
        only_jobs(backend.launch(requests_for(1, secrets={"TOKEN": "hush"})))
        url = resource_file(stand)["httpUrl"]
        assert "skoid=" in url
        trusting = ssl.create_default_context(cafile=certificate)
        assert httpx.get(url, verify=trusting).text == "export TOKEN=hush\n"
    finally:
        blobs.close()


def test_an_identity_is_not_shown_to_a_storage_without_tls(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    (result,) = stand.backend().launch(requests_for(1, secrets={"TOKEN": "hush"}))
    assert isinstance(result, Invalid)
    assert "AZURE_STORAGE_KEY" in str(result)
    assert stand.blobs.wire.requests() == []


def test_workers_with_credentials_and_no_place_for_them_are_not_launched(stand: Stand) -> None:
    asked = [*requests_for(1, secrets={"TOKEN": "hush"}), *requests_for(1)]
    results = stand.backend(secrets_container_url=None).launch(asked)
    assert [type(result) for result in results] == [Invalid, Job]
    assert "--secrets-container-url" in str(results[0])
    assert len(stand.tasks) == 1


def test_a_container_that_is_not_there_launches_nothing(stand: Stand) -> None:
    url = stand.blobs.url.replace("/secrets", "/elsewhere")
    (result,) = stand.backend(secrets_container_url=url).launch(
        requests_for(1, secrets={"TOKEN": "hush"})
    )
    assert isinstance(result, Invalid)
    assert "ContainerNotFound" in str(result)
    assert stand.tasks == {}


def test_two_secrets_of_one_launch_are_two_blobs(stand: Stand) -> None:
    asked = [*requests_for(2, secrets={"T": "a"}), *requests_for(2, secrets={"T": "b"})]
    only_jobs(stand.backend().launch(asked))
    assert sorted(content for content, _ in stand.blobs.blobs.values()) == [
        b"export T=a\n",
        b"export T=b\n",
    ]


# Our own credentials


def test_a_key_that_is_changed_under_a_running_manager_is_read_again(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_BATCH_ACCESS_KEY")
    key = tmp_path / "key"
    key.write_text(ACCOUNT_KEY + "\n")
    with pytest.raises(Invalid, match="chmod 600"):
        stand.backend(account_key_file=str(key)).list_jobs()
    key.chmod(0o600)
    backend = stand.backend(account_key_file=str(key))
    assert backend.list_jobs() == []
    stand.batch.key = "YW5vdGhlciBrZXk="
    with pytest.raises(Unauthorized):
        backend.list_jobs()
    key.write_text(stand.batch.key)
    assert backend.list_jobs() == []


def test_a_storage_key_that_is_none_launches_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "not base64!")
    (result,) = stand.backend().launch(requests_for(1, secrets={"TOKEN": "hush"}))
    assert isinstance(result, Unauthorized)
    assert stand.tasks == {}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"account_name": None}, "--account-name"),
        ({"account_key": "not base64!"}, "base64"),
        ({"account_key_file": "/nowhere/key"}, "--account-key-file"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(
    stand: Stand, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(Invalid, match=named):
        stand.backend(**settings).list_jobs()


def test_an_identity_that_the_machine_has_is_found_and_used(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Managed identity, by DefaultAzureCredential."""
    monkeypatch.delenv("AZURE_BATCH_ACCESS_KEY")
    for name, value in stand.batch.environment().items():
        monkeypatch.setenv(name, value)
    only_jobs(stand.backend().launch(requests_for(2)))
    (asked,) = stand.batch.wire.requests(path="/msi/token")
    assert asked.parameters["resource"] == "https://batch.core.windows.net/"
    (added,) = stand.batch.wire.requests("POST", COLLECTION)
    assert added.headers["authorization"].startswith("Bearer ")


def test_an_emulator_at_loopback_needs_no_credentials(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_BATCH_ACCESS_KEY")
    stand.batch.takes_anyone = True
    only_jobs(stand.backend(account_name=None).launch(requests_for(1)))


# What stands in the way


def test_without_a_job_and_a_pool_nothing_is_launched(stand: Stand) -> None:
    (result,) = stand.backend(pool_id=None).launch(requests_for(1))
    assert isinstance(result, Invalid)
    assert "--job-id workers" in str(result)
    assert "--pool-id" in str(result)


def test_a_job_that_is_there_needs_no_pool_to_be_named(stand: Stand) -> None:
    stand.account.create_job({"id": JOB, "poolInfo": {"poolId": POOL}})
    only_jobs(stand.backend(pool_id=None).launch(requests_for(1)))


def test_a_pool_that_is_not_there_launches_nothing(stand: Stand) -> None:
    """Azure itself would make the job, and let its tasks wait for ever."""
    (result,) = stand.backend(pool_id="nothing").launch(requests_for(1))
    assert isinstance(result, Invalid)
    assert "--pool-id nothing" in str(result)
    assert stand.account.jobs == {}


@pytest.mark.parametrize("state", ["completed", "terminating", "deleting", "disabled"])
def test_a_job_that_takes_no_tasks_launches_nothing(stand: Stand, state: str) -> None:
    stand.account.create_job({"id": JOB, "poolInfo": {"poolId": POOL}})
    stand.account.jobs[JOB].document["state"] = state
    (result,) = stand.backend().launch(requests_for(1))
    assert isinstance(result, Invalid)
    assert f"--job-id {JOB}: the job is {state}" in str(result)


def test_a_job_of_another_pool_launches_nothing(stand: Stand) -> None:
    stand.account.add_pool("other")
    stand.account.create_job({"id": JOB, "poolInfo": {"poolId": "other"}})
    (result,) = stand.backend().launch(requests_for(1))
    assert isinstance(result, Invalid)
    assert "runs on the pool other" in str(result)


def test_an_account_that_may_have_no_more_jobs_says_so(stand: Stand) -> None:
    for number in range(100):
        stand.account.create_job({"id": f"old-{number}", "poolInfo": {"poolId": POOL}})
    (result,) = stand.backend().launch(requests_for(1))
    assert isinstance(result, QuotaExceeded)
    assert "ActiveJobAndScheduleQuotaReached" in str(result)


def test_a_pool_that_gets_nodes_again_is_launched_on_at_once(stand: Stand) -> None:
    backend = stand.backend()
    pool = stand.account.pools[POOL]
    nodes, pool.nodes = pool.nodes, []
    pool.resize_errors = [{"code": "AllocationFailed", "message": "No capacity."}]
    backend.list_jobs()
    assert isinstance(backend.launch(requests_for(1))[0], OutOfCapacity)
    pool.nodes, pool.resize_errors = nodes, []
    only_jobs(backend.launch(requests_for(1)))


def test_a_service_that_wants_a_long_pause_is_not_waited_for(stand: Stand) -> None:
    busy = refusal(429, "TooManyRequests", "", {"Retry-After": "300"})
    with stand.batch.wire.failing(Fault(answer=busy)), pytest.raises(Throttled) as raised:
        stand.backend().list_jobs()
    assert raised.value.retry_after_seconds == 300
    assert stand.calls() == 1


def test_a_job_whose_place_cannot_be_seen_is_listed_all_the_same(stand: Stand) -> None:
    backend = stand.backend()
    only_jobs(backend.launch(requests_for(1)))
    with stand.batch.wire.failing(
        Fault("GET", "/pools/", answer=refusal(403, "InsufficientAccountPermissions"))
    ):
        (job,) = stand.backend().list_jobs()
    assert (job.state, job.why) == (JobState.PENDING, "")


# Ends


def test_a_task_whose_node_was_taken_back_is_pending_again(stand: Stand) -> None:
    backend = stand.backend()
    (job,) = only_jobs(backend.launch(requests_for(1)))
    stand.account.start(JOB, job.id)
    assert backend.list_jobs()[0].state is JobState.ACTIVE
    task = stand.account.task(JOB, job.id)
    task.node = stand.account.pools[POOL].nodes[0]
    stand.account.preempt(task.node.id)
    (again,) = backend.list_jobs()
    assert again.state is JobState.PENDING
    assert again.started is None
    assert "preempted or lost, and it is queued again" in again.why
    assert "1 of 2 nodes" in again.why


def test_an_end_that_a_manager_asked_for_is_known_to_the_next_one(stand: Stand) -> None:
    (job,) = only_jobs(stand.backend().launch(requests_for(1)))
    stand.account.start(JOB, job.id)
    assert stand.backend().terminate([job.id]) == {job.id: None}
    assert stand.backend().list_jobs()[0].cause is EndCause.KILLED_BY_US


def test_many_ends_are_one_list_and_a_call_each_and_stop_where_nobody_answers(
    stand: Stand,
) -> None:
    backend = stand.backend()
    jobs = only_jobs(backend.launch(requests_for(20)))
    before = stand.calls()
    assert set(backend.terminate([job.id for job in jobs[:10]]).values()) == {None}
    assert stand.calls() - before == 3 + 10
    with stand.batch.wire.failing(Fault()):
        before = stand.calls()
        results = backend.terminate([job.id for job in jobs[10:]])
        assert stand.calls() - before == patience.ATTEMPTS
    assert all(isinstance(error, Unreachable) for error in results.values())
    assert len(results) == 10


def test_a_task_that_ends_while_it_is_being_ended_is_success(stand: Stand) -> None:
    backend = stand.backend()
    (job,) = only_jobs(backend.launch(requests_for(1)))
    with stand.batch.wire.failing(
        Fault("POST", "/terminate", times=1, answer=refusal(409, "TaskCompleted"))
    ):
        assert backend.terminate([job.id]) == {job.id: None}


# Old things


def test_what_ended_long_ago_is_removed_and_what_is_others_is_left(stand: Stand) -> None:
    clock = Clock()
    backend = stand.backend(clock=clock)
    others = stand.backend(owner="f" * 16)
    secret = {"TOKEN": "hush"}
    old, alive = only_jobs(backend.launch(requests_for(2, secrets=secret)))
    (theirs,) = only_jobs(others.launch(requests_for(1, secrets=secret)))
    for job in (old, theirs):
        stand.account.start(JOB, job.id)
        stand.account.finish(JOB, job.id)
    backend.terminate([alive.id])
    stand.account.now_offset = timedelta(seconds=ENDED_LISTED_SECONDS)
    (late,) = only_jobs(backend.launch(requests_for(1)))
    assert {old.id, alive.id, theirs.id, late.id} == set(stand.tasks)  # nothing is old yet

    clock.ahead = ENDED_LISTED_SECONDS + PRUNE_SECONDS + 1
    stand.blobs.age(timedelta(seconds=CREDENTIALS_SECONDS))
    only_jobs(backend.launch(requests_for(1)))
    assert {old.id, alive.id} & set(stand.tasks) == set()
    assert {theirs.id, late.id} <= set(stand.tasks)
    assert [name.partition("/")[0] for name in stand.blobs.blobs] == ["f" * 16]


def test_a_prune_that_fails_does_not_fail_the_launch(stand: Stand) -> None:
    backend = stand.backend()
    with stand.blobs.wire.failing(Fault("GET")):
        only_jobs(backend.launch(requests_for(1, secrets={"TOKEN": "hush"})))


# Logs


def test_the_last_mebibyte_of_what_a_worker_said_is_its_log(stand: Stand) -> None:
    backend = stand.backend()
    (job,) = only_jobs(backend.launch(requests_for(1)))
    assert backend.logs(job.id) == ""
    stand.account.start(JOB, job.id)
    files = stand.account.task(JOB, job.id).files
    files["stdout.txt"], files["stderr.txt"] = b"out\n", b"err \xff\n"
    assert backend.logs(job.id) == "out\nerr \ufffd\n"
    files["stderr.txt"] = b"x" * LOG_KEPT_BYTES + b"end\n"
    told = backend.logs(job.id)
    assert len(told) == LOG_KEPT_BYTES
    assert told.endswith("xend\n")
    downloads = [r for r in stand.batch.wire.requests("GET", "stderr") if "ocp-range" in r.headers]
    assert len(downloads) == 1


def test_the_log_of_a_stranger_is_not_read(stand: Stand) -> None:
    (theirs,) = only_jobs(stand.backend(owner="f" * 16).launch(requests_for(1)))
    with pytest.raises(Invalid):
        stand.backend().logs(theirs.id)
    assert stand.calls("HEAD") == 0


# Looking before


def test_a_dry_run_shows_the_task_and_no_signature(stand: Stand) -> None:
    backend = stand.backend(log_container_url="https://s/logs?sig=c2lnbmF0dXJl")
    (preview,) = backend.launch(requests_for(1, secrets={"TOKEN": "hush"}), dry_run=True)
    assert isinstance(preview, Preview)
    shown = json.loads(preview.text.partition(": ")[2])
    assert shown["containerSettings"]["imageName"] == "bundle-worker"
    assert "c2lnbmF0dXJl" not in preview.text
    assert "sig=" not in preview.text
    assert stand.calls() == 0


def test_a_check_names_each_setting_and_changes_nothing(stand: Stand) -> None:
    findings = stand.backend().check()
    assert said(findings) == [
        ("--service-url", None),
        ("--job-id", None),
        ("--image", None),
        ("--pool-id", None),
        ("--secrets-container-url", None),
    ]
    assert stand.account.jobs == {}


def test_a_check_finds_everything_that_is_wrong(stand: Stand) -> None:
    pool = stand.account.pools[POOL]
    pool.takes_containers = False
    for node in pool.nodes:
        node.state = "starttaskfailed"
    stand.account.create_job({"id": JOB, "poolInfo": {"poolId": POOL}})
    findings = stand.backend(
        slots=2,
        identity=IDENTITY,
        secrets_container_url=stand.blobs.url.replace("/secrets", "/elsewhere"),
    ).check()
    assert said(findings) == [
        ("--service-url", None),
        ("--slots", Invalid),
        ("--pool-id", Invalid),
        ("--pool-id", OutOfCapacity),
        ("--identity", Invalid),
        ("--secrets-container-url", Invalid),
    ]
    assert all(finding.remedy for finding in findings if finding.error)
    assert "2 startTaskFailed" in findings[3].sentence


def test_who_may_submit_and_not_count_nodes_may_launch(stand: Stand) -> None:
    uncounted = Fault("GET", "/nodecounts", answer=refusal(403, "InsufficientAccountPermissions"))
    with stand.batch.wire.failing(uncounted):
        findings = stand.backend().check()
    assert ("--pool-id", None) in said(findings)
    assert [finding for finding in findings if finding.error] == []


def test_a_check_of_a_pool_that_is_not_there_names_it(stand: Stand) -> None:
    findings = stand.backend(pool_id="nothing").check()
    assert ("--pool-id", Invalid) in said(findings)


# As a command


def manage(stand: Stand, server: Server, *more: str) -> subprocess.CompletedProcess[str]:
    words = {
        "--service-url": stand.batch.url,
        "--account-name": "testaccount",
        "--job-id": JOB,
        "--pool-id": POOL,
        "--image": "bundle-worker",
        "--secrets-container-url": stand.blobs.url,
    }
    given = [w for pair in words.items() if pair[0] not in more for w in pair]
    return subprocess.run(
        [sys.executable, "-m", "manager", "azure-batch", *given, "--once", "--min", "1", *more],
        env={**server.env, **stand.keys},
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_launches_and_keeps_no_secret(
    stand: Stand, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_BATCH_ACCESS_KEY")
    log_url = "https://logs.blob.core.windows.net/logs?sig=c2lnbmF0dXJl"
    done = manage(stand, server, "--account-key", ACCOUNT_KEY, "--log-container-url", log_url)
    assert done.returncode == 0, done.stderr
    assert "--account-key can be read by anybody" in done.stderr
    (task,) = stand.tasks.values()
    assert task["outputFiles"][0]["destination"]["container"]["containerUrl"] == log_url
    ((content, _),) = stand.blobs.blobs.values()
    token = content.decode().split("=", 1)[1].strip()
    with sqlite3.connect(server.home.path / "ledger.db") as ledger:
        (kept,) = ledger.execute("SELECT settings FROM pool").fetchone()
    ledger.close()
    assert json.loads(kept)["job_id"] == JOB
    for secret in (ACCOUNT_KEY, STORAGE_KEY, "c2lnbmF0dXJl", token):
        assert secret not in done.stderr
        for path in server.home.path.rglob("*"):
            if path.is_file() and "bundles.sqlite" not in path.name:
                assert secret.encode() not in path.read_bytes(), path


def test_status_finds_the_workers_of_azure(stand: Stand, server: Server) -> None:
    assert manage(stand, server).returncode == 0
    told = subprocess.run(
        [sys.executable, "-m", "manager", "status", "-o", "json"],
        env={**server.env, **stand.keys},
        capture_output=True,
        text=True,
        check=True,
    )
    (pool,) = json.loads(told.stdout)["pools"]
    assert [job["state"] for job in pool["jobs"]] == ["pending"]
    assert "nodes" in pool["jobs"][0]["why"]


def test_a_wrong_option_ends_the_command_in_one_line(stand: Stand, server: Server) -> None:
    for option, value in (("--image", ""), ("--service-url", "nonsense"), ("--job-id", "a b")):
        done = manage(stand, server, option, value)
        assert done.returncode == 2
        assert option in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert stand.calls() == 0
