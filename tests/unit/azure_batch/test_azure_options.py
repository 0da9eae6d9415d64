"""What the options of Azure Batch may be, and what Azure's errors are to the manager."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from backends import azure_batch
from backends.azure_batch.connection import batch_scope
from backends.azure_batch.errors import by_code
from backends.azure_batch.options import AzureSettings, options
from backends.base import (
    BackendError,
    Context,
    Invalid,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)

GOOD = {
    "service_url": "https://account.region.batch.azure.com",
    "job_id": "workers",
    "image": "registry.example/bundle-worker:1",
}
IDENTITY = (
    "/subscriptions/0/resourceGroups/g/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/workers"
)


def test_the_options_of_cl_worker_manager_are_there_with_their_defaults() -> None:
    ours = {option.opts[0]: option.default for option in options()}
    flags = {flag for option in options() for flag in option.opts}
    assert {"--account-name", "--account-key", "--service-url", "--endpoint"} <= flags
    assert {"--log-container-url", "--job-id"} <= flags
    wanted = {"--cpus": 1, "--gpus": 0, "--memory-mb": 2048, "--user": "root"}
    assert {name: ours[name] for name in wanted} == wanted


def test_what_opens_an_account_is_hidden_where_settings_are_kept() -> None:
    hidden = {option.name for option in options() if option.hide_input}
    assert hidden == {"account_key", "log_container_url"}
    settings = AzureSettings.read(
        {**GOOD, "account_key": "a2V5", "log_container_url": "https://s/c?sig=c2ln"}
    )
    assert "a2V5" not in repr(settings)
    assert "c2ln" not in repr(settings)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"service_url": "account.region.batch.azure.com"}, "--service-url"),
        ({"service_url": "http://account.region.batch.azure.com"}, "use https"),
        ({"job_id": "my job"}, "--job-id"),
        ({"job_id": "x" * 65}, "--job-id"),
        ({"pool_id": "ä"}, "--pool-id"),
        ({"image": "one two"}, "--image"),
        ({"user": "a'b"}, "--user"),
        ({"secrets_container_url": "https://s.blob.core.windows.net"}, "names no container"),
        ({"secrets_container_url": "https://s/c?sig=hush"}, "no signature"),
        ({"secrets_container_url": "http://s.blob.core.windows.net/c"}, "use https"),
        ({"log_container_url": "https://s/c"}, "--identity"),
        ({"identity": "workers"}, "--identity"),
    ],
)
def test_a_wrong_value_is_named_with_its_option(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as raised:
        AzureSettings.read({**GOOD, **wrong})
    assert named in str(raised.value)
    assert "hush" not in str(raised.value)


def test_good_values_are_taken() -> None:
    read = AzureSettings.read(
        {
            **GOOD,
            "service_url": "http://127.0.0.1:8080",
            "secrets_container_url": "http://localhost:10000/account/container",
            "log_container_url": "https://s/c",
            "identity": IDENTITY,
            "cpus": 4,
        }
    )
    assert read.identity == IDENTITY


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ServerBusy", 503, Throttled),
        ("", 429, Throttled),
        ("ActiveJobAndScheduleQuotaReached", 409, QuotaExceeded),
        ("AllocationFailed", 400, OutOfCapacity),
        ("AuthenticationFailed", 403, Unauthorized),
        ("", 401, Unauthorized),
        ("AuthorizationPermissionMismatch", 403, Unauthorized),
        ("InternalError", 500, Unreachable),
        ("OperationTimedOut", 500, Unreachable),
        ("", 502, Unreachable),
        ("a page of a proxy", 200, Unreachable),
        ("InvalidPropertyValue", 400, Invalid),
        ("a code of next year", 409, Invalid),
    ],
)
def test_every_error_is_one_of_the_taxonomy(
    code: str, status: int, error: type[BackendError]
) -> None:
    assert type(by_code(code, "a sentence", status)) is error


def test_a_library_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(name: str) -> str:
        if name == "azure-storage-blob":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(azure_batch, "version", none)
    with pytest.raises(Invalid, match=r"azure-storage-blob: pip install 'worker-manager\[azure\]'"):
        azure_batch.create(Context(tmp_path, "0" * 16, "p"), GOOD)


def test_no_sdk_is_loaded_before_azure_is_asked_something() -> None:
    program = """
import sys
from pathlib import Path
from backends import registry
from backends.base import Context
module = registry.load("azure-batch")
module.options()
backend = module.create(Context(Path("/nowhere"), "0" * 16, "p"), {
    "service_url": "https://a.b.batch.azure.com", "job_id": "j", "image": "i"})
backend.capabilities, backend.work_directory
print(sorted({name.partition(".")[0] for name in sys.modules} & {
    "azure", "requests", "boto3", "google", "docker", "httpx", "pydantic", "msal"}))
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("a.westeurope.batch.azure.com", "https://batch.core.windows.net//.default"),
        ("a.chinaeast2.batch.chinacloudapi.cn", "https://batch.chinacloudapi.cn//.default"),
        (
            "a.usgovvirginia.batch.usgovcloudapi.net",
            "https://batch.core.usgovcloudapi.net//.default",
        ),
        ("127.0.0.1:8080", "https://batch.core.windows.net//.default"),
    ],
)
def test_a_token_is_asked_for_the_audience_of_its_cloud(host: str, scope: str) -> None:
    """To the letter: Batch refuses a token whose audience lacks the slash at the end."""
    assert batch_scope(f"https://{host}") == scope
