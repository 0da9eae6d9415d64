"""A Batch account: pools of nodes with slots, jobs, tasks, and who runs where. No HTTP here.

Tasks run as processes of this machine where the account is given a place for them; else the test
says when one starts and ends. What the service forbids is refused here with its own codes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

NODE_IDENTITY_TOKEN = "node-identity"
"""What a node of a pool with an identity shows to Blob Storage."""
PROCESS_SECONDS = 30.0


class Refused(Exception):
    """The service's answer to what it does not do."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message or f"The service says {code}."


@dataclass
class Node:
    id: str
    slots: int
    state: str = "idle"
    is_low_priority: bool = False
    tasks: list[str] = field(default_factory=list)


@dataclass
class Pool:
    id: str
    slots_per_node: int = 1
    nodes: list[Node] = field(default_factory=list)
    wanted: int | None = None
    state: str = "active"
    allocation_state: str = "steady"
    resize_errors: list[dict[str, str]] = field(default_factory=list)
    takes_containers: bool = True
    identities: tuple[str, ...] = ()


@dataclass
class Task:
    """``document``: as the service shows it. Times of the document are its strings."""

    document: dict[str, Any]
    node: Node | None = None
    process: subprocess.Popen[bytes] | None = None
    directory: Path | None = None
    run: int = 0
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Job:
    document: dict[str, Any]
    tasks: dict[str, Task] = field(default_factory=dict)
    """By id in lower case: ids are told apart without regard to case."""


class Account:
    """``directory``: where tasks run as processes; None: only when the test says so."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        active_jobs_quota: int = 100,
    ) -> None:
        self.lock = threading.RLock()
        self.pools: dict[str, Pool] = {}
        self.jobs: dict[str, Job] = {}
        self.now_offset = timedelta()
        self.held = False
        """No node takes a task."""
        self._directory = directory
        self._environment = dict(environment or {})
        self._quota = active_jobs_quota
        self._waiters: list[threading.Thread] = []
        self._changed = threading.Condition(self.lock)
        self._number = 0

    def now(self) -> str:
        return f"{datetime.now(UTC) + self.now_offset:%Y-%m-%dT%H:%M:%S.%f}Z"

    # Pools

    def add_pool(self, pool_id: str, nodes: int = 1, slots: int = 1, **more: Any) -> Pool:
        pool = Pool(pool_id, slots, **more)
        self.pools[pool_id] = pool
        self.add_nodes(pool_id, nodes)
        return pool

    def add_nodes(self, pool_id: str, number: int) -> None:
        with self.lock:
            pool = self.pools[pool_id]
            for _ in range(number):
                self._number += 1
                pool.nodes.append(Node(f"tvm-{self._number}", pool.slots_per_node))
            self._schedule()

    def preempt(self, node_id: str) -> None:
        """Take a node away: its tasks are queued again, as new as on their first day."""
        with self.lock:
            for pool in self.pools.values():
                for node in [n for n in pool.nodes if n.id == node_id]:
                    node.state = "preempted"
                    for task in self._tasks_of(node):
                        self._requeue(task)
            self._schedule()

    def _tasks_of(self, node: Node) -> list[Task]:
        return [
            task for job in self.jobs.values() for task in job.tasks.values() if task.node is node
        ]

    def _requeue(self, task: Task) -> None:
        _kill(task.process)
        task.run += 1
        task.process = None
        task.node = None
        task.files = {}
        task.document["executionInfo"].pop("startTime", None)
        self._move(task, "active")

    # Jobs

    def create_job(self, body: Mapping[str, Any]) -> None:
        with self.lock:
            job_id = body["id"]
            _check_id(job_id)
            if job_id in self.jobs:
                raise Refused(409, "JobExists", "The specified job already exists.")
            active = sum(job.document["state"] == "active" for job in self.jobs.values())
            if active >= self._quota:
                raise Refused(409, "ActiveJobAndScheduleQuotaReached")
            now = self.now()
            self.jobs[job_id] = Job(
                {
                    **body,
                    "eTag": "0x8DBCE0000000000",
                    "creationTime": now,
                    "lastModified": now,
                    "state": "active",
                    "stateTransitionTime": now,
                    "executionInfo": {"startTime": now, "poolId": body["poolInfo"]["poolId"]},
                }
            )

    def job(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise Refused(404, "JobNotFound", "The specified job does not exist.")
        return self.jobs[job_id]

    # Tasks

    def add_task(self, job_id: str, body: Mapping[str, Any]) -> Task:
        with self.lock:
            job = self.job(job_id)
            _check_id(body["id"])
            if job.document["state"] not in ("active", "enabling", "disabling", "disabled"):
                raise Refused(409, "JobCompleted", "The specified job is in a completed state.")
            if body["id"].lower() in job.tasks:
                raise Refused(409, "TaskExists", "The specified task already exists.")
            _check_task(body, self.pools.get(job.document["poolInfo"]["poolId"]))
            now = self.now()
            task = Task(
                {
                    "constraints": {"maxTaskRetryCount": 0},
                    "requiredSlots": 1,
                    **body,
                    "eTag": "0x8DBCE0000000001",
                    "creationTime": now,
                    "lastModified": now,
                    "state": "active",
                    "stateTransitionTime": now,
                    "executionInfo": {"retryCount": 0, "requeueCount": 0},
                }
            )
            job.tasks[body["id"].lower()] = task
            self._schedule()
            return task

    def task(self, job_id: str, task_id: str) -> Task:
        job = self.job(job_id)
        if task_id.lower() not in job.tasks:
            raise Refused(404, "TaskNotFound", "The specified task does not exist.")
        return job.tasks[task_id.lower()]

    def terminate_task(self, job_id: str, task_id: str) -> None:
        with self.lock:
            task = self.task(job_id, task_id)
            if task.document["state"] == "completed":
                raise Refused(409, "TaskCompleted", "The specified task is already completed.")
            process, task.process = task.process, None
            _kill(process)
            task.run += 1
            self._complete(
                task, 137 if process else None, "TaskEnded", "Task Was Ended by User Request"
            )

    def delete_task(self, job_id: str, task_id: str) -> None:
        with self.lock:
            task = self.task(job_id, task_id)
            _kill(task.process)
            task.run += 1
            self._free(task)
            del self.job(job_id).tasks[task_id.lower()]

    def file_of(self, job_id: str, task_id: str, name: str) -> bytes:
        with self.lock:
            task = self.task(job_id, task_id)
            if task.document["state"] == "active":
                raise Refused(409, "TaskFilesUnavailable")
            if task.node is None and task.directory is None and name not in task.files:
                raise Refused(404, "NodeNotFound", "The specified node does not exist.")
            path = task.directory / name if task.directory else None
            if path is not None and path.is_file():
                return path.read_bytes()
            if name not in task.files:
                raise Refused(404, "FileNotFound", "The specified file does not exist.")
            return task.files[name]

    # Running

    def start(self, job_id: str, task_id: str) -> None:
        """The test's word that a task runs, where no processes are run."""
        with self.lock:
            task = self.task(job_id, task_id)
            task.document["executionInfo"]["startTime"] = self.now()
            task.document["nodeInfo"] = _node_info("tvm-0")
            task.files.setdefault("stdout.txt", b"")
            task.files.setdefault("stderr.txt", b"")
            self._move(task, "running")

    def finish(self, job_id: str, task_id: str, exit_code: int = 0) -> None:
        with self.lock:
            self._finished(self.task(job_id, task_id), exit_code)

    def wait_for(self, condition: Callable[[], bool], seconds: float = PROCESS_SECONDS) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def _schedule(self) -> None:
        """Give free slots to tasks in the order they came; called under the lock."""
        if self._directory is None or self.held:
            return
        for job in self.jobs.values():
            pool = self.pools.get(job.document["poolInfo"]["poolId"])
            if pool is None or job.document["state"] != "active":
                continue
            for task in job.tasks.values():
                if task.document["state"] == "active":
                    node = self._free_node(pool, task.document["requiredSlots"])
                    if node is not None:
                        self._run(job, task, node)

    def release(self) -> None:
        with self.lock:
            self.held = False
            self._schedule()

    def _free_node(self, pool: Pool, slots: int) -> Node | None:
        for node in pool.nodes:
            taken = sum(task.document["requiredSlots"] for task in self._tasks_of(node))
            if node.state in ("idle", "running") and node.slots - taken >= slots:
                return node
        return None

    def _run(self, job: Job, task: Task, node: Node) -> None:
        task.node = node
        node.state = "running"
        task.document["executionInfo"]["startTime"] = self.now()
        task.document["nodeInfo"] = _node_info(node.id)
        self._move(task, "running")
        task.run += 1
        waiter = threading.Thread(target=self._run_process, args=(job, task, task.run))
        self._waiters.append(waiter)
        waiter.start()

    def _run_process(self, job: Job, task: Task, run: int) -> None:
        """Fetch the files, run the command line, and tell the end. A thread of its own."""
        assert self._directory is not None
        document = task.document
        place = self._directory / f"{job.document['id']}-{document['id']}-{run}"
        work = place / "wd"
        work.mkdir(parents=True)
        failure = None
        for file in document.get("resourceFiles", ()):
            failure = failure or _fetch(file, work)
        environment = {
            **self._environment,
            "AZ_BATCH_TASK_ID": document["id"],
            "AZ_BATCH_JOB_ID": job.document["id"],
            "AZ_BATCH_TASK_DIR": str(place),
            "AZ_BATCH_TASK_WORKING_DIR": str(work),
            **{one["name"]: one["value"] for one in document.get("environmentSettings", ())},
        }
        with self.lock:
            if task.run != run:
                return
            task.directory = place
            if failure:
                self._complete(task, None, failure, "A resource file could not be downloaded")
                return
            with (place / "stdout.txt").open("wb") as out, (place / "stderr.txt").open("wb") as err:
                task.process = process = subprocess.Popen(
                    shlex.split(document["commandLine"]),
                    cwd=work,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        code = process.wait()
        with self.lock:
            if task.run == run:
                task.process = None
                self._finished(task, code if code >= 0 else 128 - code)

    def _finished(self, task: Task, exit_code: int) -> None:
        if exit_code == 0:
            self._complete(task, 0)
        else:
            self._complete(task, exit_code, "FailureExitCode", "The task exited with an exit code")

    def _complete(
        self, task: Task, exit_code: int | None, code: str | None = None, message: str = ""
    ) -> None:
        execution = task.document["executionInfo"]
        execution["endTime"] = self.now()
        execution.setdefault("startTime", execution["endTime"])
        execution["result"] = "failure" if code else "success"
        if exit_code is not None:
            execution["exitCode"] = exit_code
        if code:
            execution["failureInfo"] = {
                "category": "usererror",
                "code": code,
                "message": message,
                "details": [],
            }
        self._move(task, "completed")
        self._free(task)
        self._schedule()

    def _free(self, task: Task) -> None:
        node, task.node = task.node, None
        if node is not None and not self._tasks_of(node) and node.state == "running":
            node.state = "idle"

    def _move(self, task: Task, state: str) -> None:
        document = task.document
        document["previousState"] = document["state"]
        document["previousStateTransitionTime"] = document["stateTransitionTime"]
        document["state"] = state
        document["stateTransitionTime"] = document["lastModified"] = self.now()
        self._changed.notify_all()

    def close(self) -> None:
        """End every process."""
        with self.lock:
            self._directory = None
            for job in self.jobs.values():
                for task in job.tasks.values():
                    task.run += 1
                    _kill(task.process)
        for waiter in self._waiters:
            waiter.join(PROCESS_SECONDS)
            assert not waiter.is_alive()


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """The worker is gone at once, with all of its session."""
    if process is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _fetch(file: Mapping[str, Any], work: Path) -> str | None:
    """Download a resource file as a node does; the code of the failure, if it fails."""
    request = urllib.request.Request(file["httpUrl"])
    if "identityReference" in file:
        request.add_header("Authorization", f"Bearer {NODE_IDENTITY_TOKEN}")
        request.add_header("x-ms-version", "2021-08-06")
    try:
        with urllib.request.urlopen(request, timeout=PROCESS_SECONDS) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        return "BlobNotFound" if error.code == 404 else "BlobAccessDenied"
    path = work / file["filePath"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=int(file.get("fileMode", "0770"), 8))
    path.write_bytes(content)
    return None


def _node_info(node_id: str) -> dict[str, str]:
    return {
        "affinityId": f"TVM:{node_id}",
        "nodeUrl": f"https://account.region.batch.azure.com/pools/pool/nodes/{node_id}",
        "poolId": "pool",
        "nodeId": node_id,
        "taskRootDirectory": "workitems/job/job-1/task",
        "taskRootDirectoryUrl": "https://account.region.batch.azure.com/pools/pool/files",
    }


def _check_id(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise Refused(400, "InvalidPropertyValue", f"The id {name} is invalid.")


_TASK_PROPERTIES = frozenset(
    [
        "id",
        "displayName",
        "commandLine",
        "containerSettings",
        "resourceFiles",
        "outputFiles",
        "environmentSettings",
        "constraints",
        "requiredSlots",
        "userIdentity",
        "exitConditions",
        "affinityInfo",
        "dependsOn",
        "multiInstanceSettings",
        "applicationPackageReferences",
    ]
)


def _check_task(body: Mapping[str, Any], pool: Pool | None) -> None:
    unknown = set(body) - _TASK_PROPERTIES
    if unknown:
        raise Refused(400, "InvalidRequestBody", f"Unknown properties {sorted(unknown)}")
    if not body.get("commandLine"):
        raise Refused(400, "MissingRequiredProperty", "commandLine")
    if len(body.get("displayName", "")) > 1024:
        raise Refused(400, "InvalidPropertyValue", "displayName")
    if pool is not None and pool.takes_containers != ("containerSettings" in body):
        raise Refused(400, "InvalidPropertyValue", "containerSettings")
    for file in body.get("resourceFiles", ()):
        if len({"httpUrl", "storageContainerUrl", "autoStorageContainerName"} & set(file)) != 1:
            raise Refused(400, "InvalidPropertyValue", "resourceFiles")
    size = len(json.dumps(body.get("resourceFiles", [])))
    if size > 32768:
        raise Refused(413, "RequestEntityTooLarge")
