"""A run as a check-in tells it: CodaLab's `BundleCheckinState`, and the claim."""

from __future__ import annotations

from typing import Any

from worker.held import Held
from worker.stages import REPORTED_STATES, Run, Stage


def describe_run(
    held: Held, *, worker_id: str, fetching: str | None, now: float, every_stage: bool
) -> dict[str, Any]:
    """``fetching``: what it waits for, if it does. ``every_stage``: a CodaLab server ignores a run
    that does not have the times of all of them. ``now`` in epoch seconds."""
    run = held.run
    total, user, system = run.seconds
    if held.is_running:
        total = now - held.started
        user, system = held.usage.user_seconds, held.usage.system_seconds
    limit = run.resources.memory_bytes
    document: dict[str, Any] = {
        "uuid": run.uuid,
        "run_status": held.status or fetching or _status(run),
        "bundle_start_time": run.accepted,
        "container_time_total": total,
        "container_time_user": user,
        "container_time_system": system,
        "docker_image": (run.process or {}).get("image"),
        "state": REPORTED_STATES[run.stage],
        "remote": worker_id,
        "exitcode": run.exitcode,
        "failure_message": run.failure_message,
        "bundle_profile_stats": _times(run, now, every_stage),
        "cpu_usage": held.usage.cpus,
        "memory_usage": held.usage.memory_bytes / limit if limit else 0.0,
        "disk_utilization": held.disk_bytes or 0,
    }
    if run.claim is not None:
        document["claim"] = run.claim
    return document


def _times(run: Run, now: float, every_stage: bool) -> dict[str, Any]:
    times: dict[str, Any] = {}
    if every_stage:
        never = {"start": 0.0, "end": 0.0, "elapsed": 0.0}
        # It knows no time of giving back.
        stages = [stage for stage in REPORTED_STATES if stage is not Stage.RESTAGED]
        times = {f"RUN_STAGE.{stage}": never for stage in stages}
    for name, (start, end) in run.times.items():
        elapsed = (end if end is not None else now) - start
        times[f"RUN_STAGE.{name}"] = {"start": start, "end": end, "elapsed": elapsed}
    return times


def _status(run: Run) -> str:
    match run.stage:
        case Stage.PREPARING:
            return "Preparing"
        case Stage.RUNNING:
            return "Stopping" if run.stopping else "Running"
        case Stage.CLEANING_UP:
            return "Cleaning up"
        case Stage.UPLOADING_RESULTS:
            return "Uploading results"
        case Stage.FINALIZING:
            return "Finalizing"
        case _:
            return ""
