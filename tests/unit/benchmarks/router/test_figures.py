"""From blocks to rows, ratios and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.router.book import Counts
from benchmarks.router.figures import (
    lateness_s,
    make_ratios,
    make_rows,
    make_verdicts,
    notes,
    percentiles_ms,
)
from benchmarks.router.records import Block, Cell, Mode, Verdict

PD16 = Cell(Mode.PD, 16)
PLAIN1 = Cell(Mode.PLAIN, 1)
SSE = Cell(Mode.PD, 16, stream=True)


def block(
    target: str,
    cell: Cell,
    at_round: int,
    *,
    cpu_s: float | None,
    done: int = 1000,
    p50: float = 1.0,
    pulled: int | None = None,
) -> Block:
    """A measured block that spent ``cpu_s`` on ``done`` requests or events."""
    handed = done if pulled is None else pulled
    counts = Counts(offered=handed, pulled=handed, whole=done - handed)
    return Block(
        target=target,
        cell=cell,
        round=at_round,
        wall_s=2.0,
        requests=16 if cell.stream else done,
        events=done if cell.stream else 0,
        router_cpu_s=cpu_s,
        client_cpu_s=0.05,
        workers_cpu_s=0.1,
        counts=Counts(whole=done) if cell.mode is Mode.PLAIN else counts,
        latencies_ms=(p50, 2 * p50),
        first_event_ms=3.0 + at_round if cell.stream else None,
    )


def samples(blocks: Sequence[Block]) -> dict[tuple[str, Cell], list[list[float]]]:
    """Latencies that fit the blocks' p50."""
    found: dict[tuple[str, Cell], list[list[float]]] = {}
    for each in blocks:
        assert each.latencies_ms is not None
        found.setdefault((each.target, each.cell), []).append([each.latencies_ms[0] / 1e3] * 5)
    return found


def verdicts(blocks: Sequence[Block]) -> dict[str, Verdict]:
    found = make_verdicts(make_rows(blocks, samples(blocks)), make_ratios(blocks), blocks)
    return {verdict.what: verdict for verdict in found}


def test_percentiles_are_in_milliseconds() -> None:
    """Interpolated, as numpy does."""
    p50, p99 = percentiles_ms([i / 1000 for i in range(101)])
    assert [p50, p99] == pytest.approx([50.0, 99.0])


def test_cpu_per_request_pools_rounds() -> None:
    """Sum by sum: a round with few requests weighs little; its own figure is in the spread."""
    blocks = [
        block("baton", PD16, 0, cpu_s=0.1, done=1000),
        block("baton", PD16, 1, cpu_s=0.03, done=100),
    ]
    (row,) = make_rows(blocks, samples(blocks))
    assert row.cpu_us is not None
    assert row.cpu_us.value == pytest.approx(0.13 / 1100 * 1e6)
    assert [row.cpu_us.low, row.cpu_us.high] == pytest.approx([100.0, 300.0])
    assert row.per_s == pytest.approx(275.0)
    assert row.client_us == pytest.approx(0.1 / 1100 * 1e6)
    assert row.workers_us == pytest.approx(0.2 / 1100 * 1e6)


def test_of_streams_events_are_what_counts() -> None:
    """CPU per event, and the middle round's time to the first one."""
    blocks = [block("smg", SSE, at, cpu_s=0.1, done=2000) for at in range(3)]
    (row,) = make_rows(blocks, samples(blocks))
    assert row.cpu_us is not None
    assert row.cpu_us.value == pytest.approx(50.0)
    assert row.first_event_ms == 4.0


def test_direct_has_no_cpu() -> None:
    """There is no router; a dash is not a zero."""
    blocks = [block("direct", PLAIN1, 0, cpu_s=None)]
    (row,) = make_rows(blocks, samples(blocks))
    assert row.cpu_us is None
    assert make_ratios(blocks) == []


def test_blocks_that_were_not_measured_are_left_out() -> None:
    """A failed round takes nothing away from the others."""
    good = block("baton", PD16, 0, cpu_s=0.1)
    failed = Block(target="baton", cell=PD16, round=1, detail="no answer")
    (row,) = make_rows([good, failed], samples([good]))
    assert row.cpu_us is not None
    assert row.cpu_us.value == pytest.approx(100.0)


def test_ratios_pair_blocks_of_a_round() -> None:
    """The spread is over rounds, the ratio of all of them together."""
    blocks = [
        block("vllm-router", PD16, 0, cpu_s=0.2),
        block("baton", PD16, 0, cpu_s=0.1),
        block("baton", PD16, 1, cpu_s=0.3),
        block("vllm-router", PD16, 1, cpu_s=0.4),
        block("baton", PLAIN1, 0, cpu_s=0.3),
    ]
    (ratio,) = make_ratios(blocks)
    assert (ratio.cell, ratio.peer) == (PD16, "vllm-router")
    assert ratio.ratio.value == pytest.approx(0.4 / 0.6)
    assert [ratio.ratio.low, ratio.ratio.high] == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(("cpu_s", "met"), [(0.16, True), (0.1601, False)])
def test_the_cost_target_is_met_up_to_its_bound(cpu_s: float, met: bool) -> None:
    """0.8 of vllm-router's CPU per request."""
    blocks = [
        block("vllm-router", PD16, 0, cpu_s=0.2),
        block("baton", PD16, 0, cpu_s=cpu_s),
    ]
    verdict = verdicts(blocks)["CPU per request, P/D, concurrency 16, by vllm-router"]
    assert verdict.met is met
    assert verdict.reached is not None
    assert verdict.reached.value == pytest.approx(cpu_s / 0.2)


def test_a_target_met_in_some_rounds_only_says_so() -> None:
    """The figure decides, the remark weakens it."""
    blocks = [
        block("vllm-router", PD16, 0, cpu_s=0.2),
        block("baton", PD16, 0, cpu_s=0.1),
        block("vllm-router", PD16, 1, cpu_s=0.2),
        block("baton", PD16, 1, cpu_s=0.18),
    ]
    verdict = verdicts(blocks)["CPU per request, P/D, concurrency 16, by vllm-router"]
    assert verdict.met is True
    assert "not in every round" in verdict.remark


def test_a_peer_that_did_less_weakens_the_verdict() -> None:
    """A comparison with a router that does not hand over is not made in silence."""
    blocks = [
        block("vllm-router", PD16, 0, cpu_s=0.2, pulled=0),
        block("baton", PD16, 0, cpu_s=0.1),
    ]
    verdict = verdicts(blocks)["CPU per request, P/D, concurrency 16, by vllm-router"]
    assert verdict.remark == "vllm-router: no handoff: one leg"


@pytest.mark.parametrize(("added_ms", "met"), [(0.9, True), (1.0, False)])
def test_the_added_latency_is_against_direct(added_ms: float, met: bool) -> None:
    """Medians over all rounds, less than a millisecond apart."""
    blocks = [
        block("direct", PLAIN1, 0, cpu_s=None, p50=0.5),
        block("baton", PLAIN1, 0, cpu_s=0.1, p50=0.5 + added_ms),
    ]
    verdict = verdicts(blocks)["p50 added to direct, plain, concurrency 1"]
    assert verdict.met is met
    assert verdict.reached is not None
    assert verdict.reached.value == pytest.approx(added_ms)


def test_what_was_not_asked_for_is_not_judged() -> None:
    """Neither met nor missed, and the remark says what it needs."""
    for verdict in verdicts([block("smg", PLAIN1, 0, cpu_s=0.1)]).values():
        assert verdict.met is None
        assert verdict.reached is None
        assert verdict.remark.startswith("needs baton and ")


@pytest.mark.parametrize(
    ("cell", "counts", "wanted"),
    [
        (PD16, Counts(offered=100, pulled=100), []),
        (PD16, Counts(offered=100, pulled=100, whole=1), []),
        (PD16, Counts(whole=100), ["no handoff: one leg"]),
        (
            PD16,
            Counts(whole=100, whole_on_prefill=100),
            ["no kv_transfer_params: decode prefills again"],
        ),
        (PD16, Counts(offered=60, pulled=60, whole=40), ["40% without a handoff"]),
        (
            PD16,
            Counts(offered=100, pulled=98, unknown=2),
            ["used kv_transfer_params twice (2 times)"],
        ),
        (
            PD16,
            Counts(offered=100, pulled=99, changed=1),
            ["changed kv_transfer_params (1 times)"],
        ),
        (PLAIN1, Counts(whole=100), []),
        (PLAIN1, Counts(whole=200), ["2.0 requests to workers per request"]),
    ],
)
def test_notes_say_what_a_router_did_not_do(cell: Cell, counts: Counts, wanted: list[str]) -> None:
    """Of a hundred requests; one probe of the router's own is no deviation."""
    assert notes(cell, counts, 100, direct=False) == wanted


def test_direct_does_not_hand_over() -> None:
    """And its row in P/D says so."""
    assert notes(PD16, Counts(whole=100), 100, direct=True) == ["one leg, no handoff"]


def test_lateness_is_against_the_promptest_token() -> None:
    """Tokens every 10 ms: the third of them came 4 ms late; the end is no token."""
    arrivals = [(5.0, 2), (5.010, 3), (5.024, 4), (5.030, 6)]
    late = lateness_s(arrivals, 0.01, tokens=4)
    assert late == pytest.approx([0.0, 0.004, 0.0], abs=1e-9)


def test_tokens_that_come_together_are_late_by_their_own_places() -> None:
    """A router that holds chunks back shows."""
    arrivals = [(5.0, 2), (5.030, 5), (5.040, 7)]
    late = lateness_s(arrivals, 0.01, tokens=5)
    assert late == pytest.approx([0.02, 0.01, 0.0, 0.0], abs=1e-9)
