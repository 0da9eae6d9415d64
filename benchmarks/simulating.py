"""What the simulation measures: the reference traces, and how fast a large day goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manager.simulation.report import Report
from manager.simulation.scenario import Scenario, load
from manager.simulation.world import simulate

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Traced:
    """One reference trace: its file, what came of it, and of the same with a fresh queue."""

    name: str
    scenario: Scenario
    report: Report
    oracle: Report | None = None

    @property
    def idle_seconds(self) -> list[float]:
        """The idle time-outs of its pools."""
        return sorted({pool.worker_idle_seconds for pool in self.scenario.pools})


def traces() -> Iterator[Traced]:
    """Every trace of traces/, in the order of their names."""
    for path in sorted((HERE / "traces").glob("*.toml")):
        scenario = load(path)
        fresh = scenario.model_copy(update={"queue_age_seconds": 0.0, "is_told": True})
        oracle = simulate(fresh) if scenario.queue_age_seconds else None
        yield Traced(path.stem, scenario, simulate(scenario), oracle)


def million() -> tuple[Report, float, float]:
    """A day of a million bundles; seconds that it took, and seconds of processor time."""
    scenario = load(HERE / "million.toml")
    begin, cpu = time.perf_counter(), time.process_time()
    report = simulate(scenario)
    return report, time.perf_counter() - begin, time.process_time() - cpu
