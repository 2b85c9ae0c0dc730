"""What a run will send, decided before it starts: the contract between workloads and load.

A plan is a pure function of a workload, a seed and a scale. It names no text: a prompt is a row
of pieces, and equal keys mean equal text, which is how prefixes are shared. Which text a key
stands for depends on the run's salt, so that the same plan never meets a warm prefix cache twice.
Nothing here sends, waits or draws lots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Service level of one class of requests, in seconds; None asks for nothing.

    A request is good when it succeeded and meets every bound that applies to it: an answer of
    one token has no TPOT, which then neither passes nor fails.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


class Piece(msgspec.Struct, frozen=True):
    """A stretch of a prompt: ``tokens`` tokens of the text that ``key`` stands for."""

    key: str
    tokens: int


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a plan.

    Attributes:
        index: unique in the plan; for a request of a lane, unique in its lane.
        class_name: the class of the workload it belongs to, such as ``short``.
        at_s: open loop: when to send it, in seconds after the start of the run. None for a
            request that follows another one or belongs to a lane.
        lane: closed loop: requests of one lane are sent one at a time, each when the one before
            has ended. None in open loop.
        session: requests of one session are one conversation: each is sent with the prompts and
            answers before it in front. None for a single request.
        after: index of the session's request that must have ended before. None for the first.
        think_s: pause between the end of ``after`` (or of the lane's previous request) and this.
        pieces: the new text of the prompt, in order.
        output_tokens: length that the answer is forced to; None leaves it to the model.
        model: name to ask for; None for the target's.
        tenant: sent as the OpenAI ``user`` field. None sends none.
        priority: vLLM's ``priority``. None sends none.
    """

    index: int
    class_name: str
    pieces: tuple[Piece, ...]
    at_s: float | None = None
    lane: str | None = None
    session: str | None = None
    after: int | None = None
    think_s: float = 0.0
    output_tokens: int | None = None
    model: str | None = None
    tenant: str | None = None
    priority: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the new text, as planned; chat templates and earlier turns come on top."""
        return sum(piece.tokens for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Lane:
    """One place of a closed loop: its ``k``-th request is ``draw(k)``, a pure function of k.

    ``requests`` bounds their number; None sends until the run's duration is over.
    """

    name: str
    class_name: str
    draw: Callable[[int], PlannedRequest]
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run sends, and what is needed to judge it.

    Attributes:
        workload: its name.
        version: first 12 hex digits of the SHA-256 of the workload, defaults filled in, of the
            trace's content, the seed and the scale: equal versions mean equal schedules.
        seed: everything drawn came from it.
        duration_s: when sending ends. Requests in flight are then awaited.
        requests: open loop and sessions, by ``at_s`` and then index.
        lanes: closed loop.
        slos: by class; the service levels that the workload itself asks for.
        trace_sha256: content hash of the trace file, if there is one.
        dropped: how many rows of the trace were left out, by reason (``too_long``, ``failed``).
    """

    workload: str
    version: str
    seed: int
    duration_s: float
    requests: Sequence[PlannedRequest] = ()
    lanes: Sequence[Lane] = ()
    slos: Mapping[str, Slo] = field(default_factory=dict)
    trace_sha256: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, sorted."""
        names = {request.class_name for request in self.requests}
        return tuple(sorted(names | {lane.class_name for lane in self.lanes}))

    @property
    def offered_rps(self) -> float | None:
        """Open-loop requests (sessions count with all their turns) per second, or None."""
        return len(self.requests) / self.duration_s if self.requests else None

    def shard(self, index: int, count: int) -> Plan:
        """The part that process ``index`` of ``count`` sends: every request is in exactly one
        part, and a session stays whole."""
        owner: dict[int, int] = {}
        turn = 0
        for request in self.requests:
            if request.after is None:
                owner[request.index] = turn % count
                turn += 1
        pending = [request for request in self.requests if request.after is not None]
        while pending:
            left = []
            for request in pending:
                assert request.after is not None
                if request.after in owner:
                    owner[request.index] = owner[request.after]
                else:
                    left.append(request)
            if len(left) == len(pending):
                raise ValueError(f"request {left[0].index} follows one that is not in the plan")
            pending = left
        return replace(
            self,
            requests=tuple(r for r in self.requests if owner[r.index] == index),
            lanes=tuple(lane for n, lane in enumerate(self.lanes) if n % count == index),
        )
