"""The calls to Azure Batch that the backend is made of: one method, one question or order.

Each is bounded in time and in attempts, and raises BackendError. What the answers mean is said
elsewhere (`jobs`, `pools`); whose a task is, too (`mark`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from backends.azure_batch.connection import Connection
from backends.azure_batch.definition import collections
from backends.azure_batch.errors import by_code, code_of
from backends.azure_batch.jobs import TASK_FIELDS
from backends.azure_batch.pools import POOL_FIELDS, PoolNews
from backends.azure_batch.words import first_line, word
from backends.base import BackendError, Invalid, Unreachable

if TYPE_CHECKING:
    from azure.batch import BatchClient
    from azure.batch.models import BatchJob, BatchTask, BatchTaskCreateResult

T = TypeVar("T")

PAGE_TASKS = 1000
LOG_KEPT_BYTES = 1024**2
SERVER_ERROR_ATTEMPTS = 3

_TASK_GONE = frozenset({"TaskNotFound", "JobNotFound"})
_TOO_LARGE = frozenset({"RequestBodyTooLarge", "RequestEntityTooLarge"})
_NO_NODE = frozenset({"NodeNotFound", "NodeNotReady", "NodeStateUnusable"})


class Added(Enum):
    """What became of a task that was to be added, when it was no error."""

    NEW = "new"
    EXISTS = "there is a task of this id, whoever's it is"


class Service:
    """One Azure Batch job of an account, and its pool. The job need not be there."""

    def __init__(self, connection: Connection, job_id: str) -> None:
        self._connection = connection
        self._job_id = job_id

    # The place

    def job(self) -> BatchJob | None:
        """The job, None when there is none."""
        return self._unless(
            {"JobNotFound"},
            f"looking at the job {self._job_id}",
            lambda client: client.get_job(self._job_id, select=["id", "state", "poolInfo"]),
        )

    def make_job(self, body: Mapping[str, Any]) -> None:
        """Make the job; one that another manager has just made is as good."""

        def create(client: BatchClient) -> None:
            from azure.batch.models import BatchJobCreateOptions

            client.create_job(BatchJobCreateOptions(body))

        self._unless({"JobExists"}, f"making the job {self._job_id}", create)

    def pool(self, pool_id: str) -> PoolNews | None:
        """A pool, None when there is none."""
        return self._unless(
            {"PoolNotFound"},
            f"looking at the pool {pool_id}",
            lambda client: PoolNews.read(client.get_pool(pool_id, select=POOL_FIELDS)),
        )

    def node_states(self, pool_id: str) -> dict[str, int]:
        """How many nodes of a pool are in which state; states without a node are left out."""

        def count(client: BatchClient) -> dict[str, int]:
            states: dict[str, int] = {}
            for pool in client.list_pool_node_counts(filter=f"poolId eq '{pool_id}'"):
                for counted in (pool.dedicated, pool.low_priority):
                    for name, number in (counted or {}).items():
                        if name != "total" and number:
                            states[name] = states.get(name, 0) + number
            return states

        return self._connection.call(f"counting the nodes of the pool {pool_id}", count)

    # Tasks

    def add(self, tasks: Sequence[dict[str, Any]]) -> dict[str, Added | BackendError]:
        """Add tasks, 100 a call: what became of each, by its id. Unreachable: it may be there."""
        added: dict[str, Added | BackendError] = {}
        left = collections(tasks)
        while left:
            collection = left.pop(0)
            try:
                added |= self._add(collection)
            except _TooLarge:
                middle = len(collection) // 2
                left[:0] = [collection[:middle], collection[middle:]]
            except BackendError as error:
                # What meets one call would meet the next one, too.
                added |= {task["id"]: error for rest in [collection, *left] for task in rest}
                break
        return added

    def _add(self, collection: list[dict[str, Any]]) -> dict[str, Added | BackendError]:
        """One call, and more for the tasks that Azure itself failed at."""
        added: dict[str, Added | BackendError] = self._create(collection)
        for _ in range(SERVER_ERROR_ATTEMPTS - 1):
            failed = [task for task in collection if isinstance(added[task["id"]], Unreachable)]
            if not failed:
                break
            try:
                added |= self._create(failed)
            except BackendError:
                break  # what became of the others is known all the same
        return added

    def _create(self, collection: list[dict[str, Any]]) -> dict[str, Added | BackendError]:
        def create(client: BatchClient) -> list[BatchTaskCreateResult]:
            from azure.batch.models import BatchTaskGroup
            from azure.core.exceptions import HttpResponseError

            group = BatchTaskGroup({"value": collection})
            try:
                answer = client.create_task_collection(self._job_id, group)
            except HttpResponseError as error:
                if code_of(error) in _TOO_LARGE and len(collection) > 1:
                    raise _TooLarge from error
                raise
            return list(answer.result_values or ())

        number = f"{len(collection)} task{'' if len(collection) == 1 else 's'}"
        results = self._connection.call(f"adding {number} to the job {self._job_id}", create)
        told = {result.task_id: _outcome(result) for result in results}
        return {
            task["id"]: told.get(task["id"]) or Unreachable(f"Azure said nothing of {task['id']}")
            for task in collection
        }

    def tasks(self, condition: str, *, pages: int | None = None) -> list[BatchTask]:
        """The tasks that fulfil an OData condition, all or the first ``pages`` of 1,000.

        Every page is asked for again alone; one that cannot be had is an error, not an end.
        """
        tasks: list[BatchTask] = []
        token: str | None = None
        while pages is None or pages > 0:
            read, token = self._page(condition, token)
            tasks += read
            pages = pages - 1 if pages is not None else None
            if not token:
                break
        return tasks

    def _page(self, condition: str, token: str | None) -> tuple[list[BatchTask], str | None]:
        def page(client: BatchClient) -> tuple[list[BatchTask], str | None]:
            found: Any = client.list_tasks(
                self._job_id, max_results=PAGE_TASKS, filter=condition, select=TASK_FIELDS
            ).by_page(token)
            return list(next(found, ())), found.continuation_token

        # A job that is not there has no tasks: they go with it.
        return self._unless(
            {"JobNotFound"}, f"listing the tasks of the job {self._job_id}", page
        ) or ([], None)

    def task(self, task_id: str) -> BatchTask | None:
        """A task, None when there is none."""
        return self._unless(
            _TASK_GONE,
            f"looking at the task {task_id}",
            lambda client: client.get_task(self._job_id, task_id, select=TASK_FIELDS),
        )

    def terminate(self, task_id: str) -> None:
        """End a task, unless it has ended or is gone."""
        self._unless(
            {*_TASK_GONE, "TaskCompleted"},
            f"ending {task_id}",
            lambda client: client.terminate_task(self._job_id, task_id),
        )

    def delete(self, task_id: str) -> None:
        """Remove a task, and what its node keeps of it."""
        self._unless(
            _TASK_GONE,
            f"removing the ended task {task_id}",
            lambda client: client.delete_task(self._job_id, task_id),
        )

    def file(self, task_id: str, name: str) -> bytes:
        """The last MiB of a file of a task, b"" while there is none."""
        from azure.core.exceptions import HttpResponseError

        def read(client: BatchClient) -> bytes:
            try:
                found = client.get_task_file_properties(self._job_id, task_id, name)
                size = int(found.content_length)
                if size == 0:
                    return b""
                is_long = size > LOG_KEPT_BYTES
                span = f"bytes={size - LOG_KEPT_BYTES}-{size - 1}" if is_long else None
                return b"".join(
                    client.download_task_file(self._job_id, task_id, name, ocp_range=span)
                )
            except HttpResponseError as error:
                if error.status_code in (404, 409) and code_of(error) not in _NO_NODE:
                    return b""
                if code_of(error) in _NO_NODE:
                    raise Invalid(
                        f"{name} of {task_id} went with the node that it ran on"
                    ) from error
                raise

        return self._connection.call(f"reading {name} of {task_id}", read)

    def _unless(
        self, codes: set[str] | frozenset[str], doing: str, operation: Callable[[BatchClient], T]
    ) -> T | None:
        """What an operation returns; None when Azure answers with one of these codes."""
        from azure.core.exceptions import HttpResponseError

        def attempt(client: BatchClient) -> T | None:
            try:
                return operation(client)
            except HttpResponseError as error:
                if code_of(error) in codes:
                    return None
                raise

        return self._connection.call(doing, attempt)


class _TooLarge(Exception):
    """A collection that Azure takes in smaller pieces only."""


def _outcome(result: BatchTaskCreateResult) -> Added | BackendError:
    status = word(result.status).lower()
    if status == "success":
        return Added.NEW
    code = (result.error.code if result.error else "") or ""
    if code == "TaskExists":
        return Added.EXISTS
    said = result.error.message.value if result.error and result.error.message else ""
    sentence = f"{result.task_id} was not added: {code or status}, {first_line(said)}".rstrip(", ")
    if status == "servererror":
        return Unreachable(sentence)
    return by_code(code, sentence)
