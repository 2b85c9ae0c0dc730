"""One request on its way through the router: what it is, what is known of it, how a leg fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from baton.errors import BatonError
from baton.types import RequestId, WorkerId, WorkerRecord
from router.api import GenerateRequest, Usage
from router.observe import NO_SPAN, RequestSpan
from router.observe import attributes as names
from router.policy import Prediction, Reason, TokenBounds
from router.prefix import Chain
from router.serving import Serving
from router.wire import Exchange

Headers = list[tuple[str, str]]

EARLY_S = 0.005
"""By what a timer may come before its time: event loops count in milliseconds, from when they last
looked at the clock. What ends a request at its deadline must not count as anybody's fault."""


def is_fault(status: int) -> bool:
    """Whether a worker's answer is its own fault: 5xx, or a cluster token that it does not take.

    501 is none: vLLM says so of what it cannot do for anybody (``NotImplementedError``).
    """
    return (status >= 500 and status != 501) or status == 401


class Reply(Protocol):
    """The way back to the client (``router.wire.Exchange``)."""

    @property
    def started(self) -> bool:
        """Whether status and headers are on their way."""
        ...

    def start(
        self, status: int, headers: Sequence[tuple[str, str]], *, length: int | None = None
    ) -> None:
        """Status and headers; once."""
        ...

    def write(self, data: bytes) -> None:
        """A part of the body."""
        ...

    def writer(self) -> Callable[[bytes], None]:
        """What writes the parts after the first; none of them is empty."""
        ...

    def chunk_writer(self) -> Exchange | None:
        """Where parts that bear HTTP's framing already can be written; None if they cannot."""
        ...

    def end(self, data: bytes = b"") -> None:
        """The last part."""
        ...

    def reply(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """A whole answer."""
        ...

    def on_congestion(self, callback: Any) -> None:
        """Has ``callback(True)`` called when the client takes nothing, ``callback(False)`` when
        it does again."""
        ...


class Trail:
    """What is known of a request's way, for headers, metrics, spans and logs.

    Attributes:
        serving: the profile that it is served under, to its end.
        own_limit: whether a limit that the client named ended it.

    Times are in seconds; those that end in ``_at_s`` are moments of the monotonic clock, None
    until they come. ``path`` is ``disaggregated`` or ``local``, or ``none`` before a plan stands.
    """

    path: str = "none"
    reason: str = "none"
    decider: str = ""
    prompt_tokens: TokenBounds | None = None
    uncached_tokens: int | None = None
    predicted: Prediction | None = None
    attempts: int = 0
    prefill: WorkerId | None = None
    decode: WorkerId | None = None
    status: int = 0
    queue_s: float = 0.0
    count_s: float = 0.0
    prefill_s: float | None = None
    answering_at_s: float | None = None
    first_content_at_s: float | None = None
    kv_bytes: int = 0
    usage: Usage | None = None
    events: int = 0
    error: str = ""
    own_limit: bool = False

    def __init__(self, began_s: float, serving: Serving) -> None:
        self.began_s = began_s
        self.serving = serving

    @property
    def ttft_s(self) -> float | None:
        """Until the first content, from the request's last byte; None without one."""
        return _since(self.began_s, self.first_content_at_s)

    @property
    def output_tokens(self) -> int:
        """Of the answer: as the engine says, else as many as there were events."""
        return self.events if self.usage is None else self.usage.output_tokens

    @property
    def known_prompt_tokens(self) -> int | None:
        """Of the prompt, where the number is certain."""
        if self.usage is not None:
            return self.usage.prompt_tokens
        bounds = self.prompt_tokens
        return bounds.lower if bounds is not None and bounds.exact else None

    def headers(self, *, explain: bool) -> Headers:
        """The ``x-baton-*`` headers."""
        serving = self.serving
        headers = [
            ("x-baton-profile", serving.name),
            ("x-baton-profile-version", serving.version),
        ]
        if self.path != "none":
            headers += [("x-baton-path", self.path), ("x-baton-reason", self.reason)]
        if self.prompt_tokens is not None:
            headers.append(("x-baton-prompt-tokens", str(self.prompt_tokens)))
        if explain:
            told = msgspec.json.encode(self.explanation()).decode("ascii", "replace")
            headers.append(("x-baton-explain", told))
        return headers

    def explanation(self) -> dict[str, Any]:
        """Everything that is known by now; what is not known is left out. Times in ms."""
        first_s = _since(self.answering_at_s, self.first_content_at_s)
        told: dict[str, Any] = {
            "path": self.path,
            "reason": self.reason,
            "decider": self.decider or None,
            "prompt_tokens": None if self.prompt_tokens is None else str(self.prompt_tokens),
            "uncached_tokens": self.uncached_tokens,
            "attempts": self.attempts,
            "workers": [w for w in (self.prefill, self.decode) if w is not None],
            "profile_version": self.serving.version,
            "queue_ms": _ms(self.queue_s),
            "count_ms": _ms(self.count_s),
            "prefill_ms": _ms(self.prefill_s),
            "first_content_ms": _ms(first_s),
            "ttft_ms": _ms(self.ttft_s),
            "kv_bytes": self.kv_bytes or None,
            "predicted": self.predicted,
        }
        return {key: value for key, value in told.items() if value is not None}

    def attributes(self, tenant: str | None) -> dict[str, str | int | float | bool | None]:
        """The same for a span."""
        predicted, usage = self.predicted, self.usage
        return {
            names.PATH: self.path,
            names.REASON: self.reason,
            names.PROMPT_TOKENS: None if self.prompt_tokens is None else str(self.prompt_tokens),
            names.UNCACHED_TOKENS: self.uncached_tokens,
            names.PREDICTED_LOCAL_S: None if predicted is None else predicted.local_s,
            names.PREDICTED_REMOTE_S: None if predicted is None else predicted.remote_s,
            names.TTFT_S: self.ttft_s,
            names.PREFILL_WORKER: self.prefill,
            names.DECODE_WORKER: self.decode,
            names.ATTEMPTS: self.attempts,
            names.TENANT: tenant,
            names.PROFILE: self.serving.name,
            names.PROFILE_VERSION: self.serving.version,
            names.KV_BYTES: self.kv_bytes or None,
            names.INPUT_TOKENS: self.known_prompt_tokens,
            names.CACHED_TOKENS: None if usage is None else usage.cached_tokens,
            names.OUTPUT_TOKENS: self.output_tokens,
        }


def _since(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class Call:
    """One request while it is served.

    Attributes:
        ends_s: its last moment, on the monotonic clock.
        task: the one that serves it.
        serving: the trail's.
        limited_by_client: whether the client named that moment, not the profile.
        span: its trace, if there is one.
        explain: whether the client wants to be told why.
        chain: hashes of the prompt's prefix, for what workers have cached.
        prefill_usage: what prefill said of the prompt, once it has.
        failed: workers that have failed this request, which gets nothing more from them.
    """

    prefill_usage: Usage | None = None

    def __init__(
        self,
        request: GenerateRequest,
        request_id: RequestId,
        reply: Reply,
        trail: Trail,
        ends_s: float,
        *,
        task: asyncio.Task[None] | None = None,
        limited_by_client: bool = False,
        span: RequestSpan = NO_SPAN,
        explain: bool = False,
        session: str | None = None,
        chain: Chain = (),
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.reply = reply
        self.trail = trail
        self.serving = trail.serving
        self.ends_s = ends_s
        self.task = task
        self.limited_by_client = limited_by_client
        self.span = span
        self.explain = explain
        self.session = session
        self.chain = chain
        self.failed: set[WorkerId] = set()

    def is_over(self, now_s: float) -> bool:
        """Whether its last moment has come."""
        return now_s >= self.ends_s - EARLY_S

    def left_s(self, now_s: float, most_s: float) -> float:
        """Seconds that a wait may take: ``most_s``, or less near the end of the request."""
        left_s = self.ends_s - now_s
        return most_s if left_s > most_s else max(0.001, left_s)


class LegFault(Exception):
    """A leg failed before the client had anything.

    Attributes:
        error: what happened.
        reason: what a retry is put down to.
        failed: workers that are at fault for certain, and get nothing more of this request.
        doubted: workers that may be at fault, and get it only if nobody else is there.
    """

    def __init__(
        self,
        error: BatonError,
        reason: Reason,
        *,
        failed: Sequence[WorkerRecord] = (),
        doubted: Sequence[WorkerRecord] = (),
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason
        self.failed = tuple(worker.id for worker in failed)
        self.doubted = tuple(worker.id for worker in doubted)
