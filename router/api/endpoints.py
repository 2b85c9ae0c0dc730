"""What there is to ask for, and what is known of a request once it is parsed.

It exists so that every other part names endpoints, dialects and reasons in one vocabulary. It
holds no behaviour but look-ups in small tables.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec


class Dialect(enum.Enum):
    """How an endpoint's stream is written, and how its clients are told of an error."""

    OPENAI = enum.auto()
    """``data:`` lines only, the last of them ``[DONE]``."""
    RESPONSES = enum.auto()
    """Named events of the Responses API; ``response.completed`` is the last, no ``[DONE]``."""
    MESSAGES = enum.auto()
    """Named events of the Anthropic API; ``message_stop`` is the last, no ``[DONE]``."""


class Endpoint(enum.StrEnum):
    """What clients may post to; the value is the path, on the engine as well."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    EMBEDDINGS = "/v1/embeddings"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"

    @property
    def dialect(self) -> Dialect:
        """The dialect of its streams and errors."""
        return _DIALECTS.get(self, Dialect.OPENAI)


GENERATING: Final = (
    Endpoint.COMPLETIONS,
    Endpoint.CHAT,
    Endpoint.RESPONSES,
    Endpoint.MESSAGES,
)
"""Those that generate text: parsed by ``parse_request``, may be handed over."""

PASSED_THROUGH: Final = (Endpoint.EMBEDDINGS, Endpoint.TOKENIZE, Endpoint.DETOKENIZE)
"""Those that one worker answers: parsed by ``parse_passthrough``."""

_DIALECTS: Final[Mapping[Endpoint, Dialect]] = {
    Endpoint.RESPONSES: Dialect.RESPONSES,
    Endpoint.MESSAGES: Dialect.MESSAGES,
}


class LocalReason(enum.StrEnum):
    """Why a request must be served by one engine alone.

    For the first three a handoff gives HTTP 200 with wrong text or none at all. With prompt
    logprobs, asked for or implied by ``echo``, decode computes the whole prompt anyway.
    """

    PROMPT_LIST = "prompt_list"
    SEVERAL_CHOICES = "several_choices"
    BEAM_SEARCH = "beam_search"
    PROMPT_LOGPROBS = "prompt_logprobs"
    ECHO_LOGPROBS = "echo_logprobs"
    PROMPT_EMBEDS = "prompt_embeds"
    """No token ids by which the prompts of prefill and decode could be compared."""
    MEDIA = "media"
    """An image or a sound behind a URL is fetched by each engine, perhaps not the same one."""
    TRUNCATION = "truncation"
    """The cut depends on an engine's context length and on the token limit, which prefill lacks."""
    RESPONSE_STATE = "response_state"
    """Needs what one engine keeps (``previous_response_id``, ``background``, ``item_reference``),
    or input that only an engine knows how to read."""
    ENGINE_TOOLS = "engine_tools"
    """The engine itself runs the tools and generates again with the same sampling parameters, the
    transfer parameters among them: used twice."""
    FORCED_TOOL = "forced_tool"
    """``/v1/messages`` reads the arguments of a forced tool call as JSON; prefill's single token
    is none, so prefill would answer 400 and hold the blocks until its lease ends."""
    UNSTABLE_PROMPT = "unstable_prompt"
    """The engine writes something of its own into the prompt: the time, for a tool's missing id."""


class GenerateRequest(msgspec.Struct, frozen=True, eq=False):
    """A request that may be dispatched.

    ``body`` is what the engine will get, without transfer parameters; nobody changes it.
    ``local_reason`` is None where a handoff is allowed. ``stripped`` says that the client tried to
    set transfer parameters. ``max_new_tokens`` is None where only the context length limits it.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    body: dict[str, Any]
    local_reason: LocalReason | None
    stripped: bool
    max_new_tokens: int | None


class PassthroughRequest(msgspec.Struct, frozen=True, eq=False):
    """A request that one worker answers as it is.

    ``body`` is what the engine will get, encoded, without transfer parameters.
    """

    endpoint: Endpoint
    model: str
    body: bytes
    stripped: bool
