"""What is read of engines' answers, as types for msgspec's decoders, which skip the rest.

Apart from the code that uses them, since decoders read annotations, and a compiled module keeps
none.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Details(msgspec.Struct):
    """How a count of prompt tokens is made up."""

    cached_tokens: int | None = None
    created_cache_tokens: int | None = None
    cache_write_tokens: int | None = None


class RawUsage(msgspec.Struct):
    """``usage`` of all APIs at once: the names do not clash."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Whole(msgspec.Struct):
    """A whole answer."""

    usage: RawUsage | None = None


class Prefill(msgspec.Struct):
    """The answer to a prefill body."""

    usage: RawUsage
    kv_transfer_params: dict[str, Any]


class Event(msgspec.Struct):
    """An event of a stream."""

    usage: RawUsage | None = None
    response: Whole | None = None
