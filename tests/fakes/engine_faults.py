"""What can go wrong with a request to a fake engine, and what is kept of each request."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from tests.fakes.engine_job import GENERATING


class Leg(enum.StrEnum):
    """What a request is to the engine, by its transfer parameters."""

    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"


class Trouble(enum.StrEnum):
    """What goes wrong with a request. Where a point in the stream matters, it is after
    ``Fault.after_chunks`` content events; 0 is after the headers and before the first content."""

    STATUS = "status"
    """``Fault.status`` and an error object, before anything else."""
    ERROR_EVENT = "error event"
    """An error event in a stream, of responses a cut instead; status 500 otherwise."""
    HANG_BEFORE_HEADERS = "hang before headers"
    HANG = "hang"
    CUT_BEFORE_HEADERS = "cut before headers"
    CUT = "cut"
    """The connection is reset."""
    HALF_EVENT = "half event"
    """Half an event is sent, then the connection is reset."""
    SILENT_END = "silent end"
    """The body ends properly, without the stream's last event."""
    NO_PARAMS = "no params"
    """Prefill answers without transfer parameters."""
    NOT_JSON = "not json"
    """Status 200 and something that is not JSON; an event that is not in a stream."""
    DELAY = "delay"
    """Nothing wrong: ``Fault.delay_s`` before the first content."""


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong, for the next ``times`` requests that are ``leg`` (None: any)."""

    trouble: Trouble
    leg: Leg | None = None
    times: int = 1
    after_chunks: int = 0
    status: int = 500
    delay_s: float = 0.0


@dataclass(slots=True, eq=False)
class Seen:
    """A request as the engine saw it.

    Attributes:
        aborted: the client left before the answer was complete.
        finished: the handler has ended, one way or another.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any = None
    leg: Leg = Leg.LOCAL
    aborted: bool = False
    finished: bool = False

    @property
    def generates(self) -> bool:
        """Whether it asks for text."""
        return self.path in GENERATING
