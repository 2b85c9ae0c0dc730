"""What the router counts and times: one method per event, so that call sites stay one line.

The numbers live in ``router.observe.hot``, their meaning in ``router.observe.families``. Gauges
that can be read from another part's state (queue depth, breakers, pairs) are *pulled*: the part
gives a callable once and no request pays for them.

It refuses to decide anything and to hold anything of a single request; what a stream needs until
its end is in ``ItlRecorder``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric

import baton
from baton.telemetry import once_per_s
from router.observe import families as f
from router.observe.hot import (
    Counter,
    Family,
    Histogram,
    Instrument,
    Kind,
    Labels,
    Pull,
    Pulled,
)
from router.observe.render import OPENMETRICS, TEXT, Page, Readings, collect

log = logging.getLogger("baton.router.metrics")

_STATUS: Final = {status: str(status) for status in range(100, 600)}
_ITL_BOUNDS_S: Final[tuple[float, ...]] = f.ITL_BOUNDS_S
_FIRST: Final = (
    (f.HANDOFFS, ("done", "failed", "expired", "aborted")),
    (f.RECLAIMED, ("released", "lease")),
    (f.CANARY, ("ok", "mismatched", "unknown")),
    (f.SWITCHES, ("committed", "rolled_back", "refused")),
    (f.SHED, ("full", "shed", "expired", "deadline", "no_worker")),
)
"""Series shown with 0 from the start: a rate over a counter misses the event that makes it."""


class ItlRecorder:
    """Gaps between the content events of one stream, counted where they happen.

    ``tick`` costs about a tenth of a microsecond; the router adds the whole to its histograms when
    the stream ends (``RouterMetrics.stream_done``).
    """

    __slots__ = ("_at", "_counts", "_high_s", "_low_s", "_same", "first_s", "last_s")

    def __init__(self) -> None:
        self.first_s: float | None = None
        """When the first content was passed on, on the monotonic clock."""
        self.last_s = 0.0
        """When the last one was."""
        self._counts: list[int] = []
        # Most gaps fall into the bucket of the one before, so that is looked at first.
        self._at = 0
        self._low_s = self._high_s = 0.0
        self._same = 0

    def tick(self, now_s: float) -> None:
        """Content is passed on at ``now_s``, which never goes back."""
        gap_s = now_s - self.last_s
        self.last_s = now_s
        if self._low_s < gap_s <= self._high_s:
            self._same += 1
        elif self.first_s is None:
            self.first_s = now_s
        else:
            self._enter(gap_s)

    def _enter(self, gap_s: float) -> None:
        """Counts a gap of another bucket, mostly the next, which is looked at first from now on."""
        counts = self._counts
        if not counts:
            counts = self._counts = [0] * (len(_ITL_BOUNDS_S) + 1)
        self._settle()
        at = self._at
        while at < len(_ITL_BOUNDS_S) and gap_s > _ITL_BOUNDS_S[at]:
            at += 1
        while at > 0 and gap_s <= _ITL_BOUNDS_S[at - 1]:
            at -= 1
        counts[at] += 1
        self._at = at
        self._low_s = _ITL_BOUNDS_S[at - 1] if at else -math.inf
        self._high_s = _ITL_BOUNDS_S[at] if at < len(_ITL_BOUNDS_S) else math.inf

    def _settle(self) -> None:
        if self._same:
            self._counts[self._at] += self._same
            self._same = 0

    @property
    def span_s(self) -> float:
        """From the first content to the last: also the sum of all gaps."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    @property
    def gaps(self) -> list[int]:
        """Gaps per bucket of ``ITL_BOUNDS_S``; empty before the second content."""
        self._settle()
        return self._counts


class RouterMetrics:
    """All metrics of one router process.

    Attributes:
        registry: for whoever wants the Python client's view; ``render`` is the fast way.
        in_flight: requests being served; kept by ``request_began`` and ``request_done``.
        handoffs_open: set by the ledger.

    Args:
        process: whether to add the client's process, platform and garbage collector metrics.
    """

    def __init__(self, *, process: bool = True) -> None:
        self._instruments: dict[str, Instrument] = {}
        self._overflow = Counter(f.OVERFLOW, lambda metric: None)
        self.requests = self._counter(f.REQUESTS)
        self.duration = self._histogram(f.DURATION)
        self.attempts = self._histogram(f.ATTEMPTS)
        self.ttft = self._histogram(f.TTFT)
        self.itl = self._histogram(f.ITL)
        self.tpot = self._histogram(f.TPOT)
        self.queue = self._histogram(f.QUEUE)
        self.prefill_leg = self._histogram(f.PREFILL_LEG)
        self.decode_first = self._histogram(f.DECODE_FIRST)
        self.counting = self._histogram(f.COUNTING)
        self.prompt_tokens = self._histogram(f.PROMPT_TOKENS)
        self.uncached_tokens = self._histogram(f.UNCACHED_TOKENS)
        self.output_tokens = self._histogram(f.OUTPUT_TOKENS)
        self.decisions = self._counter(f.DECISIONS)
        self.prediction_error = self._histogram(f.PREDICTION_ERROR)
        self.handoffs = self._counter(f.HANDOFFS)
        self.kv_bytes = self._counter(f.KV_BYTES)
        self.reclaimed = self._counter(f.RECLAIMED)
        self.canary = self._counter(f.CANARY)
        self.leg_failures = self._counter(f.LEG_FAILURES)
        self.shed = self._counter(f.SHED)
        self.tenant_requests = self._counter(f.TENANT_REQUESTS)
        self.tenant_tokens = self._counter(f.TENANT_TOKENS)
        self.switches = self._counter(f.SWITCHES)
        self.in_flight = 0
        self.handoffs_open = 0
        for family in f.ALL:
            if family.kind is Kind.GAUGE:
                self._instruments[family.name] = Pulled(family, self._overflowed)
        self._instruments[f.OVERFLOW.name] = self._overflow
        # In the order of the documentation.
        self._instruments = {family.name: self._instruments[family.name] for family in f.ALL}
        self.pull(f.IN_FLIGHT.name, lambda: {(): self.in_flight})
        self.pull(f.HANDOFFS_OPEN.name, lambda: {(): self.handoffs_open})
        self.pull(f.BUILD_INFO.name, lambda: {(baton.__version__,): 1})
        for family, values in _FIRST:
            counter = self._instruments[family.name]
            assert isinstance(counter, Counter)
            for value in values:
                counter.prime((value,))
        self._page = Page()
        self._others = CollectorRegistry()
        self.registry = CollectorRegistry()
        self.registry.register(_Collector(self))
        if process:
            for registry in (self._others, self.registry):
                ProcessCollector(registry=registry)
                PlatformCollector(registry=registry)
                GCCollector(registry=registry)

    # --- a request ---

    def request_began(self) -> None:
        """A request is being served; ``request_done`` must follow, whatever happens."""
        self.in_flight += 1

    def request_done(
        self,
        *,
        endpoint: str,
        path: str,
        reason: str,
        profile_version: str,
        status: int,
        duration_s: float,
        ttft_s: float | None = None,
        attempts: int = 0,
        prompt_tokens: int | None = None,
        uncached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """A request ended, well or not.

        Args:
            endpoint: the route, such as ``/v1/completions``; never the client's own text.
            path: ``disaggregated`` or ``local``; empty where it was turned away before.
            reason: why that path, or why it was turned away.
            profile_version: of the profile that it was served under.
            status: as sent; 499 for a client that left.
            duration_s: from the request's last byte to the answer's last.
            ttft_s: to the first content sent on; of streams.
            attempts: 0 where it was never sent to a worker; not observed then.
            prompt_tokens: where they were counted or reported.
            uncached_tokens: of these, not held by the decode worker, as estimated.
            output_tokens: from the answer's usage.
        """
        self.in_flight -= 1
        told = _STATUS.get(status) or str(status)
        self.requests.add((endpoint, path, reason, told, profile_version))
        self.duration.observe((endpoint, path, profile_version), duration_s)
        if ttft_s is not None:
            self.ttft.observe((path, profile_version), ttft_s)
        if attempts:
            self.attempts.observe((), attempts)
        if prompt_tokens is not None:
            self.prompt_tokens.observe((), prompt_tokens)
        if uncached_tokens is not None:
            self.uncached_tokens.observe((), uncached_tokens)
        if output_tokens is not None:
            self.output_tokens.observe((), output_tokens)

    def stream_done(
        self, path: str, profile_version: str, itl: ItlRecorder, output_tokens: int | None = None
    ) -> None:
        """A stream ended: its gaps, and its time per token where the tokens are known."""
        gaps = itl.gaps
        if gaps:
            self.itl.merge((path, profile_version), gaps, itl.span_s)
            if output_tokens is not None and output_tokens > 1:
                tpot_s = itl.span_s / (output_tokens - 1)
                self.tpot.observe((path, profile_version), tpot_s)

    def decided(self, decider: str, reason: str, profile_version: str) -> None:
        """A decider chose between local and disaggregated."""
        self.decisions.add((decider, reason, profile_version))

    def predicted(self, path: str, predicted_s: float, measured_s: float) -> None:
        """A predicted time to first content and what came of it; nothing where one is no time."""
        if measured_s > 0 and math.isfinite(predicted_s):
            side = "over" if predicted_s > measured_s else "under"
            error = abs(predicted_s - measured_s) / measured_s
            self.prediction_error.observe((path, side), error)

    def tenant_done(
        self, tenant: str, outcome: str, *, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        """A tenant's request ended.

        Args:
            tenant: its name; never its key.
            outcome: ``ok``, ``client_error``, ``limited``, ``failed`` or ``gone``.
            prompt_tokens: as reported or counted.
            output_tokens: as reported.
        """
        self.tenant_requests.add((tenant, outcome))
        if prompt_tokens:
            self.tenant_tokens.add((tenant, "prompt"), prompt_tokens)
        if output_tokens:
            self.tenant_tokens.add((tenant, "output"), output_tokens)

    # --- the parts behind ---

    def leg_failed(self, leg: str, code: str | None) -> None:
        """A leg failed before the client had its first content."""
        self.leg_failures.add((leg, code or "other"))

    def handoff_ended(self, state: str) -> None:
        """A handoff left the open ones."""
        self.handoffs.add((state,))

    def handoff_reclaimed(self, how: str) -> None:
        """Stranded blocks are free again; ``how`` is ``released`` or ``lease``."""
        self.reclaimed.add((how,))

    # --- reading ---

    def pull(self, name: str, read: Pull) -> None:
        """Reads a gauge, or a counter that another part keeps, from ``read`` at every scrape.

        The last callable given counts; what was added to such a counter here is not shown any more.

        Args:
            name: a gauge or counter of ``families.ALL``.
            read: returns a value per tuple of label values; runs in the scrape and must be quick.

        Raises:
            ValueError: no such gauge or counter; a bug.
        """
        family = f.BY_NAME.get(name)
        if family is None or family.kind is Kind.HISTOGRAM:
            raise ValueError(f"{name} is no gauge or counter of the router's")
        pulled = self._instruments[name]
        if not isinstance(pulled, Pulled):
            pulled = self._instruments[name] = Pulled(family, self._overflowed)
        pulled.read_from(read)

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics for an ``Accept`` that names it, else
        Prometheus's text format."""
        openmetrics = accept is not None and "application/openmetrics-text" in accept
        page = self._page.write(self._readings(), self._others, openmetrics=openmetrics)
        return page, OPENMETRICS if openmetrics else TEXT

    def _readings(self) -> Readings:
        found: list[tuple[Instrument, dict[Labels, float]]] = []
        for name, instrument in self._instruments.items():
            pulled: dict[Labels, float] = {}
            if isinstance(instrument, Pulled):
                try:
                    pulled = dict(instrument.read())
                except Exception:
                    # One part's fault must not hide the others' numbers.
                    once_per_s(log, logging.ERROR, name, "%s cannot be read", name, exc_info=True)
            found.append((instrument, pulled))
        return found

    def _overflowed(self, metric: str) -> None:
        self._overflow.add((metric,))

    def _counter(self, family: Family) -> Counter:
        counter = Counter(family, self._overflowed)
        self._instruments[family.name] = counter
        return counter

    def _histogram(self, family: Family) -> Histogram:
        histogram = Histogram(family, self._overflowed)
        self._instruments[family.name] = histogram
        return histogram


class _Collector:
    """What the Python client's registry asks."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return collect(self._metrics._readings())
