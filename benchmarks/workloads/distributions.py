"""Distributions of token counts and pauses: how a file says them, and their values.

Each is a pure function of one number between 0 and 1 (its inverse distribution function), so that
one draw is one number and changing a distribution shifts nobody else's draws. Every one has a
bound on both sides: a single absurd length would decide a whole run.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from profiles import Section, broken_rules
from profiles.explain import NUMBER_TAG, Finding

MAX_TOKENS = 10_000_000
DAY_S = 86_400.0

Whole = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Seconds = Annotated[float, Field(ge=0, le=DAY_S)]
Weight = Annotated[float, Field(gt=0, le=1e9)]

Number = TypeVar("Number", int, float)


class _Distribution(Section, Generic[Number]):
    """What all have in common: the names that they have in the JSON Schema."""

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """``WholeUniform``, ``SecondsUniform``."""
        return f"{'Whole' if params[0] is Whole else 'Seconds'}{cls.__name__}"


def _ordered(low: float, high: float) -> list[Finding]:
    return [(("max",), f"must be at least min ({low:g}) (got {high:g})")] if high < low else []


class Uniform(_Distribution[Number], Generic[Number]):
    """Every value from min to max is equally likely."""

    kind: Literal["uniform"] = Field(description="uniform. Required.")
    min: Number = Field(description="Smallest value, in tokens or seconds. Required.")
    max: Number = Field(description="Largest value, in tokens or seconds. Required.")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if found := _ordered(self.min, self.max):
            raise broken_rules(found)
        return self

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1); whole numbers for whole bounds."""
        if isinstance(self.min, int) and isinstance(self.max, int):
            return self.min + math.floor(u * (self.max - self.min + 1))
        return self.min + u * (self.max - self.min)


def _truncated(normal: NormalDist, low: float, high: float, u: float) -> float:
    """The value at ``u`` of a normal distribution of which only low to high is left."""
    below, up_to = normal.cdf(low), normal.cdf(high)
    share = below + u * (up_to - below)
    if not 0.0 < share < 1.0:
        return low if share <= 0.0 else high
    return min(max(normal.inv_cdf(share), low), high)


class Normal(_Distribution[Number], Generic[Number]):
    """A bell curve; values outside of min and max are not drawn, so its mean can move."""

    kind: Literal["normal"] = Field(description="normal. Required.")
    mean: float = Field(
        ge=0, le=MAX_TOKENS, description="Middle of the curve, in tokens or seconds. Required."
    )
    std: float = Field(
        gt=0, le=MAX_TOKENS, description="Standard deviation, in tokens or seconds. Required."
    )
    min: Number = Field(description="Smallest value, in tokens or seconds. Required, as a bound.")
    max: Number = Field(description="Largest value, in tokens or seconds. Required, as a bound.")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = _ordered(self.min, self.max)
        if not found and not self.min <= self.mean <= self.max:
            found = [(("mean",), f"must be from min to max (got {self.mean:g})")]
        if found:
            raise broken_rules(found)
        return self

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1); rounded where the bounds are whole."""
        value = _truncated(NormalDist(self.mean, self.std), self.min, self.max, u)
        return round(value) if isinstance(self.min, int) else value


class LogNormal(_Distribution[Number], Generic[Number]):
    """Many small values and a long tail, as prompts of people have; cut to min and max."""

    kind: Literal["lognormal"] = Field(description="lognormal. Required.")
    median: float = Field(
        gt=0,
        le=MAX_TOKENS,
        description="Half of the values are below, in tokens or seconds. Required.",
    )
    sigma: float = Field(
        gt=0,
        le=5,
        description="Standard deviation of the values' natural logarithm, without "
        "unit: 0.5 is a short tail, 1.5 a long one. Required.",
    )
    min: Number = Field(description="Smallest value, in tokens or seconds. Required, as a bound.")
    max: Number = Field(description="Largest value, in tokens or seconds. Required, as a bound.")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found = _ordered(self.min, self.max)
        if not found and not self.min <= self.median <= self.max:
            found = [(("median",), f"must be from min to max (got {self.median:g})")]
        if found:
            raise broken_rules(found)
        return self

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1); rounded where the bounds are whole."""
        # A pause may be 0, which has no logarithm; nothing is lost below a nanosecond.
        low, high = (math.log(max(bound, 1e-9)) for bound in (self.min, self.max))
        value = math.exp(_truncated(NormalDist(math.log(self.median), self.sigma), low, high, u))
        value = min(max(value, self.min), self.max)
        return round(value) if isinstance(self.min, int) else value


class Choice(_Distribution[Number], Generic[Number]):
    """One of some values."""

    kind: Literal["choice"] = Field(description="choice. Required.")
    values: list[Number] = Field(
        min_length=1,
        max_length=1000,
        description="What is drawn from, in tokens or seconds. Required.",
    )
    weights: list[Weight] | None = Field(
        default=None,
        max_length=1000,
        description="How often each of the values is drawn, in relation to the others, without "
        "unit. Default: all equally often.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.values):
            what = f"must have one entry for each of values ({len(self.values)})"
            raise broken_rules([(("weights",), f"{what} (got {len(self.weights)})")])
        return self

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1)."""
        return self.values[pick(self.weights or [1.0] * len(self.values), u)]


def _tag(value: object) -> object:
    """Which member of the union a value is: by its kind, or a plain number."""
    if isinstance(value, bool | int | float):
        return NUMBER_TAG
    if isinstance(value, Mapping):
        return value.get("kind")
    return getattr(value, "kind", None)


WholeNumbers = Annotated[
    Annotated[Whole, Tag(NUMBER_TAG)]
    | Annotated[Uniform[Whole], Tag("uniform")]
    | Annotated[Normal[Whole], Tag("normal")]
    | Annotated[LogNormal[Whole], Tag("lognormal")]
    | Annotated[Choice[Whole], Tag("choice")],
    Discriminator(_tag),
]
"""A fixed whole number, or a distribution of whole numbers."""

Pauses = Annotated[
    Annotated[Seconds, Tag(NUMBER_TAG)]
    | Annotated[Uniform[Seconds], Tag("uniform")]
    | Annotated[Normal[Seconds], Tag("normal")]
    | Annotated[LogNormal[Seconds], Tag("lognormal")]
    | Annotated[Choice[Seconds], Tag("choice")],
    Discriminator(_tag),
]
"""A fixed number of seconds, or a distribution of seconds."""


def whole_at(numbers: WholeNumbers, u: float) -> int:
    """The whole number at ``u`` in [0, 1)."""
    return numbers if isinstance(numbers, int) else int(numbers.at(u))


def largest_whole(numbers: WholeNumbers) -> int:
    """The largest whole number that can be drawn."""
    if isinstance(numbers, int):
        return numbers
    return max(numbers.values) if isinstance(numbers, Choice) else numbers.max


def seconds_at(pauses: Pauses, u: float) -> float:
    """The seconds at ``u`` in [0, 1)."""
    return float(pauses) if isinstance(pauses, int | float) else pauses.at(u)


def pick(weights: Sequence[float], u: float) -> int:
    """The index at ``u`` in [0, 1), each as often as its weight says."""
    return pick_cumulative(list(itertools.accumulate(weights)), u)


def pick_cumulative(sums: Sequence[float], u: float) -> int:
    """``pick`` with the weights' running sums, for many draws from many weights."""
    return min(bisect.bisect_right(sums, u * sums[-1]), len(sums) - 1)
