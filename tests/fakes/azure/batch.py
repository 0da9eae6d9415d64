"""The Batch service over HTTP: its paths, envelopes, pages and signatures, in front of an account.

Only what is needed of api-version 2025-06-01, as the SDK spells it.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from fakes.azure.account import Account, Pool, Refused
from fakes.azure.filters import POOL_COUNT_PROPERTIES, TASK_PROPERTIES, BadFilter, parse
from fakes.azure.signatures import batch_signature_fits
from fakes.azure.wire import Answer, Request, Wire

ACCOUNT_NAME = "testaccount"
ACCOUNT_KEY = "dGhlIGtleSBvZiBhIGZha2UgYWNjb3VudA=="
IDENTITY_HEADER = "let-me-in"
AUDIENCE = "https://batch.core.windows.net/"
"""What a token must be for: to the letter, the slash included."""
API_VERSION = "2025-06-01"
LARGEST_BODY_BYTES = 1_000_000
LARGEST_COLLECTION = 100


class BatchService:
    """``takes_anyone``: no credentials are looked at, as an emulator does."""

    def __init__(self, account: Account, *, takes_anyone: bool = False) -> None:
        self.account = account
        self.key = ACCOUNT_KEY
        self.takes_anyone = takes_anyone
        self.tokens: set[str] = set()
        self.largest_page = 1000
        self.task_errors: dict[str, tuple[int, str, str]] = {}
        """Task id → how many times it fails, as `clienterror` or `servererror`, with which code."""
        self.wire = Wire(self._answer)

    @property
    def url(self) -> str:
        return self.wire.url

    def close(self) -> None:
        self.wire.close()

    def environment(self) -> dict[str, str]:
        """What makes azure-identity find an identity here."""
        return {
            "IDENTITY_ENDPOINT": f"{self.url}/msi/token",
            "IDENTITY_HEADER": IDENTITY_HEADER,
        }

    # One request

    def _answer(self, request: Request) -> Answer:
        if request.path == "/msi/token":
            return self._token(request)
        try:
            self._check(request)
            for method, pattern, handler in _ROUTES:
                match = re.fullmatch(pattern, request.path)
                if method == request.method and match:
                    with self.account.lock:
                        return handler(self, request, *match.groups())
            raise Refused(405, "UnsupportedHttpVerb", f"{request.method} {request.path}")
        except Refused as error:
            return refusal(error.status, error.code, error.message)

    def _check(self, request: Request) -> None:
        if request.parameters.get("api-version") != API_VERSION:
            raise Refused(400, "MissingRequiredQueryParameter", "api-version")
        if len(request.body) > LARGEST_BODY_BYTES:
            raise Refused(413, "RequestBodyTooLarge", "The request body is too large.")
        given = request.headers.get("authorization", "")
        if self.takes_anyone:
            return
        if given.startswith("Bearer "):
            if given.removeprefix("Bearer ") not in self.tokens:
                raise Refused(401, "AuthenticationFailed", "The token is not valid.")
        elif not batch_signature_fits(ACCOUNT_NAME, self.key, request):
            raise Refused(403, "AuthenticationFailed", "Server failed to authenticate the request.")

    def _token(self, request: Request) -> Answer:
        if request.headers.get("x-identity-header") != IDENTITY_HEADER:
            return Answer(401)
        token = uuid.uuid4().hex
        if request.parameters["resource"] == AUDIENCE:
            self.tokens.add(token)
        return _json(
            {
                "access_token": token,
                "expires_on": str(int(time.time()) + 3600),
                "resource": request.parameters["resource"],
                "token_type": "Bearer",
            }
        )

    # What it answers

    def _create_job(self, request: Request) -> Answer:
        self.account.create_job(json.loads(request.body))
        return Answer(201, _HEADERS)

    def _get_job(self, request: Request, job_id: str) -> Answer:
        document = self.account.job(job_id).document
        return _json(_selected({"url": f"{self.url}/jobs/{job_id}", **document}, request))

    def _add_collection(self, request: Request, job_id: str) -> Answer:
        self.account.job(job_id)
        tasks = json.loads(request.body)["value"]
        if not 0 < len(tasks) <= LARGEST_COLLECTION:
            raise Refused(400, "InvalidPropertyValue", f"{len(tasks)} tasks are too many")
        return _json({"value": [self._add(job_id, body) for body in tasks]})

    def _add(self, job_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        task_id = body["id"]
        try:
            if task_id in self.task_errors:
                left, status, code = self.task_errors[task_id]
                self.task_errors[task_id] = (left - 1, status, code)
                if left == 1:
                    del self.task_errors[task_id]
                raise Refused(500 if status == "servererror" else 400, code)
            task = self.account.add_task(job_id, body)
        except Refused as error:
            return {
                "status": "servererror" if error.status >= 500 else "clienterror",
                "taskId": task_id,
                "error": _error(error.code, error.message),
            }
        return {
            "status": "success",
            "taskId": task_id,
            "eTag": task.document["eTag"],
            "lastModified": task.document["lastModified"],
            "location": f"{self.url}/jobs/{job_id}/tasks/{task_id}",
        }

    def _list_tasks(self, request: Request, job_id: str) -> Answer:
        asked = request.parameters
        size = int(asked.get("maxresults", "1000"))
        if not 1 <= size <= 1000:
            raise Refused(400, "InvalidQueryParameterValue", "maxresults")
        tasks = [task.document for task in self.account.job(job_id).tasks.values()]
        if "$filter" in asked:
            try:
                tasks = [*filter(parse(asked["$filter"], TASK_PROPERTIES), tasks)]
            except BadFilter as error:
                raise Refused(400, "InvalidQueryParameterValue", f"$filter: {error}") from error
        tasks.sort(key=lambda document: str(document["id"]))
        first = int(asked.get("$skiptoken", "0"))
        end = first + min(size, self.largest_page)
        answer: dict[str, Any] = {
            "value": [_selected(self._shown(job_id, task), request) for task in tasks[first:end]]
        }
        if end < len(tasks):
            query = urlencode({**asked, "$skiptoken": str(end)})
            answer["odata.nextLink"] = f"{self.url}/jobs/{job_id}/tasks?{query}"
        return _json(answer)

    def _get_task(self, request: Request, job_id: str, task_id: str) -> Answer:
        document = self.account.task(job_id, task_id).document
        return _json(_selected(self._shown(job_id, document), request))

    def _shown(self, job_id: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return {"url": f"{self.url}/jobs/{job_id}/tasks/{document['id']}", **document}

    def _terminate(self, request: Request, job_id: str, task_id: str) -> Answer:
        self.account.terminate_task(job_id, task_id)
        return Answer(204, _HEADERS)

    def _delete(self, request: Request, job_id: str, task_id: str) -> Answer:
        self.account.delete_task(job_id, task_id)
        return Answer(200, _HEADERS)

    def _file(self, request: Request, job_id: str, task_id: str, name: str) -> Answer:
        content = self.account.file_of(job_id, task_id, name)
        headers = {
            "ocp-batch-file-url": f"{self.url}{request.path}",
            "ocp-batch-file-isdirectory": "False",
            "ocp-batch-file-mode": "0o100644",
            "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT",
            "Content-Type": "application/octet-stream",
        }
        if request.method == "HEAD":
            return Answer(200, {**headers, "Content-Length": str(len(content))})
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("ocp-range", ""))
        if span:
            return Answer(200, headers, content[int(span[1]) : int(span[2]) + 1])
        return Answer(200, headers, content)

    def _get_pool(self, request: Request, pool_id: str) -> Answer:
        if pool_id not in self.account.pools:
            raise Refused(404, "PoolNotFound", "The specified pool does not exist.")
        document = pool_document(self.account.pools[pool_id])
        return _json(_selected({"url": f"{self.url}/pools/{pool_id}", **document}, request))

    def _node_counts(self, request: Request) -> Answer:
        asked = request.parameters.get("$filter")
        pools = [{"poolId": pool.id} for pool in self.account.pools.values()]
        if asked:
            pools = [*filter(parse(asked, POOL_COUNT_PROPERTIES), pools)]
        counted = []
        for pool in (self.account.pools[one["poolId"]] for one in pools):
            counts = {}
            for kind, low in (("dedicated", False), ("lowPriority", True)):
                nodes = [node for node in pool.nodes if node.is_low_priority is low]
                states = {name: sum(n.state == name.lower() for n in nodes) for name in _STATES}
                counts[kind] = {**states, "total": len(nodes)}
            counted.append({"poolId": pool.id, **counts})
        return _json({"value": counted})


_STATES = [
    "creating",
    "idle",
    "offline",
    "preempted",
    "rebooting",
    "reimaging",
    "running",
    "starting",
    "startTaskFailed",
    "leavingPool",
    "unknown",
    "unusable",
    "waitingForStartTask",
    "deallocated",
    "deallocating",
    "upgradingOS",
]
_HEADERS = {"DataServiceId": "https://account.region.batch.azure.com/", "request-id": "fake"}

_ID = "([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/jobs", BatchService._create_job),
    ("GET", f"/jobs/{_ID}", BatchService._get_job),
    ("POST", f"/jobs/{_ID}/addtaskcollection", BatchService._add_collection),
    ("GET", f"/jobs/{_ID}/tasks", BatchService._list_tasks),
    ("GET", f"/jobs/{_ID}/tasks/{_ID}", BatchService._get_task),
    ("POST", f"/jobs/{_ID}/tasks/{_ID}/terminate", BatchService._terminate),
    ("DELETE", f"/jobs/{_ID}/tasks/{_ID}", BatchService._delete),
    ("HEAD", f"/jobs/{_ID}/tasks/{_ID}/files/(.+)", BatchService._file),
    ("GET", f"/jobs/{_ID}/tasks/{_ID}/files/(.+)", BatchService._file),
    ("GET", f"/pools/{_ID}", BatchService._get_pool),
    ("GET", "/nodecounts", BatchService._node_counts),
]


def pool_document(pool: Pool) -> dict[str, Any]:
    alive = [node for node in pool.nodes if node.state != "preempted"]
    low = sum(node.is_low_priority for node in alive)
    wanted = pool.wanted if pool.wanted is not None else len(pool.nodes)
    machine: dict[str, Any] = {
        "imageReference": {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204"},
        "nodeAgentSKUId": "batch.node.ubuntu 22.04",
    }
    if pool.takes_containers:
        machine["containerConfiguration"] = {"type": "dockerCompatible", "containerImageNames": []}
    document: dict[str, Any] = {
        "id": pool.id,
        "state": pool.state,
        "stateTransitionTime": "2026-11-21T10:00:00.0000000Z",
        "allocationState": pool.allocation_state,
        "vmSize": "standard_d2s_v3",
        "virtualMachineConfiguration": machine,
        "currentDedicatedNodes": len(alive) - low,
        "currentLowPriorityNodes": low,
        "targetDedicatedNodes": wanted,
        "targetLowPriorityNodes": 0,
        "enableAutoScale": False,
        "taskSlotsPerNode": pool.slots_per_node,
    }
    if pool.resize_errors:
        document["resizeErrors"] = pool.resize_errors
    if pool.identities:
        document["identity"] = {
            "type": "UserAssigned",
            "userAssignedIdentities": [{"resourceId": one} for one in pool.identities],
        }
    return document


def refusal(
    status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None
) -> Answer:
    """An error as the service spells it."""
    return _json(_error(code, message or code), status, headers)


def _error(code: str, message: str) -> dict[str, Any]:
    return {
        "code": code,
        "message": {"lang": "en-US", "value": f"{message}\nRequestId:fake\nTime:2026-11-21"},
    }


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(
        status,
        {"Content-Type": "application/json; odata=minimalmetadata", **_HEADERS, **(headers or {})},
        json.dumps(body).encode(),
    )


def _selected(document: Mapping[str, Any], request: Request) -> dict[str, Any]:
    names = request.parameters.get("$select")
    if names is None:
        return dict(document)
    return {name: document[name] for name in names.split(",") if name in document}
