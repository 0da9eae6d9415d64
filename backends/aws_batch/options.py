"""The options of AWS Batch, and what they come to: a value that the other modules read.

Named as cl-worker-manager names them where it has them. Asks nothing of anyone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from backends.addresses import check_url
from backends.base import Invalid
from backends.resources import resource_options

_IMAGE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@#-]{0,254}")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,61}")
"""Of a job definition: 128 characters, of which ours end in an owner and a pool."""
_ROLE_PATTERN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,576}")
_SECRET_PATTERN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+")
_SHARE_PATTERN = re.compile(r"[A-Za-z0-9]{1,255}\*?")

LEAST_TIMEOUT_SECONDS = 60
"""What Batch takes (botocore: JobTimeout)."""
LEAST_MEMORY_MB = 4
"""What Batch takes (botocore: ResourceRequirement)."""


def options() -> list[click.Option]:
    return [
        click.Option(["--region"], help="Of AWS.  [default: as boto3 finds it, else us-east-1]"),
        click.Option(["--profile"], help="Of the AWS configuration files."),
        click.Option(
            ["--endpoint"],
            metavar="URL",
            help="Where AWS is, for every service without an AWS_ENDPOINT_URL_… of its own.",
        ),
        click.Option(
            ["--job-queue"],
            default="codalab-batch-cpu",
            show_default=True,
            metavar="NAME|ARN",
            help="Where workers are submitted.",
        ),
        click.Option(
            ["--job-definition-name"],
            default="codalab-worker",
            show_default=True,
            metavar="NAME",
            help="What the names of our job definitions begin with.",
        ),
        click.Option(
            ["--job-filter"],
            metavar="PATTERN",
            help="Taken for old command lines: our jobs are known by their tags.",
        ),
        click.Option(["--image"], required=True, help="The image that a worker runs in."),
        click.Option(
            ["--platform"],
            type=click.Choice(["auto", "ec2", "fargate"]),
            default="auto",
            show_default=True,
            help="What the queue's machines are; auto looks at its compute environments.",
        ),
        *resource_options(),
        click.Option(
            ["--user"], default="root", show_default=True, help="The user in that container."
        ),
        click.Option(
            ["--execution-role"],
            metavar="ARN",
            help="What fetches image and credentials for a worker; needed for credentials.",
        ),
        click.Option(["--job-role"], metavar="ARN", help="What a worker may do in AWS."),
        click.Option(
            ["--secret"],
            metavar="ARN",
            help="A secret of your own with the workers' credentials, as JSON by variable.",
        ),
        click.Option(
            ["--share-identifier"],
            metavar="NAME",
            help="On a fair-share queue: whose share workers count against.",
        ),
        click.Option(
            ["--scheduling-priority"],
            type=click.IntRange(0, 9999),
            help="On a fair-share queue: above others of that share.",
        ),
        click.Option(
            ["--timeout"],
            type=click.IntRange(min=LEAST_TIMEOUT_SECONDS),
            metavar="SECONDS",
            help="Batch ends a worker that has run this long.",
        ),
        click.Option(
            ["--attempts"],
            type=click.IntRange(1, 10),
            default=1,
            show_default=True,
            help="How often Batch starts a worker whose machine was taken back.",
        ),
        click.Option(
            ["--log-group"],
            metavar="NAME",
            help="Of CloudWatch, for what workers print.  [default: /aws/batch/job]",
        ),
    ]


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """The options, checked one by one. ``timeout`` is in seconds, ``memory_mb`` in MiB."""

    image: str
    job_queue: str = "codalab-batch-cpu"
    job_definition_name: str = "codalab-worker"
    region: str | None = None
    profile: str | None = None
    endpoint: str | None = None
    platform: str = "auto"
    cpus: int = 1
    gpus: int = 0
    memory_mb: int = 2048
    user: str = "root"
    execution_role: str | None = None
    job_role: str | None = None
    secret: str | None = None
    share_identifier: str | None = None
    scheduling_priority: int | None = None
    timeout: int | None = None
    attempts: int = 1
    log_group: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> AwsSettings:
        """Raises Invalid, which names the option."""
        read = cls(**{name: settings[name] for name in cls.__slots__ if name in settings})
        _check("--image", read.image, _IMAGE_PATTERN, "a reference such as HOST/NAME:TAG")
        _check(
            "--job-definition-name",
            read.job_definition_name,
            _NAME_PATTERN,
            "up to 62 letters, digits, - and _",
        )
        if not read.job_queue:
            raise Invalid("--job-queue '' is none: give a name or an ARN")
        role = "the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME"
        _check("--execution-role", read.execution_role, _ROLE_PATTERN, role)
        _check("--job-role", read.job_role, _ROLE_PATTERN, role)
        _check(
            "--secret",
            read.secret,
            _SECRET_PATTERN,
            "the ARN of a secret: arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME",
        )
        _check("--share-identifier", read.share_identifier, _SHARE_PATTERN, "letters and digits")
        if read.memory_mb < LEAST_MEMORY_MB:
            raise Invalid(f"--memory-mb {read.memory_mb} is too little: {LEAST_MEMORY_MB} or more")
        if read.endpoint is not None:
            check_url("--endpoint", read.endpoint)
        return read


def _check(option: str, value: str | None, pattern: re.Pattern[str], wanted: str) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise Invalid(f"{option} {value!r} cannot be used: give {wanted}")
