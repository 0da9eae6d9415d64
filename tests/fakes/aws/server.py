"""The fake at a socket: what is asked is kept, Batch and its logs answer here, moto for the rest.

with FakeAws() as aws:
    aws.batch.add_queue("workers", "FARGATE")
    AwsBatch(context, AwsSettings(image="x", job_queue="workers", endpoint=aws.url))
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from fakes.aws import model
from fakes.aws.batch import ACCOUNT, REGION, Batch, Refused, Runner
from fakes.aws.processes import Processes


class Fault(Enum):
    """What goes wrong with a call."""

    THROTTLED = "TooManyRequestsException"
    BROKEN = "ServerException"
    UNAUTHORIZED = "UnrecognizedClientException"
    FORBIDDEN = "AccessDeniedException"
    REPLY_LOST = "done, and the connection is closed instead of an answer"
    SILENT = "not done, and no answer either"


_XML_SERVICES = ("iam", "sts")
_moto_lock = threading.Lock()


@cache
def moto() -> Any:
    """All of moto's services, one for the whole process. Takes seconds the first time."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.test import Client

    client = Client(DomainDispatcherApplication(create_backend_app))
    for service in ("ssm", "iam", "logs", "secretsmanager", "ecr"):
        credential = f"Credential=x/20200101/{REGION}/{service}/aws4_request"
        client.get("/", headers={"Authorization": f"AWS4-HMAC-SHA256 {credential}"})
    return client


_STATUS = {Fault.THROTTLED: 429, Fault.BROKEN: 500, Fault.UNAUTHORIZED: 403, Fault.FORBIDDEN: 403}


@dataclass
class Trouble:
    """``operation``: "" for every one. ``left``: how often it happens, None for always."""

    fault: Fault
    operation: str = ""
    left: int | None = None
    retry_after_seconds: float | None = None
    when: Callable[[dict[str, Any]], bool] = lambda asked: True


@dataclass
class Asked:
    """One request as it came."""

    service: str
    operation: str
    headers: str
    body: str
    parameters: dict[str, Any] = field(default_factory=dict)


class FakeAws:
    """``url`` answers from ``open`` to ``close``. ``violations``: requests that AWS would not
    understand; a test ends by looking that there are none."""

    def __init__(self, *, runs: bool = True, environment: Mapping[str, str] | None = None) -> None:
        self._offset = 0.0
        self.processes = Processes(self._secret, environment or {"PATH": os.environ["PATH"]})
        self.batch = Batch(self.clock, self.processes if runs else Runner())
        self.processes.batch = self.batch
        self.requests: list[Asked] = []
        self.violations: list[str] = []
        self.troubles: list[Trouble] = []
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def __enter__(self) -> FakeAws:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.processes.close()
        assert self.violations == []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def clock(self) -> float:
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        self._offset += seconds

    def open(self) -> None:
        """At any free port the first time, at the same one after that."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Nobody answers any more."""
        if self._server is not None and self._thread is not None:
            self._released.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
            self._released.clear()

    # What a test does and asks

    @contextmanager
    def trouble(self, fault: Fault, operation: str = "", **more: Any) -> Iterator[Trouble]:
        trouble = Trouble(fault, operation, **more)
        self.troubles.append(trouble)
        try:
            yield trouble
        finally:
            self.troubles.remove(trouble)
            self._released.set()
            self._released.clear()

    def calls(self, operation: str = "") -> int:
        return sum(operation in ("", asked.operation) for asked in self.requests)

    def asked(self, operation: str) -> list[dict[str, Any]]:
        return [asked.parameters for asked in self.requests if asked.operation == operation]

    def sent(self) -> str:
        """Everything but what the stores of secrets were given to keep."""
        return "\n".join(
            f"{asked.operation} {asked.headers} {asked.body}"
            for asked in self.requests
            if asked.operation not in ("PutParameter", "CreateSecret", "PutSecretValue")
        )

    def client(self, service: str) -> Any:
        """A client of anybody's, by boto3 alone."""
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="someone",
            aws_secret_access_key="else",
        )

    def add_role(self, name: str, trusted: str = "ecs-tasks.amazonaws.com") -> str:
        """A role that a service may take on; its ARN."""
        from moto.iam.models import iam_backends

        moto()
        backend = iam_backends[ACCOUNT]["aws"]
        policy = json.dumps({"Statement": [{"Principal": {"Service": trusted}}]})
        if not any(role.name == name for role in backend.roles.values()):
            backend.create_role(name, policy, "/", None, "", [], 3600)
        return f"arn:aws:iam::{ACCOUNT}:role/{name}"

    # Answers

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """None: close the connection without an answer."""
        service, operation = _asked_of(path, headers, body)
        try:
            parameters = json.loads(body) if body[:1] == b"{" else {}
        except ValueError:
            parameters = {}
        sent = "\n".join(f"{name}: {value}" for name, value in headers.items())
        self.requests.append(
            Asked(service, operation, f"{path}\n{sent}", body.decode(errors="replace"), parameters)
        )
        trouble = self._trouble_with(operation, parameters)
        if trouble is not None and trouble.fault is Fault.SILENT:
            self._released.wait(timeout=60)
            return None
        if trouble is not None and trouble.fault in _STATUS:
            extra = {}
            if trouble.retry_after_seconds is not None:
                extra["Retry-After"] = f"{trouble.retry_after_seconds:g}"
            refusal = _xml_refusal if service in _XML_SERVICES else _refusal
            return refusal(trouble.fault.value, "so it was asked", _STATUS[trouble.fault], extra)
        reply = self._reply(service, operation, method, path, headers, body, parameters)
        return None if trouble is not None else reply

    def _trouble_with(self, operation: str, parameters: dict[str, Any]) -> Trouble | None:
        for trouble in self.troubles:
            if trouble.operation in ("", operation) and trouble.when(parameters):
                if trouble.left is not None:
                    if trouble.left == 0:
                        continue
                    trouble.left -= 1
                return trouble
        return None

    def _reply(
        self,
        service: str,
        operation: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        parameters: dict[str, Any],
    ) -> tuple[int, dict[str, str], bytes]:
        if service == "batch":
            return self._batch_reply(operation, parameters)
        if operation == "GetLogEvents":
            return self._log_reply(parameters)
        with _moto_lock:
            answer = moto().open(
                path, method=method, headers=dict(headers), data=body, base_url=self.url
            )
        return answer.status_code, dict(answer.headers), answer.data

    def _batch_reply(
        self, operation: str, parameters: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes]:
        faults = model.faults_of_request(operation, parameters)
        if faults or not self.batch.knows(operation):
            self.violations.append(f"{operation}: {faults or 'not known here'}")
            return _refusal("ClientException", faults, 400)
        try:
            answer = self.batch.call(operation, parameters)
        except Refused as refusal:
            return _refusal(refusal.code, str(refusal), refusal.status)
        faults = model.faults_of_answer(operation, answer)
        if faults:
            self.violations.append(f"answer to {operation}: {faults}")
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _log_reply(self, parameters: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        lines = self.processes.logs.get(parameters["logStreamName"])
        if lines is None:
            sentence = "The specified log stream does not exist."
            return _refusal("ResourceNotFoundException", sentence, 400)
        # From the end: a token says before which line a page ends; at the start it stays the same.
        # The first page is empty, as any page but the last may be.
        begun = parameters.get("nextToken")
        end = int(begun.removeprefix("b/")) if begun else len(lines)
        start = max(0, end - 10_000) if begun else end
        answer = {
            "events": [
                {"timestamp": int(self.clock() * 1000), "ingestionTime": 0, "message": line}
                for line in lines[start:end]
            ],
            "nextBackwardToken": f"b/{start}",
            "nextForwardToken": f"f/{end}",
        }
        return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(answer).encode()

    def _secret(self, place: str) -> str:
        """What a container's agent fetches for `valueFrom`, with the execution role."""
        if ":ssm:" in place:
            from moto.ssm.models import ssm_backends

            name = place.partition(":parameter")[2]
            kept = ssm_backends[ACCOUNT][REGION].get_parameter(name)
            return str(kept.decrypt(kept.value))
        from moto.secretsmanager.models import secretsmanager_backends

        arn, variable = ":".join(place.split(":")[:7]), place.split(":")[7]
        found = secretsmanager_backends[ACCOUNT][REGION].get_secret_value(arn, None, None)
        return str(json.loads(found["SecretString"])[variable])


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64


def _handler(aws: FakeAws) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request a connection: when the listener is closed, nobody answers."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = aws.answer(self.command, self.path, dict(self.headers), body)
            if answer is None:
                return
            status, headers, content = answer
            with suppress(ConnectionError):  # it may not have waited
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "server", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def _asked_of(path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Service and operation of a request, by its signature and its path, target or action."""
    credential = headers.get("Authorization", "").partition("Credential=")[2]
    words = credential.split(",")[0].split("/")
    service = words[3] if len(words) > 3 else ""
    if service == "batch":
        return service, model.operations().get(path, path)
    if service in _XML_SERVICES:
        return service, parse_qs(body.decode()).get("Action", [path])[0]
    return service, headers.get("X-Amz-Target", path).rpartition(".")[2]


def _refusal(
    code: str, message: str, status: int, extra: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """As both kinds of protocols of JSON say it."""
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": code, **(extra or {})}
    return status, headers, json.dumps({"__type": code, "message": message}).encode()


def _xml_refusal(
    code: str, message: str, status: int, extra: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, {"Content-Type": "text/xml", **extra}, f"<E>{error}</E>".encode()
