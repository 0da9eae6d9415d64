"""What local-docker asks the engine for, and what it makes of its answers: no engine, no files."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError, DockerException
from urllib3.exceptions import ProtocolError

from backends.base import (
    KEY,
    BackendError,
    Context,
    EndCause,
    Invalid,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    OutOfCapacity,
    Throttled,
    Unauthorized,
    Unreachable,
)
from backends.local_docker.definition import (
    KEY_LABEL,
    OVERHEAD_BYTES,
    OWNER_LABEL,
    POOL_LABEL,
    Place,
    definition,
    secrets_text,
)
from backends.local_docker.engine import Engine
from backends.local_docker.errors import backend_error, is_worth_another_try
from backends.local_docker.jobs import inspected_job, key_of, listed_job
from backends.local_docker.options import Settings

KEY_1 = LaunchKey("p", 1, "0123abcd")
CONTEXT = Context(Path("/home/jobs/p"), "0123456789abcdef", "p")
REQUEST = LaunchRequest(
    KEY_1,
    ("bundle-worker", "--id", KEY, "--work-dir", f"/home/jobs/p/{KEY}/work"),
    JobResources(2, 0, 1024**3),
    environment={"COLOUR": "blue"},
    secrets={"TOKEN": "hush"},
)
PLACE = Place(Path("/home/jobs/p/p-1-0123abcd"), Path("/home/jobs/p/p-1-0123abcd/work"))
NOW = 1_000_000.0


def define(**changes: Any) -> dict[str, Any]:
    settings = replace(Settings("worker:1", "process"), **changes)
    return definition(REQUEST, PLACE, CONTEXT, settings, "/run/engine.sock")


# What is asked


def test_a_worker_gets_its_own_directory_at_the_same_place_and_no_more_than_it_offers() -> None:
    body = define()
    assert body["Labels"] == {
        OWNER_LABEL: CONTEXT.owner,
        POOL_LABEL: "p",
        KEY_LABEL: "p-1-0123abcd",
    }
    assert body["Entrypoint"][2] == "/home/jobs/p/p-1-0123abcd"
    assert body["Cmd"] == list(REQUEST.command)
    host = body["HostConfig"]
    assert [(m["Source"], m["Target"]) for m in host["Mounts"]] == [(str(PLACE.directory),) * 2]
    assert host["NanoCpus"] == 2 * 10**9
    assert host["Memory"] == 1024**3 + OVERHEAD_BYTES
    assert host["Init"] is True
    assert "DeviceRequests" not in host
    assert body["User"] == f"{os.getuid()}:{os.getgid()}"
    assert "COLOUR=blue" in body["Env"]


def test_no_secret_is_in_a_definition() -> None:
    assert "hush" not in json.dumps(define())
    assert "hush" not in json.dumps(define(runtime="docker"))


def test_the_engine_s_socket_is_mounted_only_where_bundles_run_beside_the_worker() -> None:
    mounts = define(runtime="docker")["HostConfig"]["Mounts"]
    assert [(m["Source"], m["Target"]) for m in mounts][1:] == [
        ("/run/engine.sock", "/var/run/docker.sock")
    ]
    assert "GroupAdd" not in define()["HostConfig"]


def test_gpus_are_asked_for_only_when_they_are_wanted() -> None:
    request = replace(REQUEST, resources=JobResources(1, 2, 1024**3))
    body = definition(request, PLACE, CONTEXT, Settings("worker:1", "process"), None)
    assert body["HostConfig"]["DeviceRequests"] == [{"Count": 2, "Capabilities": [["gpu"]]}]


def test_a_work_directory_elsewhere_is_mounted_too() -> None:
    place = Place(PLACE.directory, Path("/scratch/p-1-0123abcd"))
    body = definition(REQUEST, place, CONTEXT, Settings("worker:1", "process"), None)
    sources = [mount["Source"] for mount in body["HostConfig"]["Mounts"]]
    assert sources == ["/home/jobs/p/p-1-0123abcd", "/scratch/p-1-0123abcd"]


def test_secrets_come_out_of_the_shell_as_they_went_in() -> None:
    secrets = {"ONE": "it's $HOME; `ls`", "TWO": 'a "b"\nc'}
    said = subprocess.run(
        ["/bin/sh", "-c", secrets_text(secrets) + 'printf "%s|%s" "$ONE" "$TWO"'],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout == "|".join(secrets.values())


# What is answered


def answer(status: int, message: str = "no", **headers: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return APIError(message, response=response, explanation=message)


def aborted(cause: Exception) -> requests.ConnectionError:
    """As requests raises what urllib3 met."""
    return requests.ConnectionError(ProtocolError("Connection aborted.", cause))


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(400), Invalid),
        (answer(401), Unauthorized),
        (answer(403), Unauthorized),
        (answer(404), Invalid),
        (answer(409), Invalid),
        (answer(429), Throttled),
        (answer(500, "write /x: no space left on device"), OutOfCapacity),
        (answer(500, "fork/exec: cannot allocate memory"), OutOfCapacity),
        (answer(500, 'could not select device driver "" with capabilities: [[gpu]]'), Invalid),
        (answer(500, "OCI runtime create failed: x"), Invalid),
        (answer(500, "something else"), Unreachable),
        (answer(503), Unreachable),
        (aborted(PermissionError(13, "denied")), Unauthorized),
        (aborted(FileNotFoundError(2, "none")), Unreachable),
        (requests.ReadTimeout("slow"), Unreachable),
        (caused(DockerException("version"), PermissionError(13, "denied")), Unauthorized),
        (ConnectionResetError(104, "reset"), Unreachable),
    ],
)
def test_every_answer_is_one_error_of_the_taxonomy(
    error: Exception, kind: type[BackendError]
) -> None:
    found = backend_error(error, "launching p-1-0123abcd")
    assert type(found) is kind
    assert str(found).startswith("launching p-1-0123abcd: ")
    assert "\n" not in str(found)


def test_what_the_engine_says_of_waiting_is_handed_on() -> None:
    error = backend_error(answer(429, Retry_After="7"), "listing")
    assert isinstance(error, Throttled)
    assert error.retry_after_seconds == 7.0


def test_only_what_may_pass_soon_is_asked_again() -> None:
    assert is_worth_another_try(answer(429))
    assert is_worth_another_try(requests.ConnectionError("gone"))
    for error in (answer(500), answer(404), requests.ReadTimeout("slow")):
        assert not is_worth_another_try(error)
    assert not is_worth_another_try(requests.ConnectionError(PermissionError(13, "denied")))


def test_the_socket_of_an_engine_is_known_where_it_is_on_this_machine() -> None:
    assert Engine({}).socket == "/var/run/docker.sock"
    assert Engine({"DOCKER_HOST": "unix:///run/user/7/docker.sock"}).socket == (
        "/run/user/7/docker.sock"
    )
    assert Engine({"DOCKER_HOST": "tcp://127.0.0.1:2375"}).socket is None


@pytest.mark.parametrize("address", ["unixx:///run/docker.sock", "tcp://", "ftp://engine:1"])
def test_an_address_that_no_engine_can_have_is_refused_at_once(address: str) -> None:
    with pytest.raises(Invalid, match="DOCKER_HOST"):
        Engine({"DOCKER_HOST": address})


LABELS = {OWNER_LABEL: CONTEXT.owner, POOL_LABEL: "p", KEY_LABEL: str(KEY_1)}


@pytest.mark.parametrize(
    "changes",
    [
        {OWNER_LABEL: CONTEXT.owner.upper()},
        {OWNER_LABEL: ""},
        {POOL_LABEL: "P"},
        {KEY_LABEL: "p-1"},
        {KEY_LABEL: "q-1-0123abcd"},
        {KEY_LABEL: "p-1-0123ABCD"},
    ],
)
def test_a_container_is_ours_to_the_letter_or_not_at_all(changes: dict[str, str]) -> None:
    assert key_of(LABELS, CONTEXT) == KEY_1
    assert key_of({**LABELS, **changes}, CONTEXT) is None
    assert key_of(None, CONTEXT) is None


@pytest.mark.parametrize(
    ("state", "age_seconds", "expected"),
    [
        ("running", 0.0, JobState.ACTIVE),
        ("paused", 0.0, JobState.ACTIVE),
        ("restarting", 0.0, JobState.ACTIVE),
        ("created", 1.0, JobState.PENDING),
        ("created", 1000.0, JobState.ENDED),
        ("exited", 0.0, JobState.ENDED),
        ("dead", 0.0, JobState.ENDED),
        ("removing", 0.0, JobState.ENDED),
    ],
)
def test_every_state_of_a_container_is_one_of_a_job(
    state: str, age_seconds: float, expected: JobState
) -> None:
    entry = {"Created": NOW - age_seconds, "State": state, "Status": "Exited (5) 2 hours ago"}
    job = listed_job(entry, KEY_1, NOW)
    assert job.state is expected
    if state == "created":
        assert job.started is None
        assert job.why
    if state == "exited":
        assert job.exit_code == 5


def ended(**state: Any) -> dict[str, Any]:
    return {
        "Created": "2026-01-02T03:04:05.123456789Z",
        "State": {
            "Status": "exited",
            "StartedAt": "2026-01-02T03:04:06.5Z",
            "FinishedAt": "2026-01-02T04:04:06.987654321+01:00",
            **state,
        },
    }


@pytest.mark.parametrize(
    ("state", "was_asked", "cause", "why"),
    [
        ({"ExitCode": 0}, False, EndCause.FINISHED, ""),
        ({"ExitCode": 0}, True, EndCause.FINISHED, ""),
        ({"ExitCode": 7}, True, EndCause.KILLED_BY_US, ""),
        ({"ExitCode": 3}, False, EndCause.FAILED, ""),
        ({"ExitCode": 137}, False, EndCause.KILLED_BY_OTHERS, "killed by signal 9"),
        ({"ExitCode": 137, "OOMKilled": True}, False, EndCause.FAILED, "out of memory"),
    ],
)
def test_an_end_has_its_time_and_its_cause(
    state: dict[str, Any], was_asked: bool, cause: EndCause, why: str
) -> None:
    job = inspected_job(ended(**state), KEY_1, NOW, was_asked=was_asked)
    assert (job.state, job.cause, job.why) == (JobState.ENDED, cause, why)
    assert job.started is not None
    assert job.ended is not None
    assert job.ended - job.started == pytest.approx(0.487654)
    assert job.created == pytest.approx(job.started - 1.376544)
