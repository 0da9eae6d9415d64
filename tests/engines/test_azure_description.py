"""Our stand-in for Azure Batch, and what we ask it, held to a description that is not ours.

The description is OpenAPI of an earlier version of the service (2019-08-01); what is newer than
that is named here, property by property.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from azure_stand import JOB, POOL, Stand, only_jobs, requests_for
from fakes.azure.wire import Exchange
from openapi_schema_validator import OAS30Validator

NEWER = {
    "requiredSlots",
    "identityReference",
    "taskSlotsPerNode",
    "identity",
    "upgradingOS",
    "deallocated",
    "deallocating",
}
IDENTITY = (
    "/subscriptions/0/resourceGroups/g/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/workers"
)

pytestmark = pytest.mark.engine("azure-description")


@pytest.fixture(scope="module")
def description(azure_description: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(azure_description.read_text())
    return read


@pytest.fixture
def exchanges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exchange]]:
    """What passes when everything that we ever ask is asked, and refused where it can be."""
    stand = Stand(tmp_path)
    for name, value in stand.keys.items():
        monkeypatch.setenv(name, value)
    try:
        stand.account.pools[POOL].identities = (IDENTITY,)
        stand.account.pools[POOL].resize_errors = [{"code": "AllocationFailed", "message": "No."}]
        backend = stand.backend(identity=IDENTITY, log_container_url="https://s/logs")
        backend.list_jobs()
        asked = requests_for(5, secrets={"TOKEN": "hush"})
        jobs = only_jobs(backend.launch(asked))
        for job in jobs[:3]:
            stand.account.start(JOB, job.id)
        stand.account.finish(JOB, jobs[0].id, 0)
        stand.account.finish(JOB, jobs[1].id, 3)
        backend.terminate([jobs[2].id, jobs[0].id, "p-9-00000000"])
        stand.batch.largest_page = 2
        only_jobs(backend.launch(asked))
        stand.account.task(JOB, jobs[0].id).files["stdout.txt"] = b"said"
        backend.logs(jobs[0].id)
        backend.check()
        stand.backend(pool_id="nothing").check()
        stand.batch.key = "b3RoZXI="
        stand.backend().check()
        yield list(stand.batch.wire.exchanges)
    finally:
        stand.close()


def test_everything_that_passes_is_as_the_description_says(
    description: dict[str, Any], exchanges: list[Exchange]
) -> None:
    seen = set()
    for exchange in exchanges:
        operation = operation_of(description, exchange)
        seen.add(operation["operationId"])
        check_parameters(operation, exchange)
        if exchange.request.body:
            (content,) = operation["requestBody"]["content"].values()
            check(description, content["schema"], json.loads(exchange.request.body))
        answer = exchange.answer
        assert answer is not None
        responses = operation["responses"]
        described = responses.get(str(answer.status), responses["default"])
        is_document = "json" in answer.headers.get("Content-Type", "")
        if exchange.request.method != "HEAD" and is_document and answer.body:
            schema = described["content"]["application/json"]["schema"]
            check(description, schema, json.loads(answer.body))
    assert seen == {
        "Account_ListPoolNodeCounts",
        "File_GetFromTask",
        "File_GetPropertiesFromTask",
        "Job_Add",
        "Job_Get",
        "Pool_Get",
        "Task_AddCollection",
        "Task_Get",
        "Task_List",
        "Task_Terminate",
    }


def test_a_wrong_answer_would_be_noticed(description: dict[str, Any]) -> None:
    failure = {"$ref": "#/components/schemas/TaskFailureInformation"}
    check(description, failure, {"category": "usererror"})
    for wrong in ({"category": "UserError"}, {"categories": "usererror"}, {}):
        with pytest.raises(AssertionError):
            check(description, failure, wrong)


def operation_of(description: Mapping[str, Any], exchange: Exchange) -> dict[str, Any]:
    for template, operations in description["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        method = exchange.request.method.lower()
        if re.fullmatch(pattern, exchange.request.path) and method in operations:
            return dict(operations[method])
    raise AssertionError(f"{exchange.request.method} {exchange.request.path} is not described")


def check_parameters(operation: Mapping[str, Any], exchange: Exchange) -> None:
    known = {
        one["name"]: one for one in operation.get("parameters", ()) if one.get("in") == "query"
    }
    extra = set(exchange.request.parameters) - set(known) - {"api-version", "$skiptoken"}
    assert not extra, f"{operation['operationId']} has no {extra}"


def check(description: Mapping[str, Any], schema: Mapping[str, Any], value: Any) -> None:
    whole = {**schema, "components": description["components"]}
    errors = [f"{list(e.path)}: {e.message}" for e in OAS30Validator(whole).iter_errors(value)]
    assert not errors, errors
    unknown = set(unknown_names(description, schema, value)) - NEWER
    assert not unknown, f"not described: {unknown}"


def unknown_names(
    description: Mapping[str, Any], schema: Mapping[str, Any], value: Any
) -> Iterator[str]:
    """The names of properties, at any depth, that the description does not know."""
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for item in value:
            yield from unknown_names(description, schema.get("items", {}), item)
    elif isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name not in schema["properties"]:
                yield name
            else:
                yield from unknown_names(description, schema["properties"][name], inner)
