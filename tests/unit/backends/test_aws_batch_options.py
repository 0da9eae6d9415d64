"""The options of AWS Batch: those of cl-worker-manager, ours, and what is wrong with a value."""

from __future__ import annotations

from typing import Any

import click
import pytest

from backends.aws_batch import options
from backends.aws_batch.options import AwsSettings
from backends.base import Invalid

CODALAB = {
    "region": None,
    "job_definition_name": "codalab-worker",
    "cpus": 1,
    "gpus": 0,
    "memory_mb": 2048,
    "user": "root",
    "job_queue": "codalab-batch-cpu",
    "job_filter": None,
}


def given() -> dict[str, Any]:
    """What a command line with nothing but an image comes to."""
    command = click.Command("aws-batch", params=list(options()))
    return command.make_context("aws-batch", ["--image", "workers:1"]).params


def test_cl_worker_manager_s_options_are_there_with_its_defaults() -> None:
    assert {name: given()[name] for name in CODALAB} == CODALAB


def test_every_option_that_is_read_is_one_and_has_the_same_default() -> None:
    assert AwsSettings.read(given()) == AwsSettings("workers:1")
    assert {*AwsSettings.__slots__} | {"job_filter"} == set(given())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("memory_mb", 3),
        ("image", "two words"),
        ("image", ""),
        ("job_definition_name", "x" * 63),
        ("job_definition_name", "a/b"),
        ("job_queue", ""),
        ("execution_role", "execution"),
        ("job_role", "arn:aws:iam::1:role/x"),
        ("secret", "arn:aws:ssm:us-east-1:123456789012:parameter/x"),
        ("share_identifier", "a b"),
        ("endpoint", "ftp://x"),
        ("endpoint", "http://batch.example"),
        ("endpoint", "http://127.0.0.1:x"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_the_name_of_its_option(
    option: str, value: str | int
) -> None:
    with pytest.raises(Invalid, match=f"--{option.replace('_', '-')} "):
        AwsSettings.read({"image": "workers:1", option: value})


@pytest.mark.parametrize(
    "endpoint",
    ["https://batch.example", "http://127.0.0.1:5000", "http://localhost", "http://[::1]:5"],
)
def test_an_endpoint_is_safe_or_on_this_machine(endpoint: str) -> None:
    AwsSettings.read({"image": "workers:1", "endpoint": endpoint})
