"""The calls of GCP Batch that are made, each a bounded number of times. Raises BackendError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backends.base import Invalid, Unreachable
from backends.gcp_batch.connection import Connection
from backends.gcp_batch.options import GcpSettings

if TYPE_CHECKING:
    from google.cloud.batch_v1.types import Job as GcpJob
    from google.cloud.batch_v1.types import Task

JOBS_PER_PAGE = 500
TASKS_PER_PAGE = 1000
GROUP = "group0"
"""What Batch calls the one task group of a job."""


class Service:
    """Jobs of one project and region."""

    def __init__(self, connection: Connection, settings: GcpSettings) -> None:
        self._connection = connection
        self._settings = settings

    def create(self, job_id: str, definition: Mapping[str, Any], request_id: str) -> GcpJob | None:
        """The job that was made; None when its id is taken."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.batch_v1.types import CreateJobRequest

        request = CreateJobRequest(
            parent=self._settings.parent, job_id=job_id, job=definition, request_id=request_id
        )

        def create(**keywords: Any) -> GcpJob | None:
            try:
                return self._connection.batch.create_job(**keywords)
            except GoogleAPICallError as error:
                if error.code == 409:  # AlreadyExists over grpc, Conflict over REST
                    return None
                raise

        return self._connection.call(f"making the job {job_id}", create, request)

    def job(self, job_id: str) -> GcpJob | None:
        """A job, None when there is none."""
        from google.api_core.exceptions import NotFound
        from google.cloud.batch_v1.types import GetJobRequest

        def get(**keywords: Any) -> GcpJob | None:
            try:
                return self._connection.batch.get_job(**keywords)
            except NotFound:
                return None

        return self._connection.call(
            f"looking at the job {job_id}", get, GetJobRequest(name=self._name(job_id))
        )

    def jobs(self, labels: Mapping[str, str], *, limit: int | None = None) -> list[GcpJob]:
        """The jobs that may have these labels, newest first: a filter asks for them, and whoever
        reads the answer looks again, since what filters mean is not written down."""
        from google.cloud.batch_v1.types import ListJobsRequest

        wanted = " AND ".join(f'labels.{name}="{value}"' for name, value in labels.items())
        request = ListJobsRequest(
            parent=self._settings.parent,
            filter=wanted,
            order_by="create_time desc",
            page_size=limit or JOBS_PER_PAGE,
        )
        doing = f"listing the jobs of {self._settings.parent}"
        jobs: list[GcpJob] = []
        for page in self._pages(doing, self._list_jobs_page, request):
            jobs += page.jobs
            if page.unreachable:
                raise Unreachable(f"{doing}: {', '.join(page.unreachable)} did not answer")
            if limit is not None:
                break
        return jobs

    def tasks(self, job_id: str) -> list[Task] | None:
        """The tasks of a job; None when it is gone. Some may not be there yet."""
        from google.api_core.exceptions import NotFound
        from google.cloud.batch_v1.types import ListTasksRequest

        request = ListTasksRequest(
            parent=f"{self._name(job_id)}/taskGroups/{GROUP}", page_size=TASKS_PER_PAGE
        )

        def page(**keywords: Any) -> Any:
            try:
                return _first_page(self._connection.batch.list_tasks(**keywords))
            except NotFound:
                return None

        tasks: list[Task] = []
        for found in self._pages(f"listing the tasks of {job_id}", page, request):
            if found is None:
                return None
            tasks += found.tasks
        return tasks

    def cancel(self, job_id: str, request_id: str) -> None:
        """End a job; it stays listed. What has ended, or is gone, is left as it is."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.batch_v1.types import CancelJobRequest

        def cancel(**keywords: Any) -> None:
            try:
                self._connection.batch.cancel_job(**keywords)
            except GoogleAPICallError as error:
                if error.code not in (400, 404):  # it has ended, is being ended, or is gone
                    raise
                if error.code == 400 and not self._is_ending(job_id):
                    raise

        request = CancelJobRequest(name=self._name(job_id), request_id=request_id)
        self._connection.call(f"ending the job {job_id}", cancel, request)

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended."""
        from google.api_core.exceptions import NotFound
        from google.cloud.batch_v1.types import DeleteJobRequest

        def delete(**keywords: Any) -> None:
            try:
                self._connection.batch.delete_job(**keywords)
            except NotFound:
                return

        self._connection.call(
            f"removing the job {job_id}", delete, DeleteJobRequest(name=self._name(job_id))
        )

    def _is_ending(self, job_id: str) -> bool:
        job = self.job(job_id)
        return job is None or job.status.state.name not in ("QUEUED", "SCHEDULED", "RUNNING")

    def _list_jobs_page(self, *, request: Any, **keywords: Any) -> Any:
        """A filter that Google refuses is done without: it only spares us what is not ours."""
        from google.api_core.exceptions import BadRequest

        try:
            return _first_page(self._connection.batch.list_jobs(request=request, **keywords))
        except BadRequest:
            if not request.filter or request.page_token:
                raise
        request.filter = ""
        return _first_page(self._connection.batch.list_jobs(request=request, **keywords))

    def _pages(self, doing: str, method: Any, request: Any) -> Iterator[Any]:
        """Every page, each asked for by itself; one that cannot be had is an error, not an end."""
        seen: set[str] = set()
        while True:
            page = self._connection.call(doing, method, request)
            yield page
            token = page.next_page_token if page is not None else ""
            if not token:
                return
            if token in seen:
                raise Invalid(f"{doing}: Google gives the same page again and again")
            seen.add(token)
            request.page_token = token

    def _name(self, job_id: str) -> str:
        return f"{self._settings.parent}/jobs/{job_id}"


def _first_page(pager: Any) -> Any:
    """The answer as it came: the pager would ask for the next one by itself."""
    return next(pager.pages)
