"""Azure Batch, as its published API describes it, keeps the promises that every backend keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from azure_stand import JOB, POOL, Stand
from fakes.azure.account import Account
from fakes.azure.batch import refusal
from fakes.azure.wire import Fault

from backends import patience
from backends.azure_batch import connection
from backends.azure_batch.backend import AzureBatch
from backends.azure_batch.options import AzureSettings
from backends.base import Backend, Context, Job
from backends.conformance import Circumstance, Conformance, Harness, leave_word, stand_in

COLLECTION = "/addtaskcollection"


class Azure(Harness):
    """The service on loopback; its nodes run tasks as processes."""

    impossible: ClassVar = {}
    retry_after_seconds = 0.5
    unknown_id = "conformance-99-0badcafe"
    launched_at_scale = 1000

    def __init__(self, directory: Path) -> None:
        self._words = directory / "words"
        self._words.mkdir()
        self._stand = Stand(directory, runs=True)
        self._account.add_nodes(POOL, 20)
        self.worker = stand_in(self._words)

    @property
    def _account(self) -> Account:
        return self._stand.account

    @property
    def environment(self) -> dict[str, str]:
        return self._stand.keys

    def backend(self, context: Context) -> Backend:
        return AzureBatch(context, AzureSettings.read(self._stand.settings()))

    def finish(self, job: Job, exit_code: int) -> None:
        leave_word(self._words, job.key, exit_code)

    def kill(self, job: Job) -> None:
        self._account.terminate_task(JOB, job.id)

    def preempt(self, job: Job) -> None:
        node = self._account.task(JOB, job.id).node
        assert node is not None
        self._account.held = True  # no other node is free at once
        self._account.preempt(node.id)

    @contextmanager
    def during(self, circumstance: Circumstance) -> Iterator[None]:
        wire = self._stand.batch.wire
        busy = refusal(503, "ServerBusy", "", {"Retry-After": str(self.retry_after_seconds)})
        match circumstance:
            case Circumstance.HELD:
                self._account.held = True
                yield
                self._account.release()
            case Circumstance.OUT_OF_CAPACITY:
                with self._without_nodes("AllocationFailed"):
                    yield
            case Circumstance.QUOTA_EXCEEDED:
                with self._without_nodes("AccountCoreQuotaReached"):
                    yield
            case Circumstance.UNAUTHORIZED:
                self._stand.batch.key, key = "b3RoZXI=", self._stand.batch.key
                yield
                self._stand.batch.key = key
            case Circumstance.LIST_TORN:
                self._stand.batch.largest_page = 2
                with wire.failing(Fault(target="skiptoken", answer=refusal(500, "InternalError"))):
                    yield
                self._stand.batch.largest_page = 1000
            case Circumstance.REPLY_LOST:
                with wire.failing(Fault("POST", COLLECTION, carried_out=True)):
                    yield
            case Circumstance.UNREACHABLE:
                with wire.failing(Fault()):
                    yield
            case Circumstance.HANGING:
                with wire.failing(Fault(until=threading.Event())):
                    yield
            case Circumstance.THROTTLED:
                with wire.failing(Fault(answer=busy)):
                    yield
            case Circumstance.BRIEFLY_THROTTLED:
                with wire.failing(Fault(answer=busy, times=2)):
                    yield
            case _:
                raise NotImplementedError(circumstance)

    @contextmanager
    def _without_nodes(self, code: str) -> Iterator[None]:
        pool = self._account.pools[POOL]
        nodes, pool.nodes = pool.nodes, []
        pool.resize_errors = [{"code": code, "message": "The pool could not grow."}]
        yield
        pool.nodes, pool.resize_errors = nodes, []

    def plant_neighbours(self, context: Context) -> list[str]:
        """Tasks of the same job: one of a person, and some that a person gave our names to."""
        key = f"{context.pool}-7-0123abcd"
        marks = {
            f"{context.pool}-by-hand": "",
            key: "",
            f"{context.pool.upper()}-8-0123abcd": (
                f"worker-manager {context.owner} {context.pool.upper()} "
                f"{context.pool.upper()}-8-0123abcd"
            ),
            f"{context.pool}-9-0123abcd": f"worker-manager {context.owner} {context.pool} {key}",
        }
        for task_id, name in marks.items():
            self._account.add_task(
                JOB,
                {
                    "id": task_id,
                    "displayName": name,
                    "commandLine": "/bin/sh -c 'sleep 1000'",
                    "containerSettings": {"imageName": "busybox"},
                },
            )
        self._account.wait_for(lambda: all(self.is_untouched(task_id) for task_id in marks))
        return list(marks)

    def is_untouched(self, job_id: str) -> bool:
        return bool(self._account.task(JOB, job_id).document["state"] == "running")

    def calls(self) -> int:
        return len(self._stand.batch.wire.exchanges) + len(self._stand.blobs.wire.exchanges)

    def sent(self) -> str:
        asked = [(r, True) for r in self._stand.batch.wire.requests()]
        asked += [(r, r.method != "PUT") for r in self._stand.blobs.wire.requests()]
        return "\n".join(
            f"{request.method} {request.target} {dict(request.headers)}"
            + (request.body.decode() if is_shown else "")
            for request, is_shown in asked
        )

    def close(self) -> None:
        self._stand.close()


class TestAzureBatch(Conformance):
    @pytest.fixture
    def harness(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
        made = Azure(tmp_path)
        try:
            for name, value in made.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setitem(connection.HTTP_OPTIONS, "read_timeout", 0.3)
            monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.05)
            yield made
        finally:
            made.close()
