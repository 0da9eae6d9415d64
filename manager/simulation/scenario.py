"""What a scenario file may say, and reading it: every problem with its line and key.

Keys that `pools.toml` has mean here what they mean there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from bundles.errors import UsageError
from manager import money
from manager.capacity import UNBOUNDED, Need, Offer, Room
from manager.money import Terms
from manager.policy import PoolConfig
from manager.pools_file.model import Budget, Section
from manager.pools_file.positions import Positions
from manager.simulation.arrivals import Arrivals
from manager.simulation.chance import Duration, Seconds

DAY_SECONDS = 86400.0
Fraction = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[list[Seconds], Field(min_length=2, max_length=2)]


class PoolScenario(Section):
    """One pool: its options, and how its compute service behaves."""

    name: str
    min_workers: int = Field(0, alias="min-workers", ge=0)
    max_workers: int = Field(10, alias="max-workers", ge=0)
    min_seconds_between_workers: float = Field(0.0, alias="min-seconds-between-workers", ge=0)
    patience_seconds: float | None = Field(None, alias="patience-seconds", ge=0)
    worker_idle_seconds: float = Field(600.0, alias="worker-idle-seconds", ge=0)
    worker_tag: str = Field("", alias="worker-tag")
    worker_tag_exclusive: bool = Field(False, alias="worker-tag-exclusive")
    cpus: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    memory_mb: int = Field(2048, alias="memory-mb", ge=1)
    price_per_hour: float = Field(0.0, alias="price-per-hour", ge=0)
    budget_per_hour: float | None = Field(None, alias="budget-per-hour", ge=0)
    budget_per_day: float | None = Field(None, alias="budget-per-day", ge=0)
    budget_per_month: float | None = Field(None, alias="budget-per-month", ge=0)
    capacity: int | None = Field(None, ge=0, description="Machines that the service has for us.")
    start_seconds: Duration = Field(
        60.0, alias="start-seconds", description="From the launch until the worker's job runs."
    )
    registration_seconds: Duration = Field(
        5.0, alias="registration-seconds", description="From then until it takes bundles."
    )
    stock_outs: list[Span] = Field(
        [], alias="stock-outs", description="From when to when no machine starts."
    )
    refuses: bool = Field(
        False, description="Launches are refused then, and above the capacity, and do not wait."
    )
    preemptions_per_hour: float = Field(0.0, alias="preemptions-per-hour", ge=0)
    launch_failures: Fraction = Field(0.0, alias="launch-failures")
    bad_starts: Fraction = Field(
        0.0, alias="bad-starts", description="Workers that leave at their start with an error."
    )

    @model_validator(mode="after")
    def _is_possible(self) -> PoolScenario:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min-workers {self.min_workers} is more than max-workers")
        _ = self.terms
        return self

    @property
    def shape(self) -> Offer:
        room = Room(self.gpus, self.cpus, self.memory_mb * 1024**2, UNBOUNDED)
        return Offer(room, self.worker_tag, self.worker_tag_exclusive)

    @property
    def config(self) -> PoolConfig:
        return PoolConfig(
            shape=self.shape,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            min_seconds_between_workers=self.min_seconds_between_workers,
            patience_seconds=self.patience_seconds,
        )

    @property
    def terms(self) -> Terms:
        return Terms.from_settings(self.model_dump())


class BundleScenario(Section):
    """Bundles of one kind: whose they are, when they come, what they ask for."""

    owner: str = "somebody"
    arrivals: Arrivals
    run_seconds: Duration = Field(alias="run-seconds")
    cpus: int = Field(1, ge=0)
    gpus: int = Field(0, ge=0)
    memory_mb: int = Field(1024, alias="memory-mb", ge=0)
    queue: str = Field("", description="The tag of the workers that they are for.")
    taken_back_seconds: Duration | None = Field(
        None, alias="taken-back-seconds", description="One that waits for so long is killed."
    )
    kills_worker: bool = Field(
        False, alias="kills-worker", description="Its worker dies when it would end."
    )
    attempts: int = Field(3, ge=1, description="How many workers such a one may take with it.")

    @property
    def need(self) -> Need:
        room = Room(self.gpus, self.cpus, self.memory_mb * 1024**2, 0)
        return Need(room, self.queue)


class Scenario(Section):
    """What is simulated. Bundles come for ``duration-seconds``; then it goes on until all are
    done and the workers have left, or ``after-seconds`` have passed."""

    description: str = ""
    seed: int = 1
    duration_seconds: float = Field(DAY_SECONDS, alias="duration-seconds", gt=0)
    after_seconds: float = Field(DAY_SECONDS, alias="after-seconds", ge=0)
    starts_at_hour: float = Field(
        0.0, alias="starts-at-hour", ge=0, lt=24, description="Of the day, for budgets."
    )
    sleep_time: float = Field(5.0, alias="sleep-time", ge=0.1)
    is_told: bool = Field(
        True, alias="is-told", description="The server tells of staged bundles at once."
    )
    queue_age_seconds: float = Field(
        0.0, alias="queue-age-seconds", ge=0, description="How old the queue is that is seen."
    )
    budget: Budget | None = None
    pools: list[PoolScenario] = Field(min_length=1)
    bundles: list[BundleScenario] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_names(self) -> Scenario:
        names = [pool.name for pool in self.pools]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two pools have the name {min(twice)!r}")
        return self

    @property
    def purse(self) -> tuple[money.Budget, float]:
        """What all pools together may cost, and the soft fraction of it."""
        said = self.budget or Budget.model_validate({})
        return said.amounts, said.soft_fraction


def load(path: Path) -> Scenario:
    """Raises UsageError, with a line for each problem."""
    if path.exists() and not path.is_file():  # a device may have no end, a pipe no writer
        raise UsageError(f"{path} is not a file: give a scenario")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save it as such") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Scenario:
    """As ``load``, of a text; files that it names are looked for beside ``path``."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: this is not TOML: {error}") from error
    try:
        return Scenario.model_validate(document, context={"directory": path.parent})
    except ValidationError as error:
        positions = Positions(text)
        problems: dict[str, None] = {}
        for problem in error.errors(include_url=False):
            place = _place(problem["loc"], document, problem["type"] == "missing")
            said = _SENTENCES.get(problem["type"]) or problem["msg"]
            said = said.removeprefix("Value error, ")
            problems[f"{path}:{positions.line(place)}: {_key(place)}{said}"] = None
        raise UsageError("\n".join(problems)) from error


_SENTENCES = {
    "extra_forbidden": "there is no such key: see docs/simulate.md",
    "missing": "it is missing",
}


def _place(
    location: tuple[int | str, ...], document: Any, is_missing: bool
) -> tuple[int | str, ...]:
    """Without the names of the alternatives that pydantic tried, which stand in no file."""
    place: list[int | str] = []
    value = document
    for position, step in enumerate(location):
        is_last = position == len(location) - 1
        if isinstance(value, dict) and (step in value or (is_missing and is_last)):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        place.append(step)
    return tuple(place)


def _key(place: tuple[int | str, ...]) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return f"{text}: " if text else ""
