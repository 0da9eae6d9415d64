"""When bundles come: evenly, at random, in bursts, by day and night, or as they once came."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationInfo, model_validator

from manager.pools_file.model import Section

Arrival = tuple[float, int]
"""So many seconds after the beginning so many bundles come."""
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86400.0


class _Bounded(Section):
    from_seconds: float = Field(0.0, alias="from-seconds", ge=0)
    until_seconds: float = Field(math.inf, alias="until-seconds", ge=0, allow_inf_nan=True)


class Constant(_Bounded):
    """So many an hour, evenly apart."""

    constant_per_hour: float = Field(alias="constant-per-hour", gt=0)

    def arrivals(self, dice: Random) -> Iterator[Arrival]:
        step = HOUR_SECONDS / self.constant_per_hour
        number = 0
        while (when := self.from_seconds + number * step) < self.until_seconds:
            yield when, 1
            number += 1


class Poisson(_Bounded):
    """So many an hour on average, each by itself."""

    poisson_per_hour: float = Field(alias="poisson-per-hour", gt=0)

    def arrivals(self, dice: Random) -> Iterator[Arrival]:
        when = self.from_seconds
        while (when := when + dice.expovariate(self.poisson_per_hour / HOUR_SECONDS)) < (
            self.until_seconds
        ):
            yield when, 1


class Burst(_Bounded):
    """So many at once, and again every so many seconds."""

    burst: int = Field(ge=1)
    every_seconds: float | None = Field(None, alias="every-seconds", gt=0)

    def arrivals(self, dice: Random) -> Iterator[Arrival]:
        when = self.from_seconds
        while when < self.until_seconds:
            yield when, self.burst
            if self.every_seconds is None:
                return
            when += self.every_seconds


class Diurnal(_Bounded):
    """At random, between so few an hour at the beginning of each period and so many in the middle
    of it."""

    diurnal_per_hour: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        alias="diurnal-per-hour"
    )
    period_seconds: float = Field(DAY_SECONDS, alias="period-seconds", gt=0)

    @model_validator(mode="after")
    def _is_in_order(self) -> Diurnal:
        low, high = self.diurnal_per_hour
        if not 0 <= low <= high or high == 0:
            raise ValueError("diurnal-per-hour is [least, most], neither below 0")
        return self

    def arrivals(self, dice: Random) -> Iterator[Arrival]:
        low, high = self.diurnal_per_hour
        when = self.from_seconds
        # Thinning: of arrivals at the highest rate, each is kept with the chance of its moment.
        while (when := when + dice.expovariate(high / HOUR_SECONDS)) < self.until_seconds:
            swing = (1 - math.cos(2 * math.pi * when / self.period_seconds)) / 2
            if dice.random() * high < low + (high - low) * swing:
                yield when, 1


class Trace(_Bounded):
    """As a file says: lines of seconds and number, `,` between them; or a journal of a pool,
    where what is staged grows."""

    csv: str | None = None
    journal: str | None = None
    _arrivals: list[Arrival] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _is_readable(self, info: ValidationInfo) -> Trace:
        if (self.csv is None) == (self.journal is None):
            raise ValueError("give either csv or journal")
        directory = (info.context or {}).get("directory", Path())
        path = directory / str(self.csv or self.journal)
        try:
            found = _from_csv(path) if self.csv else _from_journal(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        if not found:
            raise ValueError(f"{path} tells of no bundle")
        self._arrivals = sorted(found)
        return self

    def arrivals(self, dice: Random) -> Iterator[Arrival]:
        for when, number in self._arrivals:
            if self.from_seconds <= when < self.until_seconds:
                yield when, number


def _from_csv(path: Path) -> list[Arrival]:
    found = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line, row in enumerate(csv.reader(file), 1):
            if not row or (line == 1 and not row[0].strip()[:1].isdigit()):
                continue  # a heading
            try:
                when, number = float(row[0]), int(row[1]) if len(row) > 1 else 1
            except ValueError:
                when, number = -1.0, 0
            if not 0 <= when < math.inf or number < 1:
                raise ValueError(f"{path}:{line}: {','.join(row)!r} is not seconds and a number")
            found.append((when, number))
    return found


def _from_journal(path: Path) -> list[Arrival]:
    """What was staged and had not been the tick before; those taken in between are not seen."""
    from manager.history import read_journal

    if not path.exists():
        raise FileNotFoundError(2, "No such file", str(path))
    found: list[Arrival] = []
    begin: float | None = None
    before = 0
    for entry in read_journal(path):
        if entry.snapshot is None:
            continue
        begin = entry.time if begin is None else begin
        staged = entry.snapshot.staged
        if staged > before:
            found.append((max(0.0, entry.time - begin), staged - before))
        before = staged
    return found


_FORMS: dict[str, type[_Bounded]] = {
    "constant-per-hour": Constant,
    "poisson-per-hour": Poisson,
    "burst": Burst,
    "diurnal-per-hour": Diurnal,
    "csv": Trace,
    "journal": Trace,
}


def _form(value: object) -> str | None:
    """Which of the forms a value has, so that an error speaks of that one alone."""
    if isinstance(value, _Bounded):
        return type(value).__name__
    keys = value if isinstance(value, dict) else ()
    return next((form.__name__ for key, form in _FORMS.items() if key in keys), None)


Arrivals = Annotated[
    Annotated[Constant, Tag("Constant")]
    | Annotated[Poisson, Tag("Poisson")]
    | Annotated[Burst, Tag("Burst")]
    | Annotated[Diurnal, Tag("Diurnal")]
    | Annotated[Trace, Tag("Trace")],
    Discriminator(
        _form,
        custom_error_type="arrivals",
        custom_error_message=f"give one of {', '.join(_FORMS)}",
    ),
]
