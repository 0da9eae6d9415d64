"""What the page and the dashboard say of metrics is what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from backends.base import EndCause
from manager import policy
from manager.health import Cause
from manager.metrics import CAUSES, Metrics, PoolMetrics, label

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/operate.md").read_text()
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "gauge": ("",),
    "info": ("_info",),
}


@pytest.fixture(scope="module")
def samples() -> dict[str, str]:
    """The name of every sample that there can be, and how the page calls it."""
    registry = CollectorRegistry()
    PoolMetrics(Metrics(registry), "p", "fake")
    return {
        family.name + suffix: family.name + (suffix if len(SUFFIXES[family.type]) == 1 else "")
        for family in registry.collect()
        for suffix in SUFFIXES[family.type]
    }


def expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_the_dashboard_asks_for_metrics_that_exist_and_for_all_of_ours(
    samples: dict[str, str],
) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    asked = {
        name
        for expression in expressions(dashboard)
        for name in re.findall(r"\b(?:worker_manager|process)_\w+", expression)
    }
    assert asked <= samples.keys()
    shown = {samples[name] for name in asked}
    assert shown >= {name for name in samples.values() if name.startswith("worker_manager")}


def test_the_page_names_every_metric_and_no_other(samples: dict[str, str]) -> None:
    ours = {name for name in samples.values() if name.startswith("worker_manager")}
    assert set(re.findall(r"\bworker_manager_\w+", PAGE)) == ours


def test_the_page_names_every_cause_and_every_reason() -> None:
    assert policy.__file__ is not None
    codes = re.findall(r'clause\(\s*"(\w+)"', Path(policy.__file__).read_text())
    assert len(codes) >= 10
    causes = [*CAUSES.values(), *map(label, [*EndCause, *Cause])]
    assert [name for name in [*codes, *causes] if f"`{name}`" not in PAGE] == []
