"""What is wrong with a configuration: what the options alone tell, and what AWS says of what they
name. Reads only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from backends.aws_batch import fargate
from backends.aws_batch.connection import Connection
from backends.aws_batch.errors import code_of
from backends.aws_batch.job_queue import Platform, Queue, read_queue
from backends.aws_batch.options import AwsSettings
from backends.base import BackendError, Finding, Invalid, Unauthorized, Unreachable

_ECR_PATTERN = re.compile(
    r"(?P<registry>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/"
    r"(?P<name>[^@:]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>.+))?"
)
_NO_SUCH = frozenset(
    {
        "NoSuchEntity",
        "ResourceNotFoundException",
        "RepositoryNotFoundException",
        "ImageNotFoundException",
    }
)
_GONE = frozenset({"INVALID", "DELETING", "DELETED"})
"""What a queue or a compute environment does not come back from by itself."""
_TASKS = "ecs-tasks.amazonaws.com"
"""Who must be allowed to take a role on: a trust policy names it."""


def supposed_queue(settings: AwsSettings) -> Queue:
    """The queue as far as the options tell, before AWS was asked."""
    platform = Platform.FARGATE if settings.platform == "fargate" else Platform.EC2
    region = settings.region or "REGION"
    arn = f"arn:aws:batch:{region}:ACCOUNT:job-queue/{settings.job_queue}"
    if settings.job_queue.startswith("arn:"):
        arn = settings.job_queue
    return Queue(arn, platform, preemptible=False, fair_share=bool(settings.share_identifier))


def refusals(settings: AwsSettings, queue: Queue, has_secrets: bool) -> list[Finding]:
    """What no launch can come of: AWS would say so, but later, and not which option it is."""
    findings: list[Finding] = []

    def add(subject: str, sentence: str, remedy: str) -> None:
        findings.append(Finding(subject, sentence, Invalid(f"{sentence}: {remedy}"), remedy))

    if queue.platform is Platform.FARGATE:
        if settings.gpus:
            add("--gpus", f"--gpus {settings.gpus}, and Fargate has none", "give an EC2 queue")
        cpus, memory_mb = settings.cpus, settings.memory_mb
        if not fargate.is_pair(cpus, memory_mb):
            pair = fargate.next_pair(cpus, memory_mb)
            add(
                "--memory-mb",
                f"Fargate has no containers of --cpus {cpus} and --memory-mb {memory_mb}",
                f"the next are --cpus {pair[0]} --memory-mb {pair[1]}"
                if pair
                else "there is none so large: give an EC2 queue",
            )
    if not settings.execution_role and (has_secrets or queue.platform is Platform.FARGATE):
        add(
            "--execution-role",
            "there is no --execution-role, which gives workers their credentials",
            "give the ARN of a role that may read them (ssm:GetParameters)",
        )
    if queue.fair_share and not settings.share_identifier:
        add(
            "--share-identifier",
            f"--job-queue {settings.job_queue} shares fairly, and nobody's share is named",
            "give a --share-identifier",
        )
    if settings.share_identifier and not queue.fair_share:
        add(
            "--share-identifier",
            f"--job-queue {settings.job_queue} has no scheduling policy to share by",
            "leave --share-identifier out",
        )
    return findings


def check(connection: Connection, settings: AwsSettings) -> list[Finding]:
    """A finding for each thing that a launch needs. Never raises."""
    findings: list[Finding] = []
    try:
        region = connection.region_of("batch")
    except BackendError as error:
        return [_found_out(error, "--region", "look at --profile and at ~/.aws/config")]
    try:
        queue = _check_queue(connection, settings, findings)
    except BackendError as error:
        subject = "--job-queue" if isinstance(error, Invalid) else "credentials"
        remedy = "--region and --profile say where it is looked for"
        if isinstance(error, Unauthorized):
            remedy = "allow these credentials what docs/backends/aws-batch.md lists, or give others"
        elif not isinstance(error, Invalid):
            subject = "--region"
            remedy = "look at the network, at --endpoint and at the name of the region"
            if isinstance(error, Unreachable) and not connection.knows_region("batch"):
                error = Invalid(f"--region {region} is none that boto3 knows AWS Batch in: {error}")
                remedy = "give another one, or update boto3 if the region is new"
        return [_found_out(error, subject, remedy)]
    findings.insert(0, Finding("--region", f"AWS Batch answers in {region}"))
    findings += refusals(settings, queue, has_secrets=True)
    for look in (_check_roles, _check_image, _check_secret, _check_log_group):
        findings += look(connection, settings)
    return findings


def _check_queue(connection: Connection, settings: AwsSettings, findings: list[Finding]) -> Queue:
    """Adds what is found. Raises BackendError when there is no queue to look at."""
    name = settings.job_queue
    detail = describe_queue(connection, name)
    environments = describe_environments(connection, name, detail)
    queue = read_queue(detail, environments, settings.platform)
    state, status = detail.get("state"), detail.get("status")
    if state == "DISABLED" or status in _GONE:
        reason = detail.get("statusReason")
        sentence = f"--job-queue {name} is {state} and {status}" + (f": {reason}" if reason else "")
        remedy = f"aws batch update-job-queue --job-queue {name} --state ENABLED"
        findings.append(Finding("--job-queue", sentence, Invalid(f"{sentence}: {remedy}"), remedy))
    else:
        findings.append(Finding("--job-queue", f"{name} takes jobs for {queue.platform.value}"))
    for environment in environments:
        findings.append(_environment(environment, settings))
    return queue


def describe_queue(connection: Connection, name: str) -> dict[str, Any]:
    """The queue of --job-queue. Raises BackendError; Invalid when there is none."""
    answer = connection.ask(
        "batch", "describe_job_queues", f"looking at --job-queue {name}", jobQueues=[name]
    )
    if not answer["jobQueues"]:
        raise Invalid(
            f"--job-queue {name!r} does not exist in the region {connection.region_of('batch')}: "
            "`aws batch describe-job-queues` lists those that do"
        )
    queue: dict[str, Any] = answer["jobQueues"][0]
    return queue


def describe_environments(
    connection: Connection, name: str, queue: dict[str, Any]
) -> list[dict[str, Any]]:
    """The compute environments of a queue."""
    names = [order["computeEnvironment"] for order in queue["computeEnvironmentOrder"]]
    if not names:
        return []
    answer = connection.ask(
        "batch",
        "describe_compute_environments",
        f"looking at the compute environments of --job-queue {name}",
        computeEnvironments=names,
    )
    environments: list[dict[str, Any]] = answer["computeEnvironments"]
    return environments


def _environment(environment: dict[str, Any], settings: AwsSettings) -> Finding:
    name = environment["computeEnvironmentName"]
    subject = f"compute environment {name}"
    state, status = environment.get("state"), environment.get("status")
    resources = environment.get("computeResources") or {}
    largest = resources.get("maxvCpus")
    if state == "DISABLED" or status in _GONE:
        reason = environment.get("statusReason")
        sentence = f"{name} is {state} and {status}" + (f": {reason}" if reason else "")
        remedy = "enable it, or make what it complains about good"
    elif largest is not None and largest < settings.cpus:
        sentence = f"{name} has {largest} vCPUs at most, and --cpus is {settings.cpus}"
        remedy = "lower --cpus, or raise its maxvCpus"
    else:
        return Finding(subject, f"{name} takes jobs, with up to {largest} vCPUs")
    return Finding(subject, sentence, Invalid(f"{sentence}: {remedy}"), remedy)


def _check_roles(connection: Connection, settings: AwsSettings) -> Iterator[Finding]:
    roles = (("--execution-role", settings.execution_role), ("--job-role", settings.job_role))
    for option, arn in roles:
        if arn is None:
            continue
        name = arn.rpartition("/")[2]

        def ask(name: str = name, option: str = option) -> dict[str, Any]:
            return connection.ask("iam", "get_role", f"looking at {option}", RoleName=name)

        def judge(answer: dict[str, Any], arn: str = arn) -> str:
            policy = answer["Role"].get("AssumeRolePolicyDocument") or {}
            text = unquote(policy) if isinstance(policy, str) else str(policy)
            return "" if _TASKS in text else f"{arn} does not trust {_TASKS}"

        yield _look(
            option, arn, ask, judge, f"give a role whose trust policy lets {_TASKS} take it on"
        )


def _check_image(connection: Connection, settings: AwsSettings) -> Iterator[Finding]:
    image = settings.image
    match = _ECR_PATTERN.fullmatch(image)
    if match is None or match["region"] != connection.region_of("batch"):
        sentence = f"{image} is not looked up: only images of ECR in this region can be"
        yield Finding("--image", sentence)
        return
    ask = {"imageDigest": match["digest"]} if match["digest"] else {"imageTag": match["tag"]}
    if not match["digest"] and not match["tag"]:
        ask = {"imageTag": "latest"}
    yield _look(
        "--image",
        image,
        lambda: connection.ask(
            "ecr",
            "describe_images",
            "looking at --image",
            registryId=match["registry"],
            repositoryName=match["name"],
            imageIds=[ask],
        ),
        lambda answer: "",
        "push it, or give one that is there: `aws ecr describe-images` lists them",
    )


def _check_secret(connection: Connection, settings: AwsSettings) -> Iterator[Finding]:
    if settings.secret is not None:
        yield _look(
            "--secret",
            settings.secret,
            lambda: connection.ask(
                "secretsmanager",
                "describe_secret",
                "looking at --secret",
                SecretId=settings.secret,
            ),
            lambda answer: f"{settings.secret} is to be deleted" if "DeletedDate" in answer else "",
            "give the ARN of a secret that is there",
        )


def _check_log_group(connection: Connection, settings: AwsSettings) -> Iterator[Finding]:
    group = settings.log_group
    if group is not None:
        yield _look(
            "--log-group",
            group,
            lambda: connection.ask(
                "logs",
                "describe_log_groups",
                "looking at --log-group",
                logGroupNamePrefix=group,
            ),
            lambda answer: (
                ""
                if any(found["logGroupName"] == group for found in answer["logGroups"])
                else f"there is no log group {group}"
            ),
            f"aws logs create-log-group --log-group-name {group}",
        )


def _look(
    subject: str,
    value: str,
    ask: Callable[[], dict[str, Any]],
    judge: Callable[[dict[str, Any]], str],
    remedy: str,
) -> Finding:
    """What AWS says of one thing. ``judge`` says what is wrong with an answer, "" for nothing.

    Who may launch need not be allowed to look at everything: not being told is no fault.
    """
    try:
        fault = judge(ask())
    except Unauthorized as error:
        return Finding(subject, f"{value} could not be looked at, which is no fault: {error}")
    except BackendError as error:
        if code_of(error.__cause__) in _NO_SUCH:
            fault = f"{value} does not exist"
        else:
            return _found_out(error, subject, remedy)
    if fault:
        return Finding(subject, fault, Invalid(f"{subject}: {fault}: {remedy}"), remedy)
    return Finding(subject, f"{value} is there")


def _found_out(error: BackendError, subject: str, remedy: str) -> Finding:
    return Finding(subject, str(error), error, remedy)
