"""From blocks to rows, ratios and verdicts. Pure.

A figure over rounds is the sum of CPU by the sum of requests, not a mean of means; beside it stand
the least and the most of a single round, which is all that three rounds can say of how sure it is.
A ratio's spread is over rounds too: the blocks of one round were neighbours in time, so a machine
that was busy was so for both.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.router.book import Counts
from benchmarks.router.records import Block, Cell, Mode, Ratio, Row, Spread, Verdict

OURS = "baton"
DIRECT = "direct"
RUST_PEER = "vllm-router"
"""The peer that the project's targets name."""

MAX_CPU_RATIO = 0.8
MAX_EVENT_RATIO = 0.9
MAX_ADDED_P50_MS = 1.0
TARGET_CONCURRENCY = 16
TARGET_STREAMS = (16, 64)

_TOLERATED_SHARE = 0.01
"""Of requests that took another way than the mode's: a router's own probes and a late start."""

Samples = Mapping[tuple[str, Cell], Sequence[Sequence[float]]]
"""Latencies in seconds, per target and cell, per round."""


def percentiles_ms(samples_s: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds; of at least one sample."""
    p50, p99 = np.percentile(np.asarray(samples_s), [50, 99]) * 1e3
    return float(p50), float(p99)


def lateness_s(arrivals: Sequence[tuple[float, int]], gap_s: float, tokens: int) -> list[float]:
    """How much later than on an even grid each token of a stream came, in seconds.

    The grid is the latest that no token precedes, so the promptest token has 0. Event 0 is the
    chat's role and event ``tokens + 1`` the end; the first token comes with the role, and is left
    out because its way is that of a request, not of a chunk.

    Args:
        arrivals: when something came, and how many events had come by then.
        gap_s: between the grid's places.
        tokens: how many the stream has.
    """
    offsets, before = [], 0
    for at_s, events in arrivals:
        places = range(max(before, 2), min(events, tokens + 1))
        offsets += [at_s - place * gap_s for place in places]
        before = events
    earliest = min(offsets, default=0.0)
    return [offset - earliest for offset in offsets]


def notes(cell: Cell, counts: Counts, requests: int, *, direct: bool) -> list[str]:
    """What a target did not do as a router of this mode should, in words.

    Args:
        cell: what was measured.
        counts: what the workers saw during it.
        requests: that clients got answers to.
        direct: whether there is no router, and so no handoff.
    """
    found = []
    if direct:
        return ["one leg, no handoff"] if cell.mode is Mode.PD else []
    allowed = _TOLERATED_SHARE * max(requests, 1)
    if cell.mode is Mode.PD:
        if counts.offered + counts.pulled == 0:
            both = counts.whole_on_prefill > allowed
            found.append(
                "no kv_transfer_params: decode prefills again" if both else "no handoff: one leg"
            )
        elif counts.whole > allowed:
            found.append(f"{counts.whole / max(requests, 1):.0%} without a handoff")
        wrong = (
            (counts.unknown, "used kv_transfer_params twice"),
            (counts.changed, "changed kv_transfer_params"),
            (counts.long_prefills, "prefill made more than one token"),
        )
        found += [f"{words} ({count} times)" for count, words in wrong if count]
    elif counts.whole > requests + allowed:
        found.append(f"{counts.whole / max(requests, 1):.1f} requests to workers per request")
    return found


def make_row(blocks: Sequence[Block], samples_s: Sequence[Sequence[float]]) -> Row:
    """One target in one cell.

    Args:
        blocks: its measured blocks, at least one.
        samples_s: latencies of each of them.
    """
    first = blocks[0]
    stream = first.cell.stream
    done = sum(block.events if stream else block.requests for block in blocks)
    p50, p99 = percentiles_ms([sample for block in samples_s for sample in block])
    first_events = [b.first_event_ms for b in blocks if b.first_event_ms is not None]
    total = Counts()
    for block in blocks:
        for name in Counts.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(block.counts, name))
    requests = sum(block.requests for block in blocks)
    said = notes(first.cell, total, requests, direct=first.target == DIRECT)
    failures = sum(block.failures for block in blocks)
    if failures:
        said.append(f"{failures} requests failed")
    return Row(
        target=first.target,
        cell=first.cell,
        cpu_us=_cpu(blocks),
        p50_ms=p50,
        p99_ms=p99,
        first_event_ms=statistics.median(first_events) if first_events else None,
        per_s=done / sum(block.wall_s for block in blocks),
        client_us=sum(block.client_cpu_s for block in blocks) / done * 1e6,
        workers_us=sum(block.workers_cpu_s for block in blocks) / done * 1e6,
        failures=failures,
        notes=tuple(said),
    )


def _cpu(blocks: Sequence[Block]) -> Spread | None:
    each = [block.cpu_us for block in blocks]
    known = [value for value in each if value is not None]
    if len(known) != len(each) or not known:
        return None
    done = sum(block.events if block.cell.stream else block.requests for block in blocks)
    total_s = sum(block.router_cpu_s or 0.0 for block in blocks)
    return Spread(total_s / done * 1e6, min(known), max(known))


def make_rows(blocks: Sequence[Block], samples: Samples) -> list[Row]:
    """All rows that could be measured, in the order of the blocks."""
    keys = dict.fromkeys((block.target, block.cell) for block in blocks if block.measured)
    return [
        make_row([b for b in blocks if (b.target, b.cell) == key and b.measured], samples[key])
        for key in keys
    ]


def make_ratios(blocks: Sequence[Block]) -> list[Ratio]:
    """Ours by each peer, in every cell that both were measured in."""
    good = [block for block in blocks if block.measured and block.cpu_us is not None]
    cells = dict.fromkeys(block.cell for block in good)
    peers = dict.fromkeys(block.target for block in good if block.target != OURS)
    found = []
    for cell in cells:
        for peer in peers:
            spread = _ratio(
                [b for b in good if b.cell == cell and b.target == OURS],
                [b for b in good if b.cell == cell and b.target == peer],
            )
            if spread is not None:
                found.append(Ratio(cell, peer, spread))
    return found


def _ratio(ours: Sequence[Block], peers: Sequence[Block]) -> Spread | None:
    by_round = {block.round: block.cpu_us for block in peers}
    each = [
        block.cpu_us / other
        for block in ours
        if block.cpu_us is not None and (other := by_round.get(block.round))
    ]
    whole_ours, whole_peer = _cpu(ours) if ours else None, _cpu(peers) if peers else None
    if not each or whole_ours is None or whole_peer is None or not whole_peer.value:
        return None
    return Spread(whole_ours.value / whole_peer.value, min(each), max(each))


def make_verdicts(
    rows: Sequence[Row], ratios: Sequence[Ratio], blocks: Sequence[Block]
) -> list[Verdict]:
    """The project's targets; those whose cells were not asked for say so."""
    found = [
        _ratio_verdict(
            "CPU per request, P/D, concurrency 16",
            Cell(Mode.PD, TARGET_CONCURRENCY),
            MAX_CPU_RATIO,
            rows,
            ratios,
        )
    ]
    for mode in Mode:
        for streams in TARGET_STREAMS:
            found.append(
                _ratio_verdict(
                    f"CPU per SSE chunk, {_mode(mode)}, {streams} streams",
                    Cell(mode, streams, stream=True),
                    MAX_EVENT_RATIO,
                    rows,
                    ratios,
                )
            )
    for mode in Mode:
        found.append(_latency_verdict(mode, blocks, rows))
    return found


def _ratio_verdict(
    what: str, cell: Cell, limit: float, rows: Sequence[Row], ratios: Sequence[Ratio]
) -> Verdict:
    spread = next((r.ratio for r in ratios if r.cell == cell and r.peer == RUST_PEER), None)
    what = f"{what}, by {RUST_PEER}"
    if spread is None:
        remark = f"needs {OURS} and {RUST_PEER} in {cell.name}"
        return Verdict(what=what, limit=limit, unit="", reached=None, met=None, remark=remark)
    remarks = [
        f"{row.target}: {note}"
        for row in rows
        if row.cell == cell and row.target in (OURS, RUST_PEER)
        for note in row.notes
    ]
    met = spread.value <= limit
    if met and spread.high > limit:
        remarks.append("not in every round")
    return Verdict(
        what=what, limit=limit, unit="", reached=spread, met=met, remark="; ".join(remarks)
    )


def _latency_verdict(mode: Mode, blocks: Sequence[Block], rows: Sequence[Row]) -> Verdict:
    cell = Cell(mode, 1)
    what = f"p50 added to direct, {_mode(mode)}, concurrency 1"
    by_round: dict[str, dict[int, float]] = {OURS: {}, DIRECT: {}}
    for block in blocks:
        if block.cell == cell and block.target in by_round and block.latencies_ms is not None:
            by_round[block.target][block.round] = block.latencies_ms[0]
    each = [
        ours - by_round[DIRECT][at] for at, ours in by_round[OURS].items() if at in by_round[DIRECT]
    ]
    pooled = {row.target: row.p50_ms for row in rows if row.cell == cell}
    if not each:
        remark = f"needs {OURS} and {DIRECT} in {cell.name}"
        return Verdict(
            what=what, limit=MAX_ADDED_P50_MS, unit="ms", reached=None, met=None, remark=remark
        )
    spread = Spread(pooled[OURS] - pooled[DIRECT], min(each), max(each))
    met = spread.value < MAX_ADDED_P50_MS
    remarks = [note for r in rows if r.cell == cell and r.target == OURS for note in r.notes]
    if met and spread.high >= MAX_ADDED_P50_MS:
        remarks.append("not in every round")
    return Verdict(
        what=what,
        limit=MAX_ADDED_P50_MS,
        unit="ms",
        reached=spread,
        met=met,
        remark="; ".join(remarks),
    )


def _mode(mode: Mode) -> str:
    return {Mode.PLAIN: "plain", Mode.PD: "P/D"}[mode]
