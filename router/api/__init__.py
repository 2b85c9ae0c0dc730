"""The APIs that clients speak: what they asked for, made safe, and what they are told.

Pure: no I/O, no clock. Streams are read and written in ``router.sse``.
"""

from router.api.bodies import decode_body, prefill_body
from router.api.chats import CountQuestion, as_chat, count_question
from router.api.decoding import MAX_DEPTH
from router.api.endpoints import (
    GENERATING,
    PASSED_THROUGH,
    Dialect,
    Endpoint,
    GenerateRequest,
    LocalReason,
    PassthroughRequest,
)
from router.api.errors import as_openai_error, engine_error, error_body, error_object
from router.api.parsing import parse_passthrough, parse_request
from router.api.prompts import greedy, prompt_bytes_of, session_of
from router.api.usage import (
    PrefillAnswer,
    Usage,
    correct_json,
    correct_whole,
    prefill_answer,
    usage_of,
    usage_of_event,
)

__all__ = [
    "GENERATING",
    "MAX_DEPTH",
    "PASSED_THROUGH",
    "CountQuestion",
    "Dialect",
    "Endpoint",
    "GenerateRequest",
    "LocalReason",
    "PassthroughRequest",
    "PrefillAnswer",
    "Usage",
    "as_chat",
    "as_openai_error",
    "correct_json",
    "correct_whole",
    "count_question",
    "decode_body",
    "engine_error",
    "error_body",
    "error_object",
    "greedy",
    "parse_passthrough",
    "parse_request",
    "prefill_answer",
    "prefill_body",
    "prompt_bytes_of",
    "session_of",
    "usage_of",
    "usage_of_event",
]
