"""The state behind the fake: jobs, tasks, secrets and log lines of one region.

With ``runs`` a task is a process of this machine, as Batch's agent would start its container; else
a test says when tasks start and end. Batch's quirks are here: the id's pattern, one task group,
request ids that make a repeated request the same, preemption as exit code 50001, lifecycle
policies, tasks that are not there before their job is scheduled, cancelling that takes a while.
Facts: the docstrings of google.cloud.batch_v1, and cloud.google.com/batch/docs.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.cloud.batch_v1 import types

from fakes.gcp.refusal import Refusal

_JOB_ID = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
_FILTER = re.compile(r'labels\.([a-z0-9_-]+)="([^"]*)"')
_STATE = types.JobStatus.State
_TASK = types.TaskStatus.State
OVER = (_STATE.SUCCEEDED, _STATE.FAILED, _STATE.CANCELLED)
TASK_OVER = (_TASK.SUCCEEDED, _TASK.FAILED, _TASK.UNEXECUTED)

PREEMPTED = 50001


@dataclass
class Execution:
    """One task of a job. ``retries``: how often it was started again."""

    message: types.Task
    process: subprocess.Popen[bytes] | None = None
    output: Path | None = None
    retries: int = 0
    lines: list[str] = field(default_factory=list)


@dataclass
class Held:
    """A job as the service keeps it."""

    message: types.Job
    request_id: str
    tasks: list[Execution] = field(default_factory=list)


class Cloud:
    """For several threads. ``directory``: where tasks run, ``machines`` at once; None: tests move
    them themselves."""

    def __init__(self, directory: Path | None = None, *, machines: int = 20) -> None:
        self.directory = directory
        self.machines = machines
        self.jobs: dict[str, Held] = {}
        self.secrets: dict[str, list[bytes | None]] = {}
        self.is_held = False
        self.has_machines = True
        self.has_quota = True
        self.page_limit = 1000
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._is_closing = False
        self._reapers: list[threading.Thread] = []

    def close(self) -> None:
        with self._lock:
            self._is_closing = True
            executions = [task for held in self.jobs.values() for task in held.tasks]
        for execution in executions:
            _kill(execution, signal.SIGKILL)
        for thread in list(self._reapers):
            thread.join(30)

    # Jobs

    def create_job(self, request: types.CreateJobRequest) -> types.Job:
        with self._lock:
            name = f"{request.parent}/jobs/{request.job_id}"
            self._check_job(request)
            known = self.jobs.get(name)
            if known is not None:
                if request.request_id and known.request_id == request.request_id:
                    return known.message
                raise Refusal("ALREADY_EXISTS", f"Resource '{name}' already exists")
            if not self.has_quota:
                raise Refusal(
                    "RESOURCE_EXHAUSTED",
                    "Quota limit 'JobsPerProject' has been exceeded",
                    reason="RESOURCE_QUOTA_EXCEEDED",
                )
            message = types.Job(request.job)
            message.name, message.uid = name, f"j-{uuid.uuid4()}"
            message.create_time = message.update_time = _now()
            message.status.state = _STATE.QUEUED
            group = message.task_groups[0]
            group.name = f"{name}/taskGroups/group0"
            group.task_count = group.task_count or 1
            held = self.jobs[name] = Held(message, request.request_id)
            if self.has_machines and not self.is_held:
                self._schedule(held)
            elif not self.has_machines:
                self._say(
                    held,
                    "VM in Managed Instance Group meets error: Batch Error: code - "
                    "CODE_GCE_ZONE_RESOURCE_POOL_EXHAUSTED, description - error count is 1, "
                    "latest message example: Instance 'x' creation failed: The zone does not have "
                    "enough resources available to fulfill the request.",
                )
            return held.message

    def _check_job(self, request: types.CreateJobRequest) -> None:
        job = request.job
        if len(request.job_id) > 63 or not _JOB_ID.fullmatch(request.job_id):
            raise Refusal("INVALID_ARGUMENT", f"job_id {request.job_id!r} is not valid")
        if len(job.task_groups) != 1:
            raise Refusal("INVALID_ARGUMENT", "exactly one task group is required")
        group = job.task_groups[0]
        if not 0 <= group.task_count <= 100_000 or not 0 <= group.parallelism <= 5000:
            raise Refusal("INVALID_ARGUMENT", "task_count or parallelism is out of range")
        if not group.task_spec.runnables or group.task_spec.max_retry_count > 10:
            raise Refusal("INVALID_ARGUMENT", "the task spec is not valid")
        for name, value in job.labels.items():
            if not _LABEL.fullmatch(name) or not _LABEL.fullmatch(value):
                raise Refusal("INVALID_ARGUMENT", f"the label {name}={value} is not valid")
        for path in group.task_spec.environment.secret_variables.values():
            if path.partition("/versions/")[0] not in self.secrets:
                raise Refusal("INVALID_ARGUMENT", f"the secret {path} does not exist")

    def get_job(self, name: str) -> types.Job:
        with self._lock:
            return self._held(name).message

    def _held(self, name: str) -> Held:
        held = self.jobs.get(name)
        if held is None:
            raise Refusal("NOT_FOUND", f"Resource '{name}' was not found")
        return held

    def list_jobs(self, request: types.ListJobsRequest) -> types.ListJobsResponse:
        with self._lock:
            wanted = _FILTER.findall(request.filter)
            found = [
                held.message
                for name, held in self.jobs.items()
                if name.startswith(f"{request.parent}/jobs/")
                and all(held.message.labels.get(label) == value for label, value in wanted)
            ]
            if request.order_by == "create_time desc":
                found.reverse()
            page, token = self._page(found, request.page_size, request.page_token)
            return types.ListJobsResponse(jobs=page, next_page_token=token)

    def list_tasks(self, request: types.ListTasksRequest) -> types.ListTasksResponse:
        with self._lock:
            held = self._held(request.parent.partition("/taskGroups/")[0])
            tasks = [execution.message for execution in held.tasks]
            page, token = self._page(tasks, request.page_size, request.page_token)
            return types.ListTasksResponse(tasks=page, next_page_token=token)

    def _page(self, found: list[Any], size: int, token: str) -> tuple[list[Any], str]:
        start = int(token) if token else 0
        end = start + min(size or 100, self.page_limit)
        return found[start:end], str(end) if end < len(found) else ""

    def cancel_job(self, name: str) -> None:
        with self._lock:
            held = self._held(name)
            state = held.message.status.state
            if state in OVER:
                raise Refusal("FAILED_PRECONDITION", f"the job is in state {state.name}")
            held.message.status.state = _STATE.CANCELLATION_IN_PROGRESS
            self._say(held, f"Job state is set from {state.name} to CANCELLATION_IN_PROGRESS.")
            for execution in held.tasks:
                _kill(execution, signal.SIGTERM)
            self._settle(held)

    def delete_job(self, name: str) -> None:
        with self._lock:
            held = self._held(name)
            for execution in held.tasks:
                _kill(execution, signal.SIGKILL)
            del self.jobs[name]

    # What happens to them

    def let_go(self) -> None:
        """Jobs that were held back go on."""
        with self._lock:
            self.is_held = False
            for held in self.jobs.values():
                if held.message.status.state is _STATE.QUEUED:
                    self._schedule(held)

    def _schedule(self, held: Held) -> None:
        group = held.message.task_groups[0]
        for index in range(group.task_count):
            task = types.Task(name=f"{group.name}/tasks/{index}")
            task.status.state = _TASK.PENDING
            held.tasks.append(Execution(task))
        self._move(held, _STATE.SCHEDULED)
        self._use_machines()

    def _use_machines(self) -> None:
        """Tasks start in order while there are machines for them."""
        if self.directory is None or self._is_closing:
            return
        running = sum(task.process is not None for h in self.jobs.values() for task in h.tasks)
        for name, held in self.jobs.items():
            if held.message.status.state not in (_STATE.SCHEDULED, _STATE.RUNNING):
                continue
            for index, execution in enumerate(held.tasks):
                if running >= self.machines:
                    return
                if execution.message.status.state is _TASK.PENDING:
                    self.start(name, index)
                    running += 1

    def start(self, name: str, index: int) -> None:
        """A machine is there, and a task starts on it."""
        with self._lock:
            held = self._held(name)
            execution = held.tasks[index]
            self._move_task(
                execution,
                _TASK.RUNNING,
                "Task state is updated from PENDING to RUNNING on zones/z/instances/i",
            )
            if held.message.status.state is not _STATE.RUNNING:
                self._move(held, _STATE.RUNNING)
            self._count(held)
            if self.directory is not None:
                self._spawn(held, execution, index)

    def _spawn(self, held: Held, execution: Execution, index: int) -> None:
        """What Batch's agent does with a container runnable, without a container."""
        assert self.directory is not None
        spec = held.message.task_groups[0].task_spec
        container = spec.runnables[0].container
        place = self.directory / held.message.uid / f"{index}-{execution.retries}"
        place.mkdir(parents=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(place),
            "BATCH_TASK_INDEX": str(index),
            "BATCH_TASK_COUNT": str(held.message.task_groups[0].task_count),
            "BATCH_JOB_UID": held.message.uid,
            **dict(spec.environment.variables),
        }
        for variable, path in spec.environment.secret_variables.items():
            environment[variable] = self.access_secret(path).decode()
        execution.output = place / "output"
        with execution.output.open("wb") as output:
            execution.process = subprocess.Popen(
                [container.entrypoint, *container.commands],
                env=environment,
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = execution.process
        reaper = threading.Thread(
            target=lambda: self._reap(held.message.name, index, process), daemon=True
        )
        self._reapers.append(reaper)
        reaper.start()

    def _reap(self, name: str, index: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            held = self.jobs.get(name)
            if held is not None and held.tasks[index].process is process:
                self.end(name, index, code if code >= 0 else 128 - code)

    def end(self, name: str, index: int, exit_code: int) -> None:
        """A task's program has ended, or its machine is gone (a reserved code)."""
        with self._lock:
            held = self._held(name)
            execution = held.tasks[index]
            execution.process = None
            state = _TASK.SUCCEEDED if exit_code == 0 else _TASK.FAILED
            words = f"Task state is updated from RUNNING to {state.name} on zones/z/instances/i"
            if exit_code == PREEMPTED:
                words += " due to Spot VM preemption"
            self._move_task(
                execution, state, f"{words} with exit code {exit_code}.", exit_code=exit_code
            )
            is_ending = held.message.status.state is not _STATE.RUNNING
            spec = held.message.task_groups[0].task_spec
            if (
                not is_ending
                and exit_code != 0
                and execution.retries < spec.max_retry_count
                and _is_retried(spec, exit_code)
            ):
                execution.retries += 1
                self._move_task(
                    execution, _TASK.PENDING, "Task state is updated from FAILED to PENDING"
                )
            self._settle(held)
            self._use_machines()

    def preempt(self, name: str, index: int) -> None:
        """A spot machine is taken back: what runs on it dies with it."""
        with self._lock:
            execution = self._held(name).tasks[index]
            process, execution.process = execution.process, None
            _kill_process(process, signal.SIGKILL)
            self.end(name, index, PREEMPTED)

    def _settle(self, held: Held) -> None:
        """The job's state, from those of its tasks."""
        self._count(held)
        states = [execution.message.status.state for execution in held.tasks]
        if held.message.status.state is _STATE.CANCELLATION_IN_PROGRESS:
            if not any(execution.process for execution in held.tasks):
                self._move(held, _STATE.CANCELLED)
        elif states and all(state in TASK_OVER for state in states):
            failed = any(state is not _TASK.SUCCEEDED for state in states)
            self._move(held, _STATE.FAILED if failed else _STATE.SUCCEEDED)

    def _move(self, held: Held, state: types.JobStatus.State) -> None:
        before = held.message.status.state
        held.message.status.state = state
        self._count(held)
        self._say(held, f"Job state is set from {before.name} to {state.name} for job.")

    def _say(self, held: Held, description: str) -> None:
        held.message.update_time = _now()
        held.message.status.status_events.append(
            types.StatusEvent(type_="STATUS_CHANGED", description=description, event_time=_now())
        )
        self._changed.notify_all()

    def _move_task(
        self,
        execution: Execution,
        state: types.TaskStatus.State,
        description: str,
        *,
        exit_code: int | None = None,
    ) -> None:
        event = types.StatusEvent(
            type_="STATUS_CHANGED", description=description, event_time=_now(), task_state=state
        )
        if exit_code is not None:
            event.task_execution = types.TaskExecution(exit_code=exit_code)
        execution.message.status.state = state
        execution.message.status.status_events.append(event)

    def _count(self, held: Held) -> None:
        counts: dict[str, int] = {}
        for execution in held.tasks:
            state = execution.message.status.state.name
            counts[state] = counts.get(state, 0) + 1
        group = types.JobStatus.TaskGroupStatus(counts=counts)
        held.message.status.task_groups = {"group0": group}
        held.message.update_time = _now()

    # Secrets

    def add_secret(self, name: str) -> None:
        with self._lock:
            self.secrets[name] = []

    def add_secret_version(self, name: str, data: bytes) -> str:
        with self._lock:
            versions = self._versions(name)
            versions.append(data)
            return f"{name}/versions/{len(versions)}"

    def destroy_secret_version(self, path: str) -> None:
        with self._lock:
            name, _, number = path.partition("/versions/")
            versions = self._versions(name)
            if int(number) > len(versions):
                raise Refusal("NOT_FOUND", f"Secret Version [{path}] not found.")
            if versions[int(number) - 1] is None:
                raise Refusal("FAILED_PRECONDITION", f"Secret Version [{path}] is destroyed.")
            versions[int(number) - 1] = None

    def access_secret(self, path: str) -> bytes:
        with self._lock:
            name, _, version = path.partition("/versions/")
            versions = self._versions(name)
            number = len(versions) if version == "latest" else int(version)
            data = versions[number - 1] if 0 < number <= len(versions) else None
            if data is None:
                raise Refusal("FAILED_PRECONDITION", f"Secret Version [{path}] is destroyed.")
            return data

    def has_secret(self, name: str) -> None:
        with self._lock:
            self._versions(name)

    def _versions(self, name: str) -> list[bytes | None]:
        versions = self.secrets.get(name)
        if versions is None:
            raise Refusal("NOT_FOUND", f"Secret [{name}] not found.")
        return versions

    # Logs

    def log_lines(self, job_uid: str, task_id_part: str) -> list[tuple[str, str]]:
        """(task id, line) of all tasks whose id has ``task_id_part`` in it, oldest first."""
        with self._lock:
            lines: list[tuple[str, str]] = []
            for held in self.jobs.values():
                if held.message.uid != job_uid:
                    continue
                for index, execution in enumerate(held.tasks):
                    task_id = f"task/{job_uid}-group0-{index}/{execution.retries}/0"
                    if task_id_part in task_id:
                        lines += [(task_id, line) for line in _lines(execution)]
            return lines

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "it never came about"


def _lines(execution: Execution) -> list[str]:
    if execution.output is None:
        return list(execution.lines)
    with suppress(OSError):
        return execution.output.read_text(errors="replace").splitlines()
    return []


def _is_retried(spec: types.TaskSpec, exit_code: int) -> bool:
    """LifecyclePolicy's docstring: RETRY_TASK retries its codes alone, FAIL_TASK all but its own;
    without a policy everything is retried."""
    for policy in spec.lifecycle_policies:
        matches = exit_code in policy.action_condition.exit_codes
        is_retry = policy.action is types.LifecyclePolicy.Action.RETRY_TASK
        return matches if is_retry else not matches
    return True


def _kill(execution: Execution, number: int) -> None:
    _kill_process(execution.process, number)


def _kill_process(process: subprocess.Popen[bytes] | None, number: int) -> None:
    if process is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
