"""What a run of the benchmark leaves: blocks as they were measured, rows and verdicts from them.

The JSON file is these structs. Units stand at the end of names; ``us`` is microseconds.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from benchmarks.router.book import Counts

FORMAT = 1


class Mode(enum.StrEnum):
    """How requests are served: by one worker, or by a prefill and then a decode worker."""

    PLAIN = "plain"
    PD = "pd"


class Cell(msgspec.Struct, frozen=True):
    """What is measured of each target: one mode, one concurrency, whole answers or streams."""

    mode: Mode
    concurrency: int
    stream: bool = False

    @property
    def name(self) -> str:
        """Such as ``pd c16``, ``plain sse16``."""
        return f"{self.mode} {'sse' if self.stream else 'c'}{self.concurrency}"


class Block(msgspec.Struct, kw_only=True):
    """One target measured once in one cell.

    Attributes:
        target: its name.
        cell: what was measured.
        round: counts from 0.
        wall_s: how long.
        requests: good answers (of a stream block: streams).
        events: of streams, in the measured window.
        failures: requests without a good answer.
        detail: what was wrong with the first failure, or why nothing was measured.
        router_cpu_s: of all processes of the router; None for ``direct``.
        client_cpu_s, workers_cpu_s: of the client and of the mock, to see who is the bottleneck.
        counts: what the mock workers saw of the handoff.
        latencies_ms: p50 and p99: of whole answers from the send to the last byte; of streams how
            much later than on an even grid an event came.
        first_event_ms: of streams, p50 of the time from the send to the first event.
    """

    target: str
    cell: Cell
    round: int
    wall_s: float = 0.0
    requests: int = 0
    events: int = 0
    failures: int = 0
    detail: str = ""
    router_cpu_s: float | None = None
    client_cpu_s: float = 0.0
    workers_cpu_s: float = 0.0
    counts: Counts = msgspec.field(default_factory=Counts)
    latencies_ms: tuple[float, float] | None = None
    first_event_ms: float | None = None

    @property
    def measured(self) -> bool:
        """Whether there is anything to count."""
        return self.latencies_ms is not None

    @property
    def cpu_us(self) -> float | None:
        """CPU of the router per request, or per event of a stream block."""
        done = self.events if self.cell.stream else self.requests
        if self.router_cpu_s is None or not done:
            return None
        return self.router_cpu_s / done * 1e6


class Spread(msgspec.Struct, frozen=True):
    """A figure over all rounds together, and the least and the most of a single round."""

    value: float
    low: float
    high: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A target in a cell, over all rounds.

    Attributes:
        target, cell: which.
        cpu_us: CPU of the router per request or per event; None for ``direct``.
        p50_ms, p99_ms: pooled over rounds; see ``Block.latencies_ms``.
        first_event_ms: median of the rounds; None for whole answers.
        per_s: requests or events a second.
        client_us, workers_us: CPU of client and mock per request or event.
        failures: over all rounds.
        notes: what the target did not do.
    """

    target: str
    cell: Cell
    cpu_us: Spread | None
    p50_ms: float
    p99_ms: float
    first_event_ms: float | None
    per_s: float
    client_us: float
    workers_us: float
    failures: int
    notes: tuple[str, ...] = ()


class Ratio(msgspec.Struct, frozen=True):
    """CPU of ours by that of a peer, in one cell."""

    cell: Cell
    peer: str
    ratio: Spread


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One target of the project.

    Attributes:
        what: in words.
        limit: the bound; a figure at or below it meets the target.
        unit: of the figures.
        reached: None where it could not be measured.
        met: None likewise.
        remark: why not, or what weakens it.
    """

    what: str
    limit: float
    unit: str
    reached: Spread | None
    met: bool | None
    remark: str = ""


class Report(msgspec.Struct, kw_only=True):
    """The whole result.

    Attributes:
        began: ISO 8601 with the offset, UTC.
        took_s: how long it ran.
        command: the command line.
        settings: of this run, by flag.
        machine, versions, commit: where it was made; see ``benchmarks.history.Environment``.
        commands: how each router was started, by ``target mode``.
        client_first: whether the client could run before all others (see ``first_in_line``).
        problems: what could not be measured.
    """

    format: int = FORMAT
    began: str
    took_s: float = 0.0
    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    commands: dict[str, str] = {}
    client_first: bool = False
    rows: list[Row] = []
    ratios: list[Ratio] = []
    verdicts: list[Verdict] = []
    problems: list[str] = []
    blocks: list[Block] = []
