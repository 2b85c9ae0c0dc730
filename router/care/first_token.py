"""Whether two answers begin alike: the cheapest sign of a KV cache that was not what it should be.

Text says little: small models print the same letter whatever the prompt, and at a tie the first
token may flip between two sound runs. The log probability of one and the same token says much:
between sound runs it differed by 0.033 at most, after a corrupt handoff by 0.19 to 0.86 (measured
on CPU with bfloat16 and a random model whose output depends on the whole prompt).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

LOGPROB_TOLERANCE: Final = 0.1
"""Between the largest noise and the smallest corruption measured."""

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"

_TOP = 5

ASK_LOGPROBS: Final[Mapping[str, Mapping[str, Any]]] = {
    COMPLETIONS: {"logprobs": _TOP, "return_tokens_as_token_ids": True},
    CHAT: {"logprobs": True, "top_logprobs": _TOP, "return_tokens_as_token_ids": True},
}
"""By endpoint, what a body needs so that its answer can be read here. Tokens by id, since two of
them may have the same text. None of it asks for prompt log probabilities, with which decode would
ignore the handoff and compute the prompt itself."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of an answer, and the likeliest candidates for its place, itself included."""

    token: str
    logprobs: Mapping[str, float]


class Likeness(enum.StrEnum):
    """UNKNOWN where the candidates of the two answers do not say enough."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


def read_first_token(path: str, body: bytes) -> FirstToken | None:
    """The first token of an answer that was asked for with ``ASK_LOGPROBS``, or None."""
    try:
        logprobs = msgspec.json.decode(body)["choices"][0]["logprobs"]
        if path == CHAT:
            first = logprobs["content"][0]
            token, own = first["token"], first["logprob"]
            top = {each["token"]: each["logprob"] for each in first["top_logprobs"]}
        else:
            token, own = logprobs["tokens"][0], logprobs["token_logprobs"][0]
            top = dict((logprobs.get("top_logprobs") or [{}])[0] or {})
        found = {str(name): float(value) for name, value in {**top, token: own}.items()}
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    if not all(map(math.isfinite, found.values())):
        return None
    return FirstToken(str(token), found)


def compare(a: FirstToken, b: FirstToken) -> tuple[Likeness, float | None]:
    """Whether the two came from the same KV, and the largest difference that is known."""
    likeness, largest = Likeness.SAME, None
    for token in {a.token, b.token}:
        here, there = a.logprobs.get(token), b.logprobs.get(token)
        if here is not None and there is not None:
            difference = abs(here - there)
        else:
            # Not among the other's candidates: at most as likely as the last of those.
            known, others = (here, b) if there is None else (there, a)
            assert known is not None  # each token is a candidate of its own answer
            difference = known - min(others.logprobs.values())
            if difference <= LOGPROB_TOLERANCE:
                likeness = Likeness.UNKNOWN
                continue
        largest = difference if largest is None else max(largest, difference)
    if largest is not None and largest > LOGPROB_TOLERANCE:
        return Likeness.DIFFERENT, largest
    return likeness, largest
