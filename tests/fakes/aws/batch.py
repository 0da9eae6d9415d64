"""AWS Batch in memory, with the quirks that it documents. Answers calls; ``runner`` runs the jobs.

    default status RUNNING, one filter at a time, pages of 1,000 (100 with a filter), newest first
    100 ids a DescribeJobs; children of arrays in no list of a queue; parents PENDING meanwhile
    job names, sizes and payloads as they may be; shares on fair-share queues alone; Fargate's pairs
    retries by evaluateOnExit, time-outs, lost machines, seven days' memory; a clock of its own

Sources: botocore's model of Batch (shapes ListJobsRequest, SubmitJobRequest, ResourceRequirement,
EvaluateOnExit, JobDetail), the AWS Batch User Guide.
"""

from __future__ import annotations

import fnmatch
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from botocore import xform_name

REGION, ACCOUNT = "us-east-1", "123456789012"
OVER = ("SUCCEEDED", "FAILED")
WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
RETENTION_SECONDS = 7 * 24 * 3600.0
PAYLOAD_BYTES = 30 * 1024
FARGATE_PAIRS = {
    "0.25": {512, 1024, 2048},
    "0.5": set(range(1024, 4097, 1024)),
    "1": set(range(2048, 8193, 1024)),
    "2": set(range(4096, 16385, 1024)),
    "4": set(range(8192, 30721, 1024)),
    "8": set(range(16384, 61441, 4096)),
    "16": set(range(32768, 122881, 8192)),
    "32": {61440, 122880, 249856},
}


class Refused(Exception):
    """What the service says instead of an answer."""

    def __init__(self, message: str, code: str = "ClientException", status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass
class FakeJob:
    """A job, an array of them (``size``), or one of its children (``index``)."""

    id: str
    asked: dict[str, Any]
    definition: dict[str, Any]
    created: float
    queue: str
    size: int | None = None
    index: int | None = None
    parent: FakeJob | None = None
    children: list[FakeJob] = field(default_factory=list)
    status: str = "SUBMITTED"
    reason: str | None = None
    container_reason: str | None = None
    started: float | None = None
    stopped: float | None = None
    exit_code: int | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    ending: str | None = None
    ended_by: str | None = None
    stream: str | None = None

    @property
    def name(self) -> str:
        return str(self.asked["jobName"])

    @property
    def container(self) -> dict[str, Any]:
        return dict(self.definition["containerProperties"])

    @property
    def command(self) -> list[str]:
        overrides = self.asked.get("containerOverrides", {})
        return list(overrides.get("command") or self.container.get("command") or [])


class Runner:
    """What a job does when it runs; this one leaves everything to the test."""

    def start(self, job: FakeJob) -> None: ...

    def end(self, job: FakeJob, *, by_force: bool) -> bool:
        """Whether the end will be told later, by ``Batch.exited``."""
        return False


class Batch:
    """``call`` is the service. The rest is what a test does to it, under the same lock."""

    def __init__(self, clock: Callable[[], float], runner: Runner | None = None) -> None:
        self.clock = clock
        self.runner = runner or Runner()
        self.lock = threading.RLock()
        self.queues: dict[str, dict[str, Any]] = {}
        self.environments: dict[str, dict[str, Any]] = {}
        self.definitions: list[dict[str, Any]] = []
        self.jobs: dict[str, FakeJob] = {}
        self.held = False
        """Machines are not there: jobs stay RUNNABLE, for ``waiting_reason`` if there is one."""
        self.unspread = False
        """Arrays stay SUBMITTED, without children."""
        self.waiting_reason: str | None = None
        self.capacity = 32
        self.largest_page = 1000
        self.hidden: set[str] = set()
        """Ids that no answer mentions, though the jobs are there."""
        self.lag_seconds = 0.0
        """So long a job is missing from every answer but that to its own submission."""

    # What a test sets up

    def add_queue(self, name: str = "workers", kind: str = "FARGATE", **more: Any) -> str:
        """A queue on a compute environment of a type (EC2, SPOT, FARGATE, …); its ARN."""
        environment = f"{name}-environment"
        self.environments[environment] = {
            "computeEnvironmentName": environment,
            "computeEnvironmentArn": self._arn(f"compute-environment/{environment}"),
            "ecsClusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{environment}",
            "type": "MANAGED",
            "state": "ENABLED",
            "status": "VALID",
            "computeResources": {"type": kind, "maxvCpus": 256, "subnets": []},
        }
        self.queues[name] = {
            "jobQueueName": name,
            "jobQueueArn": self._arn(f"job-queue/{name}"),
            "state": "ENABLED",
            "status": "VALID",
            "priority": 1,
            "computeEnvironmentOrder": [
                {"order": 1, "computeEnvironment": self._arn(f"compute-environment/{environment}")}
            ],
            **more,
        }
        return str(self.queues[name]["jobQueueArn"])

    # What happens to jobs

    def tick(self) -> None:
        """What the service does by itself: spreads arrays, starts jobs, ends those out of time."""
        with self.lock:
            now = self.clock()
            for job in list(self.jobs.values()):
                if job.stopped is not None and now - job.stopped > RETENTION_SECONDS:
                    del self.jobs[job.id]
                elif job.size and job.status == "SUBMITTED" and not self.unspread:
                    self._spread(job)
            running = sum(job.status in ("STARTING", "RUNNING") for job in self.jobs.values())
            for job in list(self.jobs.values()):
                if job.size:
                    continue
                if job.status in ("SUBMITTED", "PENDING"):
                    job.status = "RUNNABLE"
                if job.status == "RUNNABLE" and not self.held and running < self.capacity:
                    running += 1
                    self.start(job.id)
                limit = (job.asked.get("timeout") or {}).get("attemptDurationSeconds")
                if job.status == "RUNNING" and limit and now - (job.started or now) > limit:
                    self._end(job, "Job attempt duration exceeded timeout")

    def start(self, job_id: str) -> None:
        with self.lock:
            job = self.jobs[job_id]
            job.status, job.started = "RUNNING", self.clock()
            job.reason = job.exit_code = job.container_reason = None
            job.stream = f"{job.definition['jobDefinitionName']}/default/{uuid.uuid4().hex}"
            self.runner.start(job)

    def exited(self, job_id: str, exit_code: int | None, reason: str = "") -> None:
        """A job's container is gone. ``reason``: what took it, other than itself."""
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None or job.status in OVER:
                return
            job.exit_code = exit_code
            job.reason = job.ending or reason or "Essential container in task exited"
            job.attempts.append(
                {
                    "container": {"logStreamName": job.stream}
                    | ({} if exit_code is None else {"exitCode": exit_code}),
                    "startedAt": _milliseconds(job.started or job.created),
                    "stoppedAt": _milliseconds(self.clock()),
                    "statusReason": job.reason,
                }
            )
            if exit_code == 0 and job.ending is None:
                self._over(job, "SUCCEEDED")
            elif job.ending is None and self._is_tried_again(job):
                job.status = "RUNNABLE"
            else:
                self._over(job, "FAILED")

    def fail_to_start(self, job_id: str, container_reason: str) -> None:
        with self.lock:
            job = self.jobs[job_id]
            job.container_reason, job.reason = container_reason, "Task failed to start"
            self._over(job, "FAILED")

    def reclaim(self, job_id: str) -> None:
        """The machine goes, with the container."""
        with self.lock:
            job = self.jobs[job_id]
            told_later = self.runner.end(job, by_force=True)
            self.exited(job_id, None, "Host EC2 (instance i-0a1b2c3d4e5f67890) terminated.")
            assert job.status != "RUNNING" or told_later

    def terminate(self, job_id: str, reason: str, flag: str = "terminated") -> None:
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None or job.status in OVER:
                return
            for one in job.children or [job]:
                if one.status not in OVER:
                    one.ended_by = flag
                    self._end(one, reason)
            if job.size and job.status == "SUBMITTED":
                job.reason = reason
                self._over(job, "FAILED")

    def _end(self, job: FakeJob, reason: str) -> None:
        job.ending = job.ending or reason
        if job.status != "RUNNING":
            job.reason = job.ending
            self._over(job, "FAILED")
        elif not self.runner.end(job, by_force=False):
            self.exited(job.id, 137)

    def _spread(self, job: FakeJob) -> None:
        job.status = "PENDING"
        for index in range(job.size or 0):
            child = FakeJob(
                f"{job.id}:{index}",
                job.asked,
                job.definition,
                self.clock(),
                job.queue,
                index=index,
                parent=job,
                status="RUNNABLE",
            )
            job.children.append(child)
            self.jobs[child.id] = child

    def _over(self, job: FakeJob, status: str) -> None:
        job.status, job.stopped = status, self.clock()
        parent = job.parent
        if parent is not None and all(child.status in OVER for child in parent.children):
            failed = any(child.status == "FAILED" for child in parent.children)
            parent.reason = "Array Child Job failed" if failed else None
            parent.started = min((c.started for c in parent.children if c.started), default=None)
            self._over(parent, "FAILED" if failed else "SUCCEEDED")

    def _is_tried_again(self, job: FakeJob) -> bool:
        strategy = job.asked.get("retryStrategy") or job.definition.get("retryStrategy") or {}
        if len(job.attempts) >= strategy.get("attempts", 1):
            return False
        for rule in strategy.get("evaluateOnExit", []):
            if (
                _globs(rule.get("onStatusReason"), job.reason or "")
                and _globs(rule.get("onReason"), job.container_reason or "")
                and _globs(rule.get("onExitCode"), str(job.exit_code or ""))
            ):
                return bool(rule["action"].upper() == "RETRY")
        return True

    # Calls

    def knows(self, operation: str) -> bool:
        return hasattr(self, f"_on_{xform_name(operation)}")

    def call(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer, or Refused."""
        self.tick()
        with self.lock:
            answer: dict[str, Any] = getattr(self, f"_on_{xform_name(operation)}")(asked)
        self.tick()
        return answer

    def _on_describe_job_queues(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = asked.get("jobQueues")
        return {
            "jobQueues": [
                queue
                for queue in self.queues.values()
                if not wanted or queue["jobQueueName"] in wanted or queue["jobQueueArn"] in wanted
            ]
        }

    def _on_describe_compute_environments(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = asked.get("computeEnvironments")
        return {
            "computeEnvironments": [
                environment
                for environment in self.environments.values()
                if not wanted
                or environment["computeEnvironmentName"] in wanted
                or environment["computeEnvironmentArn"] in wanted
            ]
        }

    def _on_register_job_definition(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["jobDefinitionName"]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name):
            raise Refused(f"Error executing request, Exception : {name} is not a name.")
        container = asked["containerProperties"]
        fargate = asked.get("platformCapabilities") == ["FARGATE"]
        if fargate:
            for member in ("volumes", "privileged", "ulimits"):
                if any("host" in v for v in container.get(member, [])):
                    raise Refused(f"Fargate jobs cannot have {member} of their host.")
            if "executionRoleArn" not in container:
                raise Refused("Fargate jobs must have an executionRoleArn.")
        if container.get("secrets") and "executionRoleArn" not in container:
            raise Refused("Jobs with secrets must have an executionRoleArn.")
        _must_fit(container["resourceRequirements"], fargate)
        revision = 1 + max(
            (d["revision"] for d in self.definitions if d["jobDefinitionName"] == name), default=0
        )
        arn = self._arn(f"job-definition/{name}:{revision}")
        detail = {**asked, "revision": revision, "jobDefinitionArn": arn, "status": "ACTIVE"}
        self.definitions.append(detail)
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, "revision": revision}

    def _on_describe_job_definitions(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [
            definition
            for definition in self.definitions
            if asked.get("status", definition["status"]) == definition["status"]
            and asked.get("jobDefinitionName", definition["jobDefinitionName"])
            == definition["jobDefinitionName"]
        ]
        return self._page(found, asked, "jobDefinitions", 100)

    def _on_deregister_job_definition(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._definition(asked["jobDefinition"])["status"] = "INACTIVE"
        return {}

    def _on_submit_job(self, asked: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(asked).encode()) > PAYLOAD_BYTES:
            raise Refused("Error executing request, Exception : the payload is too large.")
        name = asked["jobName"]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", name):
            raise Refused(f"Job name should match valid pattern: {name}")
        queue = self._queue(asked["jobQueue"])
        if queue["state"] != "ENABLED":
            raise Refused(f"Job Queue {queue['jobQueueName']} is not in the ENABLED state.")
        if bool(queue.get("schedulingPolicyArn")) != bool(asked.get("shareIdentifier")):
            raise Refused("A share identifier goes with a scheduling policy, and only with one.")
        definition = self._definition(asked["jobDefinition"])
        overrides = asked.get("containerOverrides", {})
        if any(not word for word in overrides.get("command", [])):
            raise Refused("The command cannot contain an empty string.")
        for variable in overrides.get("environment", []):
            if variable["name"].startswith("AWS_BATCH"):
                raise Refused("Environment variables cannot start with AWS_BATCH.")
        fargate = definition.get("platformCapabilities") == ["FARGATE"]
        if "resourceRequirements" in overrides:
            _must_fit(overrides["resourceRequirements"], fargate)
        size = (asked.get("arrayProperties") or {}).get("size")
        if size is not None and not 2 <= size <= 10_000:
            raise Refused("Array size must be between 2 and 10000.")
        if (asked.get("timeout") or {}).get("attemptDurationSeconds", 60) < 60:
            raise Refused("The timeout must be 60 seconds or more.")
        job = FakeJob(
            str(uuid.uuid4()), asked, definition, self.clock(), queue["jobQueueArn"], size=size
        )
        self.jobs[job.id] = job
        return {"jobId": job.id, "jobName": name, "jobArn": self._arn(f"job/{job.id}")}

    def _on_list_jobs(self, asked: dict[str, Any]) -> dict[str, Any]:
        places = [asked.get(name) for name in ("jobQueue", "arrayJobId", "multiNodeJobId")]
        if sum(place is not None for place in places) != 1:
            raise Refused("Exactly one of jobQueue, arrayJobId and multiNodeJobId is wanted.")
        filters = asked.get("filters") or []
        if len(filters) > 1:
            raise Refused("Only one filter can be used at a time.")
        if places[0] is not None:
            arn = self._queue(places[0])["jobQueueArn"]
            found = [job for job in self.jobs.values() if job.queue == arn and job.parent is None]
        else:
            parent = self.jobs.get(str(places[1]))
            found = list(parent.children) if parent else []
        visible = [job for job in found if self._is_visible(job)]
        if filters and places[0] is not None:
            chosen = [job for job in visible if self._passes(job, filters[0])]
            chosen.sort(key=lambda job: job.created, reverse=True)
            largest = 100
        else:
            status = asked.get("jobStatus", "RUNNING")
            chosen = [job for job in visible if job.status == status]
            largest = 1000
        page = self._page(chosen, asked, "jobSummaryList", min(largest, self.largest_page))
        page["jobSummaryList"] = [self._summary(job) for job in page["jobSummaryList"]]
        return page

    def _on_describe_jobs(self, asked: dict[str, Any]) -> dict[str, Any]:
        if len(asked["jobs"]) > 100:
            raise Refused(
                "Error executing request, Exception : Maximum number of jobs supported is  100 ., "
                f"RequestId: {uuid.uuid4()}"
            )
        found = (self.jobs.get(job_id) for job_id in asked["jobs"])
        return {"jobs": [self._detail(job) for job in found if job and self._is_visible(job)]}

    def _on_terminate_job(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.terminate(asked["jobId"], asked["reason"])
        return {}

    def _on_cancel_job(self, asked: dict[str, Any]) -> dict[str, Any]:
        job = self.jobs.get(asked["jobId"])
        if job is not None and job.status in WAITING:
            self.terminate(asked["jobId"], asked["reason"], "cancelled")
        return {}

    # What answers are made of

    def _page(
        self, found: list[Any], asked: dict[str, Any], member: str, largest: int
    ) -> dict[str, Any]:
        start = int(asked.get("nextToken") or 0)
        size = min(asked.get("maxResults") or largest, largest)
        page: dict[str, Any] = {member: found[start : start + size]}
        if start + size < len(found):
            page["nextToken"] = str(start + size)
        return page

    def _passes(self, job: FakeJob, wanted: dict[str, Any]) -> bool:
        for value in wanted["values"]:
            name, prefix = wanted["name"], value.removesuffix("*")
            if name == "JOB_NAME":
                mine = job.name.lower()
                if mine == value.lower() or (value[-1:] == "*" and mine.startswith(prefix.lower())):
                    return True
            elif name == "JOB_DEFINITION":
                definition = job.definition["jobDefinitionName"]
                arn = job.definition["jobDefinitionArn"]
                if value in (definition, arn) or (
                    value != prefix and definition.startswith(prefix)
                ):
                    return True
            elif name == "AFTER_CREATED_AT":
                return job.created * 1000 > int(value)
            elif name == "BEFORE_CREATED_AT":
                return job.created * 1000 < int(value)
            elif name == "SHARE_IDENTIFIER":
                return bool(job.asked.get("shareIdentifier") == value)
            else:
                raise Refused(f"There is no filter {name}.")
        return False

    def _summary(self, job: FakeJob) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "jobId": job.id,
            "jobArn": self._arn(f"job/{job.id}"),
            "jobName": job.name,
            "createdAt": _milliseconds(job.created),
            "status": job.status,
            "jobDefinition": job.definition["jobDefinitionArn"],
        }
        reason = job.reason
        if job.status == "RUNNABLE" and self.waiting_reason:
            reason = self.waiting_reason
        if reason:
            summary["statusReason"] = reason
        if job.started:
            summary["startedAt"] = _milliseconds(job.started)
        if job.stopped:
            summary["stoppedAt"] = _milliseconds(job.stopped)
        if job.size:
            counts: dict[str, int] = {}
            for child in job.children:
                counts[child.status] = counts.get(child.status, 0) + 1
            summary["arrayProperties"] = {"size": job.size, "statusSummary": counts}
        if job.index is not None:
            summary["arrayProperties"] = {"index": job.index}
        return summary

    def _detail(self, job: FakeJob) -> dict[str, Any]:
        container: dict[str, Any] = {
            name: job.container[name]
            for name in ("image", "volumes", "mountPoints", "user", "secrets", "logConfiguration")
            if name in job.container
        }
        container["command"] = job.command
        if job.exit_code is not None:
            container["exitCode"] = job.exit_code
        if job.container_reason:
            container["reason"] = job.container_reason
        if job.stream:
            container["logStreamName"] = job.stream
        return {
            **self._summary(job),
            "jobQueue": job.queue,
            "startedAt": _milliseconds(job.started or 0),
            "container": container,
            "attempts": job.attempts,
            "tags": {} if job.parent else job.asked.get("tags", {}),
            **({"isTerminated": True} if job.ended_by == "terminated" else {}),
            **({"isCancelled": True} if job.ended_by == "cancelled" else {}),
        }

    def _is_visible(self, job: FakeJob) -> bool:
        return job.id not in self.hidden and self.clock() - job.created >= self.lag_seconds

    def _queue(self, name: str) -> dict[str, Any]:
        for queue in self.queues.values():
            if name in (queue["jobQueueName"], queue["jobQueueArn"]):
                return queue
        raise Refused(f"JobQueue {name} not found.")

    def _definition(self, name: str) -> dict[str, Any]:
        for definition in sorted(self.definitions, key=lambda d: -d["revision"]):
            plain = definition["jobDefinitionName"]
            names = (plain, f"{plain}:{definition['revision']}", definition["jobDefinitionArn"])
            if name in names and definition["status"] == "ACTIVE":
                return definition
        raise Refused(f"JobDefinition {name} not found or not ACTIVE.")

    @staticmethod
    def _arn(place: str) -> str:
        return f"arn:aws:batch:{REGION}:{ACCOUNT}:{place}"


def _must_fit(requirements: list[dict[str, str]], fargate: bool) -> None:
    asked = {requirement["type"]: requirement["value"] for requirement in requirements}
    if int(asked.get("MEMORY", "0")) < 4:
        raise Refused("At least 4 MiB of memory are needed.")
    if fargate:
        if "GPU" in asked:
            raise Refused("GPU is not supported on Fargate.")
        if int(asked["MEMORY"]) not in FARGATE_PAIRS.get(asked["VCPU"], set()):
            raise Refused(
                "Error executing request, Exception : Fargate resource requirements "
                f"({asked['VCPU']} vCPU, {asked['MEMORY']} MiB) not valid."
            )


def _globs(pattern: str | None, text: str) -> bool:
    """Case does not count; only a star at the end does; what is not asked for always fits."""
    if pattern is None:
        return True
    return fnmatch.fnmatchcase(text.lower(), pattern.lower().replace("[", "[[]"))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
