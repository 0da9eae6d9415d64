"""The fake's sockets: gRPC and REST for the same state, every request kept, faults in between."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
from google.cloud.batch_v1 import types
from google.cloud.secretmanager_v1 import types as secret_types
from google.longrunning import operations_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from grpc_status import rpc_status

from fakes.gcp.cloud import Cloud
from fakes.gcp.refusal import Refusal

BATCH = "google.cloud.batch.v1.BatchService"
SECRETS = "google.cloud.secretmanager.v1.SecretManagerService"
HANG_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """One request as it came: the method's name, and all of its content but a secret's payload."""

    method: str
    text: str


class Disconnected(Exception):
    """The client gets no answer."""


Fault = Callable[[str, Any], None]
"""Called with the method and request before it is carried out; what it raises is the answer."""


class Wire:
    """``grpc_url`` and ``rest_url`` are addresses of the same cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.requests: list[Request] = []
        self.before: Fault | None = None
        self.after: Fault | None = None
        self._released = threading.Event()
        self._operations = {
            "CreateJob": self._create_job,
            "GetJob": lambda request: cloud.get_job(request.name),
            "ListJobs": cloud.list_jobs,
            "ListTasks": cloud.list_tasks,
            "CancelJob": self._cancel_job,
            "DeleteJob": self._delete_job,
            "GetSecret": self._get_secret,
            "AddSecretVersion": self._add_version,
            "DestroySecretVersion": self._destroy_version,
        }
        self._grpc = grpc.server(ThreadPoolExecutor(16))
        self._grpc.add_generic_rpc_handlers(self._handlers())
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self.grpc_url = f"http://127.0.0.1:{port}"
        self._rest = _RestServer(self)
        self.rest_url = f"http://127.0.0.1:{self._rest.server_address[1]}"
        self._thread = threading.Thread(target=self._rest.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._released.set()
        self._grpc.stop(0).wait(10)
        self._rest.shutdown()
        self._rest.server_close()
        self._thread.join(10)

    @contextmanager
    def faulty(self, *, before: Fault | None = None, after: Fault | None = None) -> Iterator[None]:
        """Inside, every call meets ``before`` and its answer ``after``."""
        self._released.clear()
        self.before, self.after = before, after
        try:
            yield
        finally:
            self.before = self.after = None
            self._released.set()

    def hang(self, method: str, request: Any) -> None:
        """A fault: no answer while it lasts."""
        self._released.wait(HANG_SECONDS)
        raise Disconnected

    # Every call, whatever it came by

    def call(self, method: str, request: Any) -> Any:
        self.requests.append(Request(method, _text(request)))
        if self.before is not None:
            self.before(method, request)
        reply = self._operations[method](request)
        if self.after is not None:
            self.after(method, request)
        return reply

    def list_entries(self, body: dict[str, Any]) -> dict[str, Any]:
        """Cloud Logging's entries.list, for the filter that its users of Batch write."""
        self.requests.append(Request("ListLogEntries", json.dumps(body)))
        if self.before is not None:
            self.before("ListLogEntries", body)
        uid = re.search(r'labels\.job_uid="([^"]+)"', body["filter"])
        task = re.search(r'labels\.task_id:"([^"]+)"', body["filter"])
        assert uid is not None, body
        assert task is not None, body
        found = self.cloud.log_lines(uid[1], task[1])
        if body.get("orderBy") == "timestamp desc":
            found.reverse()
        start = int(body.get("pageToken") or 0)
        end = start + int(body.get("pageSize") or 50)
        entries = [
            {
                "logName": f"{body['resourceNames'][0]}/logs/batch_task_logs",
                "insertId": str(number),
                "labels": {"job_uid": uid[1], "task_id": task_id},
                "resource": {"type": "batch.googleapis.com/Job"},
                "textPayload": line,
            }
            for number, (task_id, line) in enumerate(found[start:end], start)
        ]
        return {"entries": entries, **({"nextPageToken": str(end)} if end < len(found) else {})}

    def _create_job(self, request: types.CreateJobRequest) -> types.Job:
        return self.cloud.create_job(request)

    def _cancel_job(self, request: types.CancelJobRequest) -> Any:
        self.cloud.cancel_job(request.name)
        return _operation("cancel", request.name)

    def _delete_job(self, request: types.DeleteJobRequest) -> Any:
        self.cloud.delete_job(request.name)
        return _operation("delete", request.name)

    def _get_secret(self, request: Any) -> Any:
        self.cloud.has_secret(request.name)
        return secret_types.Secret(name=request.name)

    def _add_version(self, request: Any) -> Any:
        name = self.cloud.add_secret_version(request.parent, request.payload.data)
        return secret_types.SecretVersion(name=name)

    def _destroy_version(self, request: Any) -> Any:
        self.cloud.destroy_secret_version(request.name)
        return secret_types.SecretVersion(name=request.name)

    # gRPC

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        batch = {
            "CreateJob": (types.CreateJobRequest, types.Job),
            "GetJob": (types.GetJobRequest, types.Job),
            "ListJobs": (types.ListJobsRequest, types.ListJobsResponse),
            "ListTasks": (types.ListTasksRequest, types.ListTasksResponse),
            "CancelJob": (types.CancelJobRequest, None),
            "DeleteJob": (types.DeleteJobRequest, None),
        }
        secrets = {
            "GetSecret": (secret_types.GetSecretRequest, secret_types.Secret),
            "AddSecretVersion": (
                secret_types.AddSecretVersionRequest,
                secret_types.SecretVersion,
            ),
            "DestroySecretVersion": (
                secret_types.DestroySecretVersionRequest,
                secret_types.SecretVersion,
            ),
        }
        return (
            grpc.method_handlers_generic_handler(
                BATCH, {n: self._handler(n, *kinds) for n, kinds in batch.items()}
            ),
            grpc.method_handlers_generic_handler(
                SECRETS, {n: self._handler(n, *kinds) for n, kinds in secrets.items()}
            ),
        )

    def _handler(self, method: str, asked: Any, answered: Any) -> grpc.RpcMethodHandler:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return self.call(method, request)
            except Refusal as refusal:
                context.abort_with_status(rpc_status.to_status(refusal.status()))
            except Disconnected:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

        serialize = answered.serialize if answered else operations_pb2.Operation.SerializeToString
        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=asked.deserialize, response_serializer=serialize
        )


class _RestServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        super().__init__(("127.0.0.1", 0), _RestHandler)

    def handle_error(self, *arguments: Any) -> None:
        """Clients go away; nobody needs to read of it."""


_ROUTES: tuple[tuple[str, str, str, Any, Any], ...] = (
    # HTTP method, path, method, request, and where in the request the path and the body go
    ("POST", r"(projects/[^/]+/locations/[^/]+)/jobs", "CreateJob", types.CreateJobRequest, "job"),
    ("GET", r"(projects/[^/]+/locations/[^/]+)/jobs", "ListJobs", types.ListJobsRequest, None),
    ("GET", r"(projects/[^/]+/locations/[^/]+/jobs/[^/:]+)", "GetJob", types.GetJobRequest, None),
    (
        "DELETE",
        r"(projects/[^/]+/locations/[^/]+/jobs/[^/:]+)",
        "DeleteJob",
        types.DeleteJobRequest,
        None,
    ),
    (
        "POST",
        r"(projects/[^/]+/locations/[^/]+/jobs/[^/:]+):cancel",
        "CancelJob",
        types.CancelJobRequest,
        "*",
    ),
    (
        "GET",
        r"(projects/[^/]+/locations/[^/]+/jobs/[^/]+/taskGroups/[^/]+)/tasks",
        "ListTasks",
        types.ListTasksRequest,
        None,
    ),
    (
        "GET",
        r"(projects/[^/]+/secrets/[^/:]+)",
        "GetSecret",
        secret_types.GetSecretRequest,
        None,
    ),
    (
        "POST",
        r"(projects/[^/]+/secrets/[^/:]+):addVersion",
        "AddSecretVersion",
        secret_types.AddSecretVersionRequest,
        "*",
    ),
    (
        "POST",
        r"(projects/[^/]+/secrets/[^/]+/versions/[^/:]+):destroy",
        "DestroySecretVersion",
        secret_types.DestroySecretVersionRequest,
        "*",
    ),
)


class _RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _RestServer

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        # The SDK wants numbers for enums, other clients names.
        numbers = "enum-encoding=int" in query.pop("$alt", query.pop("alt", ""))
        try:
            if parts.path == "/v2/entries:list":
                self._send(200, self.server.wire.list_entries(body))
                return
            reply = self._call(parts.path.removeprefix("/v1/"), query, body)
            message = type(reply).pb(reply) if hasattr(type(reply), "pb") else reply
            self._send(200, json_format.MessageToDict(message, use_integers_for_enums=numbers))
        except Refusal as refusal:
            self._send(refusal.http_status, refusal.document())
        except Disconnected:
            self.close_connection = True
            self.connection.close()

    def _call(self, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        for method, pattern, name, kind, body_field in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None or self.command != method:
                continue
            document: dict[str, Any] = {
                key: value for key, value in query.items() if not key.startswith("$")
            }
            if body_field == "*":
                document |= body
            elif body_field is not None:
                document[body_field] = body
            request = kind.pb(kind())
            is_parent = "parent" in request.DESCRIPTOR.fields_by_name
            document["parent" if is_parent else "name"] = match[1]
            try:
                json_format.ParseDict(document, request)
            except json_format.ParseError as error:
                raise Refusal("INVALID_ARGUMENT", str(error)) from error
            return self.server.wire.call(name, kind.wrap(request))
        raise Refusal("NOT_FOUND", f"{self.command} {path} is no method")

    def _send(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """The wire keeps them."""


def _operation(verb: str, name: str) -> Any:
    metadata = types.OperationMetadata(target=name, verb=verb)
    packed, empty = Packed(), Packed()
    packed.Pack(types.OperationMetadata.pb(metadata))
    empty.Pack(Empty())
    location = name.partition("/jobs/")[0]
    return operations_pb2.Operation(
        name=f"{location}/operations/operation-{verb}", metadata=packed, response=empty, done=False
    )


def _text(request: Any) -> str:
    document = json_format.MessageToDict(type(request).pb(request))
    if "payload" in document:
        document["payload"] = "(kept)"
    return json.dumps(document)
