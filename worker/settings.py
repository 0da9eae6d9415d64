"""What a worker was told when it was started. Values only; the command line is `worker.cli`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from worker.devices import Devices


@dataclass(frozen=True, slots=True)
class Settings:
    """``exit_after_num_runs`` None: no such limit. ``lifetime_seconds``: when others end the
    worker, from its start; None: they do not, as far as is known."""

    worker_id: str
    work_directory: Path
    devices: Devices
    memory_bytes: int
    max_work_dir_bytes: int
    checkin_frequency_seconds: float = 5.0
    tag: str | None = None
    tag_exclusive: bool = False
    group: str | None = None
    preemptible: bool = False
    ws_server: str | None = None
    exit_when_idle: bool = False
    idle_seconds: float = 0.0
    exit_after_num_runs: int | None = None
    lifetime_seconds: float | None = None
    exit_on_exception: bool = False
    pass_down_termination: bool = False
    delete_work_dir_on_exit: bool = False
    download_retries: int = 3
    shared_file_system: bool = False
    stops_on_lost_lease: bool = False

    @property
    def own_directory(self) -> Path:
        """This worker's part of the work directory, which others may share."""
        return self.work_directory / "workers" / quote(self.worker_id, safe="()@ ")

    @property
    def runs_directory(self) -> Path:
        return self.own_directory / "runs"

    @property
    def lock_path(self) -> Path:
        return self.own_directory / "lock"
