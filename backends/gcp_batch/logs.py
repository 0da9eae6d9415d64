"""What a worker printed, from Cloud Logging, where Batch's agent sends it."""

from __future__ import annotations

from backends.gcp_batch.connection import Connection
from backends.gcp_batch.errors import backend_error
from backends.gcp_batch.options import GcpSettings
from backends.patience import patiently

LOG_KEPT_BYTES = 1024**2
ENTRIES_PER_PAGE = 1000
MOST_ENTRIES = 5000
"""Each page is a call, and Cloud Logging allows 60 a minute."""


def read_log(connection: Connection, settings: GcpSettings, job_uid: str, index: int) -> str:
    """The last MiB of one task's output, or its last entries. Raises BackendError.

    A task's entries carry `task_id`: `task/<job uid>-group0-<index>/<attempt>/<runnable>`
    (cloud.google.com/batch/docs/analyze-job-using-logs).
    """
    wanted = (
        f'logName="projects/{settings.project}/logs/batch_task_logs" '
        f'AND labels.job_uid="{job_uid}" '
        f'AND labels.task_id:"{job_uid}-group0-{index}/"'
    )

    def read() -> str:
        lines: list[str] = []
        size_bytes = 0
        entries = connection.logging.list_entries(  # type: ignore[no-untyped-call]
            resource_names=[f"projects/{settings.project}"],
            filter_=wanted,
            order_by="timestamp desc",
            max_results=MOST_ENTRIES,
            page_size=ENTRIES_PER_PAGE,
        )
        for entry in entries:
            line = str(entry.payload if entry.payload is not None else "").rstrip("\n") + "\n"
            size_bytes += len(line.encode())
            if size_bytes > LOG_KEPT_BYTES:
                break
            lines.append(line)
        return "".join(reversed(lines))

    return patiently(f"reading the log of task {index} of {job_uid}", read, backend_error)
