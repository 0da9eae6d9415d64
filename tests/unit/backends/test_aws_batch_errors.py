"""Which error of ours an error of AWS is: by its code."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import botocore
import pytest
from botocore import exceptions
from botocore.exceptions import ClientError

from backends.aws_batch import fargate
from backends.aws_batch.errors import backend_error, was_never_sent
from backends.base import (
    BackendError,
    Invalid,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)


def said(code: str, status: int = 400, **headers: str) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    answer = {"Error": {"Code": code, "Message": "a\nb"}, "ResponseMetadata": metadata}
    return ClientError(answer, "SubmitJob")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("TooManyRequestsException", 429, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("SomethingNew", 429, Throttled),
        ("AccessDeniedException", 400, Unauthorized),
        ("ExpiredTokenException", 403, Unauthorized),
        ("UnrecognizedClientException", 403, Unauthorized),
        ("SomethingNew", 403, Unauthorized),
        ("ClientException", 400, Invalid),
        ("ValidationException", 400, Invalid),
        ("SomethingNew", 404, Invalid),
        ("ParameterLimitExceeded", 400, QuotaExceeded),
        ("ServiceQuotaExceededException", 400, QuotaExceeded),
        ("InsufficientInstanceCapacity", 400, OutOfCapacity),
        ("ServerException", 500, Unreachable),
        ("SomethingNew", 503, Unreachable),
    ],
)
def test_every_code_is_one_error(code: str, status: int, kind: type[BackendError]) -> None:
    error = backend_error(said(code, status), "submitting")
    assert type(error) is kind
    assert str(error) == f"submitting: AWS says {code}, a b"


def test_how_long_to_wait_is_what_aws_said() -> None:
    errors = [
        backend_error(said("Throttling", **{"retry-after": value}), "x")
        for value in ("2.5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon")
    ]
    waits = [error.retry_after_seconds for error in errors if isinstance(error, Throttled)]
    assert waits == [2.5, 0.0, None]


@pytest.mark.parametrize(
    ("error", "kind", "never_sent"),
    [
        (exceptions.EndpointConnectionError(endpoint_url="u"), Unreachable, True),
        (exceptions.ConnectTimeoutError(endpoint_url="u"), Unreachable, True),
        (exceptions.ReadTimeoutError(endpoint_url="u"), Unreachable, False),
        (exceptions.ConnectionClosedError(endpoint_url="u"), Unreachable, False),
        (exceptions.NoCredentialsError(), Unauthorized, False),
        (exceptions.ProfileNotFound(profile="p"), Invalid, False),
        (exceptions.ParamValidationError(report="r"), Invalid, False),
        (ConnectionResetError("reset"), Unreachable, False),
        (ValueError("Invalid endpoint"), Invalid, False),
    ],
)
def test_what_the_sdk_says_itself_is_one_error_too(
    error: Exception, kind: type[BackendError], never_sent: bool
) -> None:
    mapped = backend_error(error, "asking")
    assert type(mapped) is kind
    mapped.__cause__ = error
    assert was_never_sent(mapped) is never_sent


def test_the_pairs_of_fargate_are_those_of_the_service_s_own_model() -> None:
    (path,) = Path(botocore.__file__).parent.glob("data/batch/*/service-2.json.gz")
    shape = json.loads(gzip.decompress(path.read_bytes()))["shapes"]["ResourceRequirement"]
    text = re.sub("<[^>]+>", "", shape["members"]["value"]["documentation"])
    found = {
        int(cpus): tuple(int(size) for size in re.findall(r"\d+", sizes))
        for cpus, sizes in re.findall(r"value = (\d+)\s*MEMORY = ([\d, or]+)", text)
    }
    assert found == fargate.PAIRS


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((1, 2048), (1, 2048)),
        ((1, 2049), (1, 3072)),
        ((1, 9000), (2, 9216)),
        ((3, 1), (4, 8192)),
        ((32, 200_000), (32, 249_856)),
        ((33, 1), None),
        ((1, 249_857), None),
    ],
)
def test_the_next_pair_has_at_least_as_much(
    asked: tuple[int, int], given: tuple[int, int] | None
) -> None:
    assert fargate.next_pair(*asked) == given
    assert fargate.is_pair(*asked) is (asked == given)
