"""How long things take in a scenario: a number of seconds, or a distribution of them."""

from __future__ import annotations

import math
from random import Random
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from manager.pools_file.model import Section

Seconds = Annotated[float, Field(ge=0)]


class Uniform(Section):
    """Any value between two."""

    uniform: Annotated[list[Seconds], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _is_in_order(self) -> Uniform:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError("the first value is the smaller one")
        return self

    def draw(self, dice: Random) -> float:
        return dice.uniform(*self.uniform)


class Exponential(Section):
    """Without memory, of this mean."""

    exponential: Annotated[float, Field(gt=0)]

    def draw(self, dice: Random) -> float:
        return dice.expovariate(1 / self.exponential)


class LogNormal(Section):
    """The median, and the deviation of the natural logarithm: 1 has a long tail."""

    lognormal: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0, le=5)] = 1.0

    def draw(self, dice: Random) -> float:
        return dice.lognormvariate(math.log(self.lognormal), self.sigma)


class Observed(Section):
    """One of these values, each as likely."""

    values: Annotated[list[Seconds], Field(min_length=1)]

    def draw(self, dice: Random) -> float:
        return dice.choice(self.values)


def _form(value: object) -> str | None:
    """Which of the forms a value has, so that an error speaks of that one alone."""
    if isinstance(value, Uniform | Exponential | LogNormal | Observed):
        return type(value).__name__
    if not isinstance(value, dict):
        return "Seconds"
    forms = {"uniform": Uniform, "exponential": Exponential, "lognormal": LogNormal}
    forms |= {"values": Observed}
    return next((form.__name__ for key, form in forms.items() if key in value), None)


Duration = Annotated[
    Annotated[Seconds, Tag("Seconds")]
    | Annotated[Uniform, Tag("Uniform")]
    | Annotated[Exponential, Tag("Exponential")]
    | Annotated[LogNormal, Tag("LogNormal")]
    | Annotated[Observed, Tag("Observed")],
    Discriminator(
        _form,
        custom_error_type="duration",
        custom_error_message="give seconds, or { uniform | exponential | lognormal | values = … }",
    ),
]


def draw(duration: Duration, dice: Random) -> float:
    """A number of seconds."""
    return duration if isinstance(duration, float | int) else duration.draw(dice)
