"""Plans of made-up classes: arrivals, scales, independence of what is drawn, sessions, lanes."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from baton.errors import WorkloadError
from benchmarks.plan import Plan, PlannedRequest, Slo
from benchmarks.workloads import build_plan
from benchmarks.workloads.distributions import Pauses, WholeNumbers, pick, seconds_at, whole_at
from benchmarks.workloads.draws import Draws
from tests.unit.benchmarks.workloads.texts import CLASSES, changed, one_class, parse

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def times(plan: Plan) -> list[float]:
    return [request.at_s for request in plan.requests if request.at_s is not None]


def gaps_of(arrivals: str, *, duration_s: float, seed: int = 0) -> list[float]:
    at = times(build_plan(one_class(arrivals, duration_s=duration_s), seed=seed))
    return [b - a for a, b in itertools.pairwise(at)]


@given(seed=st.integers(0, 1000), rate=st.floats(0.5, 200))
@QUICK
def test_poisson_arrivals_have_their_rate_and_spread(seed: int, rate: float) -> None:
    """Gaps have the mean 1/rate and a coefficient of variation of 1."""
    gaps = gaps_of(f"{{kind: poisson, rate: {rate}}}", duration_s=2000 / rate, seed=seed)
    assert statistics.mean(gaps) * rate == pytest.approx(1, abs=0.12)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1, abs=0.15)


@given(seed=st.integers(0, 1000), cv=st.floats(0.1, 2.5))
@QUICK
def test_gamma_arrivals_have_their_rate_and_spread(seed: int, cv: float) -> None:
    """Gaps have the mean 1/rate and the coefficient of variation asked for."""
    gaps = gaps_of(f"{{kind: gamma, rate: 10, cv: {cv}}}", duration_s=300, seed=seed)
    error = 5 * cv / math.sqrt(3000)
    assert statistics.mean(gaps) * 10 == pytest.approx(1, abs=error)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.25)


def test_constant_arrivals_begin_at_the_start() -> None:
    """Equal gaps from start_s on, and none at or after the end."""
    plan = build_plan(one_class("{kind: constant, rate: 2}", duration_s=5, more="start_s: 1"))
    assert times(plan) == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    assert plan.offered_rps == pytest.approx(8 / 5)


@given(
    seed=st.integers(0, 2**53),
    kind=st.sampled_from(["constant, rate: 3", "poisson, rate: 3", "gamma, rate: 3, cv: 2"]),
)
@QUICK
def test_equal_arguments_give_an_equal_plan(seed: int, kind: str) -> None:
    """A plan is a pure function; its requests are in order, within the duration, numbered."""
    workload = one_class(f"{{kind: {kind}}}", duration_s=20)
    plan = build_plan(workload, seed=seed)
    assert plan == build_plan(workload, seed=seed)
    at = times(plan)
    assert at == sorted(at)
    assert all(0 <= moment < 20 for moment in at)
    assert [request.index for request in plan.requests] == list(range(len(plan.requests)))


def test_another_seed_gives_other_arrivals() -> None:
    """The seed of the workload is used unless another one is given."""
    workload = one_class("{kind: poisson, rate: 3}", seed=5)
    assert build_plan(workload) == build_plan(workload, seed=5)
    assert times(build_plan(workload)) != times(build_plan(workload, seed=6))
    assert build_plan(workload).version != build_plan(workload, seed=6).version


def schedule(plan: Plan, class_name: str) -> list[tuple[float | None, object, int | None]]:
    """What the requests of a class are, their numbers in the plan aside."""
    chosen = [request for request in plan.requests if request.class_name == class_name]
    return [(request.at_s, request.pieces, request.output_tokens) for request in chosen]


def test_a_further_class_changes_no_other_one() -> None:
    """Arrivals, lengths and texts of a class depend on the class alone."""
    alone = build_plan(parse(CLASSES))
    more = "    other: {arrivals: {kind: poisson, rate: 9}, prompt_tokens: 5, output_tokens: 5}\n"
    both = build_plan(parse(CLASSES + more))
    assert len(both.requests) > len(alone.requests)
    assert schedule(both, "short") == schedule(alone, "short")
    for k in range(20):
        assert both.lanes[1].draw(k) == alone.lanes[1].draw(k)


def test_lengths_do_not_change_arrivals() -> None:
    """Each purpose has draws of its own, options that are added later included."""
    plan = build_plan(parse(CLASSES))
    options = (
        "\n      models: {x: 1, y: 1}\n      tenants: {t: 1, u: 2}\n      priorities: {0: 1, 1: 1}"
        "\n      shared_prefix: {tokens: 7, groups: 3, share: 0.5}"
    )
    other = build_plan(parse(changed(CLASSES, ("max: 90", "max: 990"))))
    mixed = build_plan(parse(changed(CLASSES, ("tokens: 20", "tokens: 20" + options))))
    assert times(other) == times(plan)
    assert times(mixed) == times(plan)
    for was, now in zip(plan.requests, mixed.requests, strict=True):
        assert now.pieces[-1] == was.pieces[-1]


@given(scale=st.floats(0.1, 8), kind=st.sampled_from(["poisson, rate: 2", "gamma, rate: 2, cv: 3"]))
@QUICK
def test_rate_scale_divides_the_distances_of_the_same_arrivals(scale: float, kind: str) -> None:
    """A level of load has the arrivals of every other level, faster; lengths stay with them."""
    workload = one_class(f"{{kind: {kind}}}", more="start_s: 3")
    base, scaled = build_plan(workload), build_plan(workload, rate_scale=scale)
    assert scaled.duration_s == base.duration_s
    for was, now in zip(base.requests, scaled.requests, strict=False):
        assert was.at_s is not None
        assert now.at_s == pytest.approx(3 + (was.at_s - 3) / scale)
        assert now.pieces == was.pieces


@given(scale=st.floats(0.1, 8))
@QUICK
def test_time_scale_stretches_the_whole(scale: float) -> None:
    """Duration, start and distances grow together, so the same requests come more slowly."""
    workload = one_class("{kind: poisson, rate: 2}", more="start_s: 3")
    base, scaled = build_plan(workload), build_plan(workload, time_scale=scale)
    assert scaled.duration_s == pytest.approx(50 * scale)
    # The last one may fall to the other side of the end by rounding.
    assert abs(len(base.requests) - len(scaled.requests)) <= 1
    for was, now in zip(times(base), times(scaled), strict=False):
        assert now == pytest.approx(was * scale)


def test_a_duration_that_is_given_is_final() -> None:
    """It replaces the workload's, whatever the time scale, and cuts what comes later."""
    workload = one_class("{kind: constant, rate: 1}")
    assert build_plan(workload, duration_s=10).duration_s == 10
    assert len(build_plan(workload, duration_s=10).requests) == 10
    assert len(build_plan(workload, duration_s=10, time_scale=2).requests) == 5


def test_equal_versions_mean_equal_schedules() -> None:
    """The version follows seed, scales, duration and what the spec says; not names or spelling."""
    plan = build_plan(parse(CLASSES))
    respelled = changed(CLASSES, ("name: example", "name: other"), ("rate: 4", "rate: 4.0"))
    assert build_plan(parse(respelled)).version == plan.version
    others = [
        build_plan(parse(CLASSES), rate_scale=2),
        build_plan(parse(CLASSES), time_scale=2),
        build_plan(parse(CLASSES), duration_s=49),
        build_plan(parse(CLASSES), seed=1),
        build_plan(parse(changed(CLASSES, ("2000", "2001")))),
    ]
    assert len({plan.version, *(other.version for other in others)}) == 6
    assert len(plan.version) == 12


# lanes ------------------------------------------------------------------------------------------


def test_lanes_draw_the_same_request_however_often_asked() -> None:
    """Request k of a lane does not depend on the others being drawn, and lanes differ."""
    plan = build_plan(parse(CLASSES))
    lane = plan.lanes[0]
    assert [lane.draw(k) for k in (5, 0, 5)] == [
        build_plan(parse(CLASSES)).lanes[0].draw(k) for k in (5, 0, 5)
    ]
    drawn = [each.draw(k) for each in plan.lanes for k in range(20)]
    assert len({request.pieces[0].key for request in drawn}) == 60
    assert {request.output_tokens for request in drawn} == {8, 16}
    assert (lane.draw(4).index, lane.draw(4).lane, lane.draw(4).at_s) == (4, lane.name, None)


@pytest.mark.parametrize(("scale", "count"), [(1, 3), (2, 6), (0.5, 2), (0.01, 1), (1.5, 5)])
def test_rate_scale_multiplies_clients(scale: float, count: int) -> None:
    """Rounded, half up, at least one; a client is the same at every scale."""
    base, scaled = build_plan(parse(CLASSES)), build_plan(parse(CLASSES), rate_scale=scale)
    assert len(scaled.lanes) == count
    assert scaled.lanes[0].draw(7) == base.lanes[0].draw(7)


def test_a_bounded_closed_loop_divides_its_requests() -> None:
    """Ten requests over four clients; clients without any are left out."""
    workload = one_class("{kind: closed, concurrency: 4, requests: 10}")
    assert [lane.requests for lane in build_plan(workload).lanes] == [3, 3, 2, 2]
    assert [lane.requests for lane in build_plan(workload, rate_scale=5).lanes] == [1] * 10


def test_a_closed_class_starts_and_thinks() -> None:
    """The first request waits for the start, later ones think; both are stretched."""
    workload = one_class("{kind: closed, concurrency: 1, think_s: 2}", more="start_s: 5")
    (lane,) = build_plan(workload, time_scale=3).lanes
    assert [lane.draw(k).think_s for k in range(3)] == [15, 6, 6]
    with pytest.raises(WorkloadError, match="plans no request within 4 s"):
        build_plan(workload, duration_s=4)


# sessions ---------------------------------------------------------------------------------------

TURNS = "turns: {count: {kind: uniform, min: 1, max: 4}, think_s: {kind: uniform, min: 1, max: 3}}"


def sessions_of(plan: Plan) -> list[list[PlannedRequest]]:
    """The requests of each session, and single ones, in the order of the plan."""
    found: list[list[PlannedRequest]] = []
    for request in plan.requests:
        if request.after is None:
            found.append([request])
        else:
            found[-1].append(request)
    return found


def test_sessions_are_chains() -> None:
    """Only the first turn has a time; each later one follows the one before it and thinks."""
    workload = one_class("{kind: poisson, rate: 3}", more=TURNS + ", shared_prefix: {tokens: 9}")
    sessions = sessions_of(build_plan(workload, time_scale=2))
    assert {len(session) for session in sessions} == {1, 2, 3, 4}
    names: list[str | None] = []
    for session in sessions:
        assert session[0].at_s is not None
        assert len({request.session for request in session}) == 1
        assert (session[0].session is None) == (len(session) == 1)
        names.append(session[0].session or f"single {session[0].index}")
        assert [piece.tokens for piece in session[0].pieces] == [9, 100]
        for before, turn in itertools.pairwise(session):
            assert (turn.at_s, turn.after) == (None, before.index)
            assert 2 <= turn.think_s <= 6
            assert len(turn.pieces) == 1
    assert len(set(names)) == len(sessions)


def test_sessions_start_at_the_arrivals() -> None:
    """Turns come on top: the starts are those of the same class without turns."""
    with_turns = build_plan(one_class("{kind: poisson, rate: 3}", more=TURNS))
    assert times(with_turns) == times(build_plan(one_class("{kind: poisson, rate: 3}")))


def test_sessions_end_before_they_are_too_long() -> None:
    """A turn that would bring the conversation over max_tokens is not planned, nor any after."""
    more = "turns: {count: 9, max_tokens: 330}"
    sessions = sessions_of(build_plan(one_class("{kind: constant, rate: 1}", more=more)))
    assert {len(session) for session in sessions} == {3}
    more = "turns: {count: 9, max_tokens: 3}"
    sessions = sessions_of(build_plan(one_class("{kind: constant, rate: 1}", more=more)))
    assert {len(session) for session in sessions} == {1}


def test_a_session_is_one_callers_with_one_model() -> None:
    """Model, tenant and priority are drawn once for all turns."""
    more = (
        "turns: {count: 4}, models: {x: 1, y: 1}, tenants: {t: 1, u: 1}, priorities: {1: 1, 2: 1}"
    )
    sessions = sessions_of(build_plan(one_class("{kind: constant, rate: 1}", more=more)))
    for session in sessions:
        assert len({(r.model, r.tenant, r.priority) for r in session}) == 1
    assert len({(s[0].model, s[0].tenant, s[0].priority) for s in sessions}) == 8


# mixes ------------------------------------------------------------------------------------------


def test_mixes_have_their_shares() -> None:
    """Models, tenants and priorities come as often as their weights say."""
    more = "models: {x: 3, y: 1}, tenants: {t: 1, u: 1}, priorities: {0: 9, -10: 1}"
    requests = build_plan(one_class("{kind: constant, rate: 40}", more=more)).requests
    assert Counter(r.model for r in requests)["x"] / 2000 == pytest.approx(0.75, abs=0.04)
    assert Counter(r.tenant for r in requests)["t"] / 2000 == pytest.approx(0.5, abs=0.04)
    assert Counter(r.priority for r in requests)[-10] / 2000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("kind", "ratio"), [("zipf", 2.0), ("uniform", 1.0)])
def test_shared_prefixes(kind: str, ratio: float) -> None:
    """The share asked for has one of the groups' prefixes in front; zipf prefers the first."""
    more = f"shared_prefix: {{tokens: 30, groups: 5, share: 0.8, pick: {kind}}}"
    requests = build_plan(one_class("{kind: constant, rate: 80}", more=more)).requests
    having = [request for request in requests if len(request.pieces) == 2]
    assert len(having) / len(requests) == pytest.approx(0.8, abs=0.03)
    groups = Counter(request.pieces[0].key for request in having)
    assert len(groups) == 5
    assert groups["a/prefix/0"] / groups["a/prefix/1"] == pytest.approx(ratio, rel=0.2)
    assert all(request.prompt_tokens == 130 for request in having)


def test_service_levels() -> None:
    """A class's own service level replaces the workload's as a whole."""
    text = changed(
        CLASSES,
        ("  classes:", "  slo: {ttft_s: 1, tpot_s: 0.2}\n  classes:"),
        ("2000", "2000\n      slo: {e2e_s: 9}"),
    )
    slos = build_plan(parse(text)).slos
    assert slos == {"short": Slo(ttft_s=1, tpot_s=0.2), "long": Slo(e2e_s=9)}
    assert build_plan(parse(CLASSES)).slos == {}


# bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rate_scale", "time_scale", "duration_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_scales_are_positive(name: str, value: float) -> None:
    """What is no positive number is refused by name."""
    with pytest.raises(WorkloadError, match=f"{name} must be a positive number"):
        build_plan(parse(CLASSES), **{name: value})  # type: ignore[arg-type]


def test_absurd_and_empty_plans_are_refused() -> None:
    """Before anything is drawn in vain."""
    with pytest.raises(WorkloadError, match=r"class a would be about 5e\+06 requests"):
        build_plan(one_class("{kind: poisson, rate: 100000}"))
    with pytest.raises(WorkloadError, match="plans no request within 50 s"):
        build_plan(one_class("{kind: poisson, rate: 0.000001}"))
    with pytest.raises(WorkloadError, match="would have 3000000 clients"):
        build_plan(parse(CLASSES), rate_scale=1e6, duration_s=1e-6)
    with pytest.raises(WorkloadError, match="seed must be from 0"):
        build_plan(parse(CLASSES), seed=-1)


def test_all_turns_count_against_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sessions can be many requests."""
    monkeypatch.setattr("benchmarks.workloads.synthetic.MAX_REQUESTS", 1000)
    workload = one_class("{kind: constant, rate: 1}", more="turns: {count: 30}")
    with pytest.raises(WorkloadError, match=r"workload one would be about 1\.02e"):
        build_plan(workload)


# distributions ----------------------------------------------------------------------------------

WHOLE: TypeAdapter[WholeNumbers] = TypeAdapter(WholeNumbers)
SECONDS: TypeAdapter[Pauses] = TypeAdapter(Pauses)
US = [(n + 0.5) / 4000 for n in range(4000)]


@given(low=st.integers(1, 1000), width=st.integers(0, 5000), u=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_values_stay_within_their_bounds(low: int, width: int, u: float) -> None:
    """Whole, and from min to max, for every kind and every draw."""
    high, middle = low + width, low + width / 2
    bounds = {"min": low, "max": high}
    for spec in (
        {"kind": "uniform", **bounds},
        {"kind": "normal", "mean": middle, "std": 100, **bounds},
        {"kind": "lognormal", "median": middle, "sigma": 2, **bounds},
        {"kind": "choice", "values": [low, high]},
    ):
        value = whole_at(WHOLE.validate_python(spec), u)
        assert isinstance(value, int)
        assert low <= value <= high


def test_distributions_have_their_shape() -> None:
    """Mean and spread, median, and weights come out as they were asked for."""
    normal = WHOLE.validate_python({"kind": "normal", "mean": 500, "std": 50, "min": 1, "max": 999})
    values = [whole_at(normal, u) for u in US]
    assert statistics.mean(values) == pytest.approx(500, abs=1)
    assert statistics.stdev(values) == pytest.approx(50, rel=0.02)
    spec = {"kind": "lognormal", "median": 100, "sigma": 1, "min": 1, "max": 100_000}
    values = [whole_at(WHOLE.validate_python(spec), u) for u in US]
    assert statistics.median(values) == pytest.approx(100, abs=1)
    assert statistics.stdev(math.log(v) for v in values) == pytest.approx(1, rel=0.03)
    spec = {"kind": "choice", "values": [1, 2], "weights": [1, 3]}
    values = [whole_at(WHOLE.validate_python(spec), u) for u in US]
    assert values.count(2) == 3000
    values = [
        whole_at(WHOLE.validate_python({"kind": "uniform", "min": 1, "max": 4}), u) for u in US
    ]
    assert set(Counter(values).values()) == {1000}
    pauses = SECONDS.validate_python({"kind": "uniform", "min": 0, "max": 0.5})
    assert statistics.mean(seconds_at(pauses, u) for u in US) == pytest.approx(0.25, abs=1e-6)
    pauses = SECONDS.validate_python(
        {"kind": "lognormal", "median": 2, "sigma": 0.5, "min": 0, "max": 60}
    )
    assert statistics.median(seconds_at(pauses, u) for u in US) == pytest.approx(2, rel=0.01)


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), u=st.floats(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_picking_stays_within_the_list(weights: list[float], u: float) -> None:
    """Also at the very end of the range."""
    assert 0 <= pick(weights, u) < len(weights)


def test_draws_are_uniform_and_their_names_are_apart() -> None:
    """Evenly spread over [0, 1), and no two purposes share draws however they are spelled."""
    values = [Draws(1, "a").at(k) for k in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert statistics.mean(values) == pytest.approx(0.5, abs=0.02)
    assert statistics.variance(values) == pytest.approx(1 / 12, rel=0.05)
    names: list[tuple[str | int, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")]
    assert len({Draws(1, *each).at(0) for each in names}) == 4
    assert Draws(1, "a").at(1, 23) != Draws(1, "a").at(12, 3)


def test_draws_stay_what_they_are() -> None:
    """Plans of old results can be made again: these numbers never change."""
    assert Draws(0, "short", "arrivals").at(0) == pytest.approx(PINNED_DRAW, abs=0)
    assert build_plan(parse(CLASSES)).requests[0].at_s == pytest.approx(PINNED_AT_S, rel=1e-12)


PINNED_DRAW = 0.024268648791685554
PINNED_AT_S = 0.00614199634203602
