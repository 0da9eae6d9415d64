"""What a request or an answer of AWS Batch may be, by botocore's model of the service."""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator


@cache
def _service() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("batch", "service-2"))


@cache
def operations() -> dict[str, str]:
    """The operations by the path that they are asked at."""
    service = _service()
    return {
        service.operation_model(name).http["requestUri"]: name for name in service.operation_names
    }


def faults_of_request(operation: str, asked: dict[str, Any]) -> str:
    """What is wrong with a request, "" for nothing."""
    return _faults(asked, _service().operation_model(operation).input_shape)


def faults_of_answer(operation: str, answer: dict[str, Any]) -> str:
    return _faults(answer, _service().operation_model(operation).output_shape)


def _faults(value: dict[str, Any], shape: Any) -> str:
    report = ParamValidator().validate(value, shape)
    unknown = sorted(set(value) - set(shape.members))
    return " ".join(filter(None, [report.generate_report(), *(f"unknown: {n}" for n in unknown)]))
