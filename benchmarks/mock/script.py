"""What the mock server does to a request and when: a pure function of a script and the request.

A script is made of distributions and a seed. Every draw comes from the seed and the request's key
(its place in the order of arrival, or a hash of its prompt), never from a clock, so a schedule can
be computed before it happens. Stalls are windows in which the server stands still: nothing is
sent, what arrives is not looked at, and everything under way goes on where it stopped.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_FLOOR_S = 1e-6


class Shape(enum.StrEnum):
    """How values spread around their mean."""

    CONSTANT = "constant"
    UNIFORM = "uniform"
    EXPONENTIAL = "exponential"
    LOGNORMAL = "lognormal"


class Delay(msgspec.Struct, frozen=True):
    """A random delay in seconds, with mean ``mean_s``.

    ``spread`` is the half width as a share of the mean (uniform, at most 1), or sigma of the
    logarithm (lognormal); the other shapes have none.
    """

    mean_s: float
    shape: Shape = Shape.CONSTANT
    spread: float = 0.5

    def draw(self, rng: random.Random) -> float:
        """One value, never negative."""
        if self.shape is Shape.UNIFORM:
            return self.mean_s * (1.0 + self.spread * (2.0 * rng.random() - 1.0))
        if self.shape is Shape.EXPONENTIAL:
            return rng.expovariate(1.0) * self.mean_s
        if self.shape is Shape.LOGNORMAL:
            # exp(mu + sigma^2 / 2) is the mean of a lognormal distribution.
            return self.mean_s * math.exp(rng.gauss(0.0, self.spread) - self.spread**2 / 2)
        return self.mean_s


class Stall(msgspec.Struct, frozen=True):
    """The server stands still from ``at_s`` on, for ``length_s`` seconds. Second 0 is the first
    request for text."""

    at_s: float
    length_s: float


class Outcome(enum.StrEnum):
    """How a request is to end."""

    WHOLE = "whole"
    ERROR = "error"
    """An error object with a status instead of an answer."""
    ERROR_EVENT = "error_event"
    """An error in the middle of the stream."""
    CUT = "cut"
    """The connection is reset in the middle."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about the mock's behaviour.

    Attributes:
        seed: of all draws.
        ttft: from a place being free to the first chunk.
        itl: from token to token.
        prompt_tokens_per_s: adds time to the first chunk, by prompt tokens that are not in the
            mock's prefix cache; 0 adds none.
        tokens_per_chunk: how many come in one event.
        slots: requests that are worked on at a time, the others wait; 0 is without bound.
        accept_s: what the first request of a connection waits on top.
        stalls: by time, not overlapping.
        error_rate, error_event_rate, cut_rate: shares of requests.
        error_status: of ``Outcome.ERROR``.
        by_prompt: draws by the prompt's text instead of the order of arrival.
        output_tokens: length of an answer whose request does not say.
        early_role: chats: the event with the role is sent with the headers, without content.
    """

    seed: int = 0
    ttft: Delay = Delay(0.05)
    itl: Delay = Delay(0.01)
    prompt_tokens_per_s: float = 0.0
    tokens_per_chunk: int = 1
    slots: int = 0
    accept_s: float = 0.0
    stalls: tuple[Stall, ...] = ()
    error_rate: float = 0.0
    error_event_rate: float = 0.0
    cut_rate: float = 0.0
    error_status: int = 503
    by_prompt: bool = False
    output_tokens: int = 16
    early_role: bool = True


@dataclass(frozen=True, slots=True)
class Course:
    """What happens to one request.

    ``chunks`` holds, by chunk, the seconds since the work on it began and its tokens. After the
    last of them the answer ends, or what ``outcome`` says happens.
    """

    chunks: tuple[tuple[float, int], ...]
    outcome: Outcome


def course(script: Script, key: int, *, output_tokens: int, new_prompt_tokens: int = 0) -> Course:
    """The course of the request ``key``, whose answer has ``output_tokens`` tokens."""
    rng = random.Random(f"{script.seed}:{key}")  # noqa: S311 (delays, not secrets)
    lot = rng.random()
    at_s = max(_FLOOR_S, script.ttft.draw(rng))
    if script.prompt_tokens_per_s > 0:
        at_s += new_prompt_tokens / script.prompt_tokens_per_s
    chunks, left = [], max(1, output_tokens)
    while left:
        tokens = min(left, script.tokens_per_chunk)
        chunks.append((at_s, tokens))
        left -= tokens
        # A chunk of several tokens comes when its last token is there.
        for _ in range(min(left, script.tokens_per_chunk)):
            at_s += max(0.0, script.itl.draw(rng))
    outcome = _outcome(script, lot)
    if outcome is Outcome.ERROR:
        chunks = chunks[:1]
    elif outcome is not Outcome.WHOLE:
        chunks = chunks[: rng.randint(1, len(chunks))]
    return Course(tuple(chunks), outcome)


def _outcome(script: Script, lot: float) -> Outcome:
    for rate, outcome in (
        (script.error_rate, Outcome.ERROR),
        (script.error_event_rate, Outcome.ERROR_EVENT),
        (script.cut_rate, Outcome.CUT),
    ):
        if lot < rate:
            return outcome
        lot -= rate
    return Outcome.WHOLE


def working_time(at_s: float, stalls: Sequence[Stall]) -> float:
    """Seconds of the time up to ``at_s`` in which the server did not stand still."""
    stood = 0.0
    for stall in stalls:
        if at_s <= stall.at_s:
            break
        if at_s < stall.at_s + stall.length_s:
            # Exactly the moment at which it began: a difference of differences could round to
            # just before it, and ``wall_time`` would then find the server at work.
            return stall.at_s - stood
        stood += stall.length_s
    return at_s - stood


def wall_time(working_s: float, stalls: Sequence[Stall]) -> float:
    """When the server has worked ``working_s`` seconds: the inverse of ``working_time``, and the
    end of a stall for what would happen at the moment when it begins."""
    at_s = working_s
    for stall in stalls:
        if at_s < stall.at_s - _FLOOR_S:
            break
        at_s += stall.length_s
    return at_s
