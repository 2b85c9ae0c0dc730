"""Figures from records, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import metrics
from benchmarks.plan import Slo
from benchmarks.records import RequestRecord, Run, RunMeta


def answer(
    index: int = 0,
    *,
    scheduled_s: float = 1.0,
    sent_s: float = 1.1,
    chunks_s: tuple[float, ...] = (1.5, 1.6, 1.9),
    end_s: float = 2.0,
    tokens: int | None = 4,
    **more: Any,
) -> RequestRecord:
    """A whole answer; by default TTFT 0.4, from schedule 0.5, E2E 0.9, from schedule 1.0."""
    return RequestRecord(
        index=index,
        class_name=more.pop("class_name", "short"),
        scheduled_s=scheduled_s,
        sent_s=sent_s,
        first_content_s=chunks_s[0] if chunks_s else None,
        last_content_s=chunks_s[-1] if chunks_s else None,
        end_s=end_s,
        status=200,
        output_tokens=tokens,
        prompt_tokens=more.pop("prompt_tokens", 10),
        chunks=len(chunks_s),
        chunks_s=list(chunks_s),
        **more,
    )


def failure(index: int = 99, **more: Any) -> RequestRecord:
    """A request that timed out after it had shown a chunk."""
    fields = {"scheduled_s": 1.0, "sent_s": 1.0, "end_s": 9.0, "error": "timeout", **more}
    return RequestRecord(
        index=index, class_name="short", first_content_s=8.0, chunks_s=[8.0, 8.9], **fields
    )


def measured(records: list[RequestRecord], slo: Slo | None = None) -> dict[str, dict[str, Any]]:
    slos = {} if slo is None else {"short": slo}
    return metrics.measure(records, 10.0, slos)["all"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft", 0.4),
        ("ttft_sched", 0.5),
        ("itl", 0.2),
        ("longest_gap", 0.3),
        ("tpot", 0.5 / 3),
        ("e2e", 0.9),
        ("e2e_sched", 1.0),
    ],
)
def test_one_answer_is_measured_from_send_and_from_schedule(name: str, value: float) -> None:
    """Each latency is the difference of the two moments that define it."""
    found = measured([answer()])[name]
    assert found["mean"] == pytest.approx(value)
    assert found["n"] == (2 if name == "itl" else 1)


def test_itl_is_raw_gaps_and_never_crosses_answers() -> None:
    """Gaps are pooled over answers; the time between two answers is no gap."""
    found = measured([answer(0), answer(1, chunks_s=(3.0, 3.5), end_s=3.5)])["itl"]
    assert found["n"] == 3
    assert found["max"] == pytest.approx(0.5)
    assert found["mean"] == pytest.approx((0.1 + 0.3 + 0.5) / 3)


def test_the_longest_gap_is_one_per_answer_and_an_answer_without_gaps_has_none() -> None:
    """One pause among a thousand gaps is beyond ITL's p99, and is the gap of its answer."""
    times = [0.5 + 0.01 * index for index in range(1000)]
    paused = [*times[:500], *(at + 2.0 for at in times[500:])]
    records = [
        answer(0, chunks_s=tuple(paused), end_s=13.0),
        answer(1, chunks_s=(0.5,), end_s=0.5, tokens=1),
    ]
    found = measured(records)
    assert found["itl"]["p99"] == pytest.approx(0.01)
    assert found["longest_gap"]["n"] == 1
    assert found["longest_gap"]["max"] == pytest.approx(2.01)


def test_failed_requests_are_counted_but_have_no_latency() -> None:
    """A failure is in no percentile, and in the error figures with its reason."""
    found = measured([answer(0), failure(1), failure(2, error="http_503")])
    for name in metrics.LATENCIES:
        assert found[name]["max"] < 5.0
    assert found["errors"] == {"value": 2, "n": 3}
    assert found["errors_by_reason"] == {"http_503": 1, "timeout": 1}
    assert found["error_share"]["value"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("tokens", [0, 1, None])
def test_tpot_needs_two_tokens_that_the_server_counted(tokens: int | None) -> None:
    """An answer of at most one token, or of an unknown number, has no TPOT."""
    found = measured([answer(tokens=tokens)])
    assert found["tpot"]["n"] == 0
    assert found["tpot"]["p50"] is None
    assert found["usage_missing"]["value"] == (1 if tokens is None else 0)


def test_rates_count_what_happened_within_the_window() -> None:
    """A late end is no completed request; of its tokens those count whose chunks came in time."""
    late = answer(1, chunks_s=(9.0, 9.5, 10.5, 11.0), end_s=11.0, tokens=8, prompt_tokens=30)
    found = measured([answer(0), late])
    assert found["requests_per_s"]["value"] == pytest.approx(1 / 10)
    assert found["output_tokens_per_s"]["value"] == pytest.approx((4 + 4) / 10)
    assert found["prompt_tokens_per_s"]["value"] == pytest.approx((10 + 30) / 10)


def test_chunks_are_not_tokens() -> None:
    """Three chunks for four tokens are said as such."""
    assert measured([answer()])["chunks_per_token"]["value"] == pytest.approx(0.75)


def test_cached_share_is_given_only_by_servers_that_say_it() -> None:
    """No word about the cache is not the same as no hits."""
    assert "cached_share" not in measured([answer()])
    found = measured([answer(0, cached_tokens=4), answer(1, cached_tokens=1)])
    assert found["cached_share"]["value"] == pytest.approx(5 / 20)


def test_in_flight_is_request_seconds_by_the_window() -> None:
    """An answer that ends when another begins does not overlap it; what is open at the end is
    counted up to the end."""
    records = [
        answer(0, sent_s=0.0, end_s=4.0),
        answer(1, sent_s=4.0, end_s=6.0),
        answer(2, sent_s=5.0, end_s=12.0),
        answer(3, sent_s=20.0, end_s=21.0),
    ]
    found = measured(records)["in_flight"]
    assert found["mean"] == pytest.approx((4 + 2 + 5) / 10)
    assert found["max"] == 2


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(ttft_s=0.51), 1),
        (Slo(ttft_s=0.45), 0),  # 0.4 from the send, 0.5 from the schedule
        (Slo(tpot_s=0.17), 1),
        (Slo(tpot_s=0.16), 0),
        (Slo(e2e_s=1.01), 1),
        (Slo(e2e_s=0.95), 0),
        (Slo(ttft_s=0.51, tpot_s=0.16), 0),
    ],
)
def test_the_slo_is_judged_from_the_schedule(slo: Slo, good: int) -> None:
    """A user waits from the moment the request was due, whatever held it back."""
    found = measured([answer()], slo)
    assert found["goodput_rps"]["value"] == pytest.approx(good / 10)
    assert found["attainment"]["value"] == good


def test_attainment_is_of_all_requests_and_failures_miss_every_bound() -> None:
    """A failed request is bad in the whole and in each part."""
    found = measured([answer(0), failure(1)], Slo(ttft_s=100.0, tpot_s=100.0, e2e_s=100.0))
    for key in ("attainment", "attainment_ttft", "attainment_tpot", "attainment_e2e"):
        assert found[key]["value"] == pytest.approx(0.5), key


def test_one_token_neither_passes_nor_fails_a_tpot_bound() -> None:
    """It is left out of the share for TPOT and judged by the other bounds."""
    found = measured([answer(0), answer(1, tokens=1)], Slo(ttft_s=1.0, tpot_s=0.01))
    assert found["attainment_tpot"]["of"] == 1
    assert found["attainment"]["value"] == pytest.approx(0.5)


def test_an_unknown_token_count_is_judged_by_chunks_which_are_never_more() -> None:
    """TPOT by chunks is 0.25 here: never too low, so a pass is a pass."""
    assert measured([answer(tokens=None)], Slo(tpot_s=0.26))["attainment"]["value"] == 1
    assert measured([answer(tokens=None)], Slo(tpot_s=0.24))["attainment"]["value"] == 0


def test_an_answer_that_was_not_streamed_is_seen_when_it_is_over() -> None:
    """Its E2E is judged as its TTFT, and it has no TPOT."""
    whole = answer(chunks_s=())
    assert measured([whole], Slo(ttft_s=1.01, tpot_s=0.001))["attainment"]["value"] == 1
    assert measured([whole], Slo(ttft_s=0.99))["attainment"]["value"] == 0
    assert measured([whole])["ttft"]["n"] == 0


def test_without_an_slo_there_is_no_goodput() -> None:
    """Nothing asked, nothing judged: neither for a class nor for an SLO without bounds."""
    for slo in (None, Slo()):
        assert not {"goodput_rps", "attainment"} & set(measured([answer()], slo))


def test_all_judges_only_the_classes_that_have_an_slo() -> None:
    """A class without one neither helps nor hurts; the SLO of ``all`` is for classes without."""
    records = [answer(0), answer(1, class_name="long")]
    one = metrics.measure(records, 10.0, {"short": Slo(ttft_s=1.0)})
    assert one["all"]["attainment"]["of"] == 1
    assert "attainment" not in one["long"]
    both = metrics.measure(records, 10.0, {"short": Slo(ttft_s=1.0), "all": Slo(ttft_s=0.1)})
    assert both["all"]["attainment"] == {"value": 0.5, "sum": 1, "of": 2}


def test_goodput_counts_by_schedule_in_open_loop_and_by_end_in_a_lane() -> None:
    """An open-loop request in flight at the end is not lost; a full lane at the end adds none."""
    late: dict[str, Any] = {
        "chunks_s": (9.5, 10.5),
        "end_s": 10.5,
        "scheduled_s": 9.0,
        "sent_s": 9.0,
    }
    slo = Slo(ttft_s=1.0)
    assert measured([answer(**late)], slo)["goodput_rps"]["value"] == pytest.approx(0.1)
    assert measured([answer(**late, lane="a")], slo)["goodput_rps"]["value"] == 0


@pytest.mark.parametrize(("q", "n"), [(0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000)])
def test_a_percentile_needs_ten_samples_beyond_it(q: float, n: int) -> None:
    """One sample less is not enough."""
    assert metrics.enough(q, n)
    assert not metrics.enough(q, n - 1)


def test_percentiles_are_numpys_linear_ones() -> None:
    """p90 of 0..9 lies between the last two."""
    found = metrics.describe(np.arange(10, dtype=np.float64))
    assert found["p90"] == pytest.approx(8.1)
    assert found["max"] == 9.0


def test_a_run_without_requests_has_no_figures_and_no_error() -> None:
    """None, never zero, for what is not known; JSON can hold it."""
    found = metrics.measure([], 10.0, {})
    assert found["all"]["ttft"]["p99"] is None
    assert found["all"]["error_share"]["value"] is None
    assert found["all"]["requests_per_s"]["value"] == 0
    msgspec.json.encode(found)


def test_a_request_that_never_left_or_never_ended_is_a_failure() -> None:
    """An interrupted run leaves such records; they are errors, not gaps in the figures."""
    never = RequestRecord(index=0, class_name="short", scheduled_s=1.0)
    open_end = RequestRecord(index=1, class_name="short", scheduled_s=1.0, sent_s=8.0)
    found = measured([never, open_end], Slo(ttft_s=1.0))
    assert found["errors_by_reason"] == {"no_end": 2}
    assert found["attainment"]["value"] == 0
    assert found["in_flight"]["mean"] == pytest.approx(0.2)


def test_summarise_uses_the_runs_own_slos_and_is_plain_data() -> None:
    """The result goes into a block's summary as JSON and comes back equal."""
    meta = RunMeta(
        id="r",
        started_wall_s=0.0,
        duration_s=10.0,
        ended_s=10.0,
        complete=True,
        salt="s",
        plan={},
        target={},
        slos={"short": Slo(ttft_s=1.0)},
    )
    found = metrics.summarise(Run(meta, [answer()]))
    assert set(found) == {"all", "short"}
    assert found["short"]["goodput_rps"]["value"] == pytest.approx(0.1)
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_other_tools_definitions_stand_beside_ours() -> None:
    """last - first by n - 1, E2E by n, and TPOT by chunks, worked out by hand."""
    found = metrics.alternates([answer(), failure(1)])
    assert found["tpot_to_last"].tolist() == pytest.approx([0.4 / 3])
    assert found["e2e_to_last"].tolist() == pytest.approx([0.8])
    assert found["e2e_per_token"].tolist() == pytest.approx([0.9 / 4])
    assert found["tpot_chunks"].tolist() == pytest.approx([0.5 / 2])


@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.floats(0.01, 5), st.integers(1, 6), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_classes_add_up_to_all(rows: list[tuple[float, float, int, bool]]) -> None:
    """Counts, sums and samples of the classes are those of all requests, taken apart."""
    records = []
    for index, (at, took, chunks, short) in enumerate(rows):
        times = tuple(at + took * (k + 1) / chunks for k in range(chunks))
        records.append(
            answer(
                index,
                scheduled_s=at,
                sent_s=at,
                chunks_s=times,
                end_s=times[-1],
                tokens=chunks,
                class_name="short" if short else "long",
            )
        )
    found = metrics.parts(records, 10.0, {"short": Slo(e2e_s=2.0), "long": Slo(e2e_s=3.0)})
    whole = found.pop("all")
    assert sum(part.requests for part in found.values()) == whole.requests
    for name in metrics.LATENCIES:
        assert sum(p.samples[name].size for p in found.values()) == whole.samples[name].size
    for name, (over, under) in whole.sums.items():
        mine = [part.sums[name] for part in found.values()]
        assert math.isclose(sum(m[0] for m in mine), over, abs_tol=1e-6), name
        if under != 10.0:
            assert math.isclose(sum(m[1] for m in mine), under, abs_tol=1e-6), name


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("itl_p99", ("itl", 0.99)),
        ("ttft_sched_p50", ("ttft_sched", 0.5)),
        ("ttft_mean", ("ttft", None)),
        ("goodput_rps", None),
        ("ttft_p42", None),
    ],
)
def test_latency_keys_are_told_from_others(key: str, parsed: tuple[str, float | None]) -> None:
    """A key is a latency with one of the known statistics, or something else."""
    assert metrics.latency_key(key) == parsed
