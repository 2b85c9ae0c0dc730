"""When a worker is taken out of traffic and when it comes back: the breaker of one worker.

Pure: time, chance and the results of probes come from outside. Its promise is that requests alone
never take a sound worker out. A broken connection opens the breaker at once, because nothing can
be served over it; everything else (timeouts, 5xx, error events) may be the request's fault, so it
only raises a suspicion, which a probe by the router itself decides. What a client did wrong, and a
client that leaves, are no faults, and must not be reported here.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from baton.errors import PeerFault, WorkerUnreachable
from baton.types import EngineId, RequestId

SUSPICIOUS_AFTER = 3
"""Faults of distinct requests, with no success in between. One bad request and its retries are one
id; three in a row from three requests are either three poison requests or a sick worker."""
FIRST_PROBE_S = 0.5
LONGEST_PROBE_S = 5.0
"""Pauses between the probes of an open breaker: doubled from the first to the longest. A worker
that is well again is back within the longest."""
JITTER = 0.25
"""Share by which a pause is shortened or lengthened, so that routers do not probe in step."""


class BreakerState(enum.StrEnum):
    """CLOSED and SUSPICIOUS take traffic, the others do not. HALF_OPEN: open, and being probed."""

    CLOSED = "closed"
    SUSPICIOUS = "suspicious"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True, eq=False)
class Breaker:
    """One worker's, for one run of its engine.

    Attributes:
        engine_id: the run. Another run gets another breaker.
        reason: why it left CLOSED, or the last probe's failure.
        since_s: when it came into its state, monotonic; HALF_OPEN counts from OPEN.
        failed_probes: in a row.
    """

    engine_id: EngineId
    since_s: float
    state: BreakerState = BreakerState.CLOSED
    reason: str = ""
    failed_probes: int = 0
    _faulty: tuple[RequestId, ...] = ()

    @property
    def takes_traffic(self) -> bool:
        """Whether requests may be sent."""
        return self.state in (BreakerState.CLOSED, BreakerState.SUSPICIOUS)

    @property
    def spotless(self) -> bool:
        """Closed, and no faults counted: as good as none at all."""
        return self.state is BreakerState.CLOSED and not self._faulty

    def fault(self, error: PeerFault, request_id: RequestId, now_s: float) -> None:
        """A leg failed by the worker's fault, as far as the leg can tell."""
        if not self.takes_traffic:
            return
        if isinstance(error, WorkerUnreachable):
            self._enter(BreakerState.OPEN, error.message, now_s)
        elif request_id not in self._faulty and self.state is BreakerState.CLOSED:
            self._faulty += (request_id,)
            if len(self._faulty) >= SUSPICIOUS_AFTER:
                self._enter(BreakerState.SUSPICIOUS, error.message, now_s)

    def success(self, now_s: float) -> None:
        """A leg succeeded. Says nothing of an open breaker: the leg may be older than its end."""
        if self.takes_traffic:
            self._close(now_s)

    def pause_s(self, rng: random.Random) -> float:
        """Seconds to wait before the next probe; 0 for a suspicion."""
        if self.state is BreakerState.SUSPICIOUS:
            return 0.0
        pause_s = min(LONGEST_PROBE_S, FIRST_PROBE_S * 2.0 ** min(self.failed_probes, 10))
        return pause_s * (1 - JITTER + 2 * JITTER * rng.random())

    def probe_began(self) -> None:
        """A probe is on its way."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN

    def probe_ended(self, failure: str | None, now_s: float) -> None:
        """The probe's result: what was wrong, or None."""
        if self.state is BreakerState.CLOSED:
            return  # a request succeeded meanwhile
        if failure is not None:
            self.failed_probes += 1
            self._enter(BreakerState.OPEN, failure, now_s)
        elif self.state is not BreakerState.OPEN:
            self._close(now_s)
        # OPEN, and not HALF_OPEN: the connection broke while the probe of a mere suspicion was
        # under way, and it may have passed before that. The next probe will say.

    def _close(self, now_s: float) -> None:
        self._faulty = ()
        self.failed_probes = 0
        if self.state is not BreakerState.CLOSED:
            self._enter(BreakerState.CLOSED, "", now_s)

    def _enter(self, state: BreakerState, reason: str, now_s: float) -> None:
        if not (state is BreakerState.OPEN and self.state is BreakerState.HALF_OPEN):
            self.since_s = now_s
        self.state = state
        self.reason = reason
