"""S3 at a socket of the test's own process: moto's, in which a test lets things go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from serving import Server

BUCKET = "contents"
REGION = "us-east-1"
ACCOUNT = "123456789012"
OPERATIONS = {
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", "uploads"): "ListMultipartUploads",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}
PLAIN = {
    "GET": "GetObject",
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "DELETE": "DeleteObject",
}
CUT = 0
"""Instead of a status: no answer, and the connection is closed."""
HANG = -1
"""Neither, until the fault is over."""
REPLY_LOST = -2
"""What was asked is done, and then as CUT."""


@cache
def _moto() -> Any:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.test import Client

    return Client(DomainDispatcherApplication(create_backend_app))


@dataclass
class Fault:
    """``status``: of the answer, or CUT, HANG or REPLY_LOST. ``seen``: it happened."""

    operation: str
    status: int
    code: str
    when: Callable[[Mapping[str, list[str]]], bool]
    seen: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class FakeS3:
    """``url`` answers from ``open`` to ``close``. ``asked``: operation and key of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.page_size = 1000
        self._faults: list[Fault] = []
        self._moto_lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """How programs of AWS find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "else",
        }

    def open(self) -> None:
        """At any free port the first time, at the same one after that."""
        _moto()
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Nobody answers any more."""
        if self._server is not None and self._thread is not None:
            for fault in self._faults:
                fault.over.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    # What a test does and asks

    @contextmanager
    def fault(
        self,
        operation: str = "",
        status: int = 503,
        code: str = "ServiceUnavailable",
        when: Callable[[Mapping[str, list[str]]], bool] = lambda parameters: True,
    ) -> Iterator[Fault]:
        """``operation`` "" is each. ``when`` looks at the parameters of a request's address."""
        fault = Fault(operation, status, code, when)
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)
            fault.over.set()

    def count(self, operation: str, key: str = "") -> int:
        return sum(asked == operation and key in where for asked, where in self.asked)

    def client(self) -> Any:
        """Anybody's, by boto3 alone."""
        import boto3

        return boto3.client(
            "s3",
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="any",
            aws_secret_access_key="body",
        )

    def keys(self, prefix: str) -> list[str]:
        """After the prefix, but for the mark of the database."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        names = [each["Key"].removeprefix(prefix) for each in found]
        return sorted(name for name in names if name != "database")

    def uploads(self, prefix: str) -> list[str]:
        """Keys of uploads in parts that are under way, or were left behind."""
        found = self.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        return [each["Key"] for each in found.get("Uploads", [])]

    # Answers

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """None: close the connection without an answer."""
        address = urlsplit(target)
        parameters = parse_qs(address.query, keep_blank_values=True)
        operation = next(
            (OPERATIONS[method, name] for name in parameters if (method, name) in OPERATIONS),
            PLAIN.get(method, method),
        )
        self.asked.append((operation, unquote(address.path)))
        fault = next(
            (
                fault
                for fault in list(self._faults)
                if fault.operation in ("", operation) and fault.when(parameters)
            ),
            None,
        )
        if fault is not None and fault.status != REPLY_LOST:
            return self._fail(fault)
        if operation == "ListObjectsV2":
            parameters["max-keys"] = [str(self.page_size)]
            target = f"{address.path}?{urlencode(parameters, doseq=True)}"
        with self._moto_lock:
            reply = _moto().open(
                target, method=method, headers=dict(headers), data=body, base_url=self.url
            )
            answer = reply.status_code, dict(reply.headers), reply.data
        if fault is not None:
            fault.seen.set()
            return None
        return answer

    def _fail(self, fault: Fault) -> tuple[int, dict[str, str], bytes] | None:
        fault.seen.set()
        if fault.status == HANG:
            fault.over.wait(timeout=60)
        if fault.status <= 0:
            return None
        error = f"<Error><Code>{fault.code}</Code><Message>so it was asked</Message></Error>"
        return fault.status, {"Content-Type": "application/xml"}, error.encode()


class S3Server(Server):
    """`bundles serve` with its contents in a FakeS3, below a prefix of its own."""

    def __init__(self, directory: Path, s3: FakeS3) -> None:
        super().__init__(directory)
        self.s3 = s3
        self.prefix = f"{directory.name}/"
        self.env = {
            name: value for name, value in self.env.items() if not name.startswith("AWS_")
        } | s3.environment

    def start(self, *options: str) -> None:
        super().start("--contents", f"s3://{BUCKET}/{self.prefix}", *options)


@contextmanager
def fake_s3() -> Iterator[FakeS3]:
    """One that has the bucket."""
    s3 = FakeS3()
    s3.open()
    try:
        s3.client().create_bucket(Bucket=BUCKET)
        yield s3
    finally:
        s3.close()
        from moto.s3.models import s3_backends

        s3_backends[ACCOUNT]["aws"].reset()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64


def _handler(s3: FakeS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request a connection: when the listener is closed, nobody answers."""

        protocol_version = "HTTP/1.1"  # else nobody is told to go on, who asks whether to

        def do_GET(self) -> None:
            self.close_connection = True
            with suppress(ConnectionError):  # whoever asks may be killed at any time
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = s3.answer(self.command, self.path, dict(self.headers), body)
                if answer is not None:
                    self._send(*answer)

        do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            length = str(len(content))
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in ("content-length", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler
