"""The command line of a worker, as CodaLab's manager builds it. No secret ever stands on it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import PurePath

from backends.base import Capabilities


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the operator wants of every worker; the names are those of cl-worker-manager.

    ``executable``: a command, split as a shell does; None is the `bundle-worker` of the workers'
    image, or where workers see our files this Python's `-m worker`.
    """

    executable: str | None = None
    tag: str | None = None
    group: str | None = None
    idle_seconds: int = 600
    exit_after_num_runs: int | None = None
    download_dependencies_max_retries: int = 3
    max_work_dir_size: str | None = None
    delete_work_dir_on_exit: bool = False
    exit_on_exception: bool = False
    tag_exclusive: bool = False
    pass_down_termination: bool = False
    checkin_frequency_seconds: int | None = None
    shared_memory_size_gb: int | None = None
    preemptible: bool = False

    @property
    def is_codalab(self) -> bool:
        """Whether the workers are CodaLab's own, which know CodaLab's flags alone."""
        words = shlex.split(self.executable or "")
        return bool(words) and PurePath(words[0]).name == "cl-worker"

    def command(self, *, shares_files: bool) -> list[str]:
        """The executable and its first arguments. Raises ValueError when it cannot be split."""
        if self.executable is not None:
            return shlex.split(self.executable)
        if shares_files:
            # -P: a folder named worker where the manager was started must not be taken for ours.
            return [sys.executable, "-P", "-m", "worker"]
        return ["bundle-worker"]


def worker_command(
    options: WorkerOptions,
    capabilities: Capabilities,
    *,
    server: str,
    worker_id: str,
    work_directory: str,
    cpus: int,
    gpus: int,
    memory_bytes: int,
) -> list[str]:
    """The argv of one worker: CodaLab's flags in CodaLab's order (build_command), then ours.

    Ours say what the worker offers, so that several share one machine. Of a worker of CodaLab
    only memory can be bounded; it offers every cpu and gpu that it sees.
    """
    argv = [
        *options.command(shares_files=capabilities.shares_files),
        "--server",
        server,
        "--verbose",
        "--exit-when-idle",
        "--idle-seconds",
        str(options.idle_seconds),
        "--work-dir",
        work_directory,
        "--id",
        worker_id,
        "--network-prefix",
        f"cl_worker_{worker_id}_network",
    ]
    if options.tag:
        argv += ["--tag", options.tag]
    if options.group:
        argv += ["--group", options.group]
    if options.exit_after_num_runs:
        argv += ["--exit-after-num-runs", str(options.exit_after_num_runs)]
    argv += ["--download-dependencies-max-retries", str(options.download_dependencies_max_retries)]
    if options.max_work_dir_size:
        argv += ["--max-work-dir-size", options.max_work_dir_size]
    if options.delete_work_dir_on_exit:
        argv += ["--delete-work-dir-on-exit"]
    if options.exit_on_exception:
        argv += ["--exit-on-exception"]
    if options.tag_exclusive:
        argv += ["--tag-exclusive"]
    if options.pass_down_termination:
        argv += ["--pass-down-termination"]
    if options.checkin_frequency_seconds:
        argv += ["--checkin-frequency-seconds", str(options.checkin_frequency_seconds)]
    if options.shared_memory_size_gb:
        argv += ["--shared-memory-size-gb", str(options.shared_memory_size_gb)]
    if options.preemptible or capabilities.preemptible:
        argv += ["--preemptible"]
    argv += ["--max-memory", f"{memory_bytes // 1024**2}m"]
    if gpus == 0:
        argv += ["--gpuset", "NONE"]
    if not options.is_codalab:
        argv += ["--cpus", str(cpus), "--runtime", capabilities.worker_runtime]
    return argv
