"""What a CodaLab server wants of a bundle to be created that the embedded one does not ask for.

Source: CodaLab 1.7.5, `rest/bundles.py` (a bundle is made on a worksheet) and `objects/metadata.py`
(every field that a user may set must be there). Not for what is told of bundles that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HOME_WORKSHEET = "/"
"""The caller's own worksheet, made when it is first asked for."""

_FIELDS_OF_ALL: Mapping[str, Any] = {"name": "", "description": "", "tags": []}

_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "run": {
        "allow_failed_dependencies": False,
        "request_docker_image": "",
        "request_time": "",
        "request_memory": "2g",
        "request_disk": "",
        "request_cpus": 1,
        "request_gpus": 0,
        "request_queue": "",
        "request_priority": 0,
        "request_network": True,
        "exclude_patterns": [],
        "store": "",
    },
    "dataset": {"license": "", "source_url": "", "store": ""},
}


def completed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a bundle with every field of its metadata that CodaLab wants."""
    fields = {**_FIELDS_OF_ALL, **_FIELDS.get(attributes.get("bundle_type", ""), {})}
    return {**attributes, "metadata": {**fields, **(attributes.get("metadata") or {})}}
