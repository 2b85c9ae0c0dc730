"""One request on its way through the router: what it is, what is known of it, how a leg fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from baton.clock import Clock
from baton.errors import BatonError
from baton.types import RequestId, WorkerId
from router.policy import Reason, TokenBounds
from router.requests import GenerateRequest

Headers = list[tuple[str, str]]


class Reply(Protocol):
    """The way back to the client."""

    async def start(self, status: int, headers: Headers) -> None:
        """Sends status and headers; once."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Sends a part of the body."""
        ...


@dataclass(slots=True)
class Trail:
    """What is known of a request's way, for headers, metrics and logs.

    ``path`` is ``disaggregated`` or ``local``, or ``none`` before a plan stands.
    """

    path: str = "none"
    reason: str = "none"
    prompt_tokens: TokenBounds | None = None
    status: int = 0
    first_content_s: float | None = None

    def headers(self, profile: str) -> Headers:
        """The ``x-baton-*`` headers."""
        headers = [("x-baton-profile", profile)]
        if self.path != "none":
            headers += [("x-baton-path", self.path), ("x-baton-reason", self.reason)]
        if self.prompt_tokens is not None:
            headers.append(("x-baton-prompt-tokens", str(self.prompt_tokens)))
        return headers


@dataclass(frozen=True, slots=True)
class Call:
    """One request while it is served; ``ends_s`` is its last moment, on the monotonic clock."""

    request: GenerateRequest
    request_id: RequestId
    reply: Reply
    trail: Trail
    ends_s: float

    def left_s(self, clock: Clock, most_s: float) -> float:
        """Seconds that a wait may take: ``most_s``, or less near the end of the request."""
        return max(0.001, min(most_s, self.ends_s - clock.monotonic_s()))


class LegFault(Exception):
    """A leg failed before the client had anything.

    Attributes:
        error: what happened.
        reason: what a retry is put down to.
        blamed: the worker that should not get the retry, if one is at fault.
        certain: whether it is sure to be at fault; if not, it is still better than nobody.
    """

    def __init__(
        self, error: BatonError, reason: Reason, blamed: WorkerId | None, *, certain: bool = True
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason
        self.blamed = blamed
        self.certain = certain
