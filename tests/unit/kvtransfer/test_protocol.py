"""The handoff's machine: the whole table, its guards, and what holds over any run of events."""

from __future__ import annotations

import inspect
import itertools
import math
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import IllegalTransition, OurFault
from baton.types import RequestId, WorkerId
from kvtransfer import protocol
from kvtransfer.protocol import (
    BlocksReleased,
    ClientGone,
    DecodeSent,
    Event,
    Finished,
    FirstContent,
    Handoff,
    HandoffState,
    LeaseExpired,
    LegFailed,
    PrefillAnswered,
    PrefillSent,
    advance,
    lease_left_s,
    mermaid,
    plan,
)

S = HandoffState
START_S = 100.0
LEASE_S = 30.0
EVENTS: tuple[type[Event], ...] = (
    PrefillSent,
    PrefillAnswered,
    DecodeSent,
    FirstContent,
    Finished,
    LegFailed,
    LeaseExpired,
    ClientGone,
    BlocksReleased,
)
OPEN = {S.PLANNED, S.PREFILLING, S.OFFERED, S.ACCEPTED, S.PULLED}

# Written out once more, by hand, so that a slip in the module's table shows.
# Third column: whether prefill's blocks are stranded afterwards.
LEGAL: dict[tuple[HandoffState, type[Event]], tuple[HandoffState, bool]] = {
    (S.PLANNED, PrefillSent): (S.PREFILLING, False),
    (S.PLANNED, LegFailed): (S.FAILED, False),
    (S.PLANNED, ClientGone): (S.ABORTED, False),
    (S.PREFILLING, PrefillAnswered): (S.OFFERED, False),
    (S.PREFILLING, LegFailed): (S.FAILED, False),
    (S.PREFILLING, ClientGone): (S.ABORTED, False),
    (S.OFFERED, DecodeSent): (S.ACCEPTED, False),
    (S.OFFERED, LegFailed): (S.FAILED, True),
    (S.OFFERED, ClientGone): (S.ABORTED, True),
    (S.OFFERED, LeaseExpired): (S.EXPIRED, False),
    (S.ACCEPTED, FirstContent): (S.PULLED, False),
    (S.ACCEPTED, LegFailed): (S.FAILED, True),
    (S.ACCEPTED, ClientGone): (S.ABORTED, True),
    (S.ACCEPTED, LeaseExpired): (S.EXPIRED, True),
    (S.PULLED, Finished): (S.DONE, False),
    (S.PULLED, LegFailed): (S.FAILED, False),
    (S.PULLED, ClientGone): (S.ABORTED, False),
}
# From these only with stranded blocks.
RECLAIMING = {
    (state, event)
    for state in (S.FAILED, S.ABORTED, S.EXPIRED)
    for event in (LeaseExpired, BlocksReleased)
}

OFFER_ROUTE: tuple[type[Event], ...] = (PrefillSent, PrefillAnswered)
ROUTES: dict[HandoffState, tuple[type[Event], ...]] = {
    S.PLANNED: (),
    S.PREFILLING: (PrefillSent,),
    S.OFFERED: OFFER_ROUTE,
    S.ACCEPTED: (*OFFER_ROUTE, DecodeSent),
    S.PULLED: (*OFFER_ROUTE, DecodeSent, FirstContent),
    S.DONE: (*OFFER_ROUTE, DecodeSent, FirstContent, Finished),
    S.FAILED: (LegFailed,),
    S.ABORTED: (ClientGone,),
    S.EXPIRED: (*OFFER_ROUTE, LeaseExpired),
    S.RECLAIMED: (*OFFER_ROUTE, LegFailed, BlocksReleased),
}
STRANDED_ROUTES: dict[HandoffState, tuple[type[Event], ...]] = {
    S.FAILED: (*OFFER_ROUTE, LegFailed),
    S.ABORTED: (*OFFER_ROUTE, ClientGone),
    S.EXPIRED: (*OFFER_ROUTE, DecodeSent, LeaseExpired),
}


def make(event: type[Event], at_s: float) -> Event:
    if event is PrefillAnswered:
        return PrefillAnswered(at_s, prompt_tokens=700, kv_bytes=4096, lease_s=LEASE_S)
    if event is LegFailed:
        return LegFailed(at_s, reason="connection reset")
    return event(at_s)


def fresh() -> Handoff:
    return plan(RequestId("r-1"), prefill=WorkerId("p0"), decode=WorkerId("d0"), at_s=START_S)


def moment(handoff: Handoff, event: type[Event]) -> float:
    """A time at which only the table, and no guard on time, decides."""
    if event is LeaseExpired:
        return handoff.lease_expires_s or handoff.updated_s
    return handoff.updated_s


def walk(route: tuple[type[Event], ...]) -> Handoff:
    handoff = fresh()
    for event in route:
        handoff = advance(handoff, make(event, moment(handoff, event)))
    return handoff


def test_the_module_knows_these_events_and_no_others() -> None:
    """The tests below cover every event there is."""
    defined = {
        cls
        for _, cls in inspect.getmembers(protocol, inspect.isclass)
        if issubclass(cls, Event) and cls is not Event
    }
    assert defined == set(EVENTS)
    assert set(ROUTES) == set(HandoffState)


@pytest.mark.parametrize(
    ("state", "event"),
    list(itertools.product(HandoffState, EVENTS)),
    ids=lambda value: value.name if isinstance(value, HandoffState) else value.__name__,
)
def test_every_state_with_every_event(state: HandoffState, event: type[Event]) -> None:
    """A pair is legal, with the listed outcome, or raises naming state, event and request."""
    handoff = walk(ROUTES[state])
    assert handoff.state is state
    assert not handoff.stranded
    at_s = moment(handoff, event)
    before = msgspec.structs.asdict(handoff)
    if (state, event) in LEGAL:
        after = advance(handoff, make(event, at_s))
        assert (after.state, after.stranded) == LEGAL[state, event]
        assert after.updated_s == at_s
    else:
        with pytest.raises(IllegalTransition) as caught:
            advance(handoff, make(event, at_s))
        for word in (state.name, event.__name__, "r-1"):
            assert word in caught.value.message
    assert msgspec.structs.asdict(handoff) == before


@pytest.mark.parametrize("state", list(STRANDED_ROUTES), ids=lambda state: state.name)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_stranded_ends_can_be_reclaimed_and_nothing_else(
    state: HandoffState, event: type[Event]
) -> None:
    """Stranded blocks come back by release or by the lease's end; the reason stays readable."""
    handoff = walk(STRANDED_ROUTES[state])
    assert handoff.state is state
    assert handoff.stranded
    assert handoff.holds_kv
    assert not handoff.is_final
    at_s = moment(handoff, event)
    if (state, event) in RECLAIMING:
        after = advance(handoff, make(event, at_s))
        assert after.state is S.RECLAIMED
        assert after.is_final
        assert not after.holds_kv
        assert after.reason == handoff.reason != ""
    else:
        with pytest.raises(IllegalTransition):
            advance(handoff, make(event, at_s))


def test_table_has_no_rows_beyond_the_listed_ones() -> None:
    """The module's table and the list of this test have the same rows."""
    assert set(protocol.TRANSITIONS) == set(LEGAL) | RECLAIMING


def test_table_cannot_be_changed() -> None:
    """The table is read-only for whoever imports it."""
    with pytest.raises(TypeError):
        protocol.TRANSITIONS[S.DONE, PrefillSent] = protocol.Transition(S.PLANNED)  # type: ignore[index]


def test_happy_path_keeps_what_prefill_said() -> None:
    """Counts and lease come from the offer and stay; a good end has no reason."""
    handoff = walk(ROUTES[S.DONE])
    assert (handoff.prompt_tokens, handoff.kv_bytes, handoff.lease_s) == (700, 4096, LEASE_S)
    assert handoff.lease_expires_s == START_S + LEASE_S
    assert handoff.reason == ""
    assert handoff.created_s == START_S
    assert handoff.is_final
    assert not handoff.holds_kv


@pytest.mark.parametrize("back_s", [1e-9, 1.0, math.nan, -math.inf])
def test_time_does_not_go_back(back_s: float) -> None:
    """An event before the last one, or at no time at all, is illegal."""
    handoff = walk(ROUTES[S.PREFILLING])
    with pytest.raises(IllegalTransition):
        advance(handoff, LegFailed(START_S - back_s, reason="late"))


def test_same_moment_is_legal() -> None:
    """A whole answer is its first content and its end at once."""
    handoff = advance(walk(ROUTES[S.ACCEPTED]), FirstContent(START_S + 1))
    assert advance(handoff, Finished(START_S + 1)).state is S.DONE


def test_stale_kv_is_never_dispatched() -> None:
    """DecodeSent is legal until the lease's margin begins, and illegal from there on."""
    offered = walk(ROUTES[S.OFFERED])
    last_s = START_S + LEASE_S * (1 - protocol.LEASE_MARGIN_SHARE)
    assert lease_left_s(offered, START_S) == pytest.approx(25.0)
    assert advance(offered, DecodeSent(last_s - 0.001)).state is S.ACCEPTED
    for at_s in (last_s + 0.001, START_S + LEASE_S, START_S + 10 * LEASE_S):
        assert lease_left_s(offered, at_s) == 0.0
        with pytest.raises(IllegalTransition, match="lease"):
            advance(offered, DecodeSent(at_s))


@given(
    lease_s=st.floats(1e-3, 1e4),
    offered_s=st.floats(0, 1e9),
    share=st.floats(0, 1.5),
)
def test_lease_left_and_dispatch_agree(lease_s: float, offered_s: float, share: float) -> None:
    """Decode may be sent exactly while lease_left_s is above zero."""
    handoff = plan(RequestId("r"), prefill=WorkerId("p"), decode=WorkerId("d"), at_s=offered_s)
    handoff = advance(handoff, PrefillSent(offered_s))
    handoff = advance(handoff, PrefillAnswered(offered_s, 1, 1, lease_s))
    now_s = offered_s + share * lease_s
    if lease_left_s(handoff, now_s) > 0:
        assert advance(handoff, DecodeSent(now_s)).state is S.ACCEPTED
        assert now_s < offered_s + lease_s
    else:
        with pytest.raises(IllegalTransition):
            advance(handoff, DecodeSent(now_s))


def test_no_lease_left_before_an_offer() -> None:
    """What was not offered cannot be sent on."""
    assert lease_left_s(fresh(), START_S) == 0.0


def test_a_lease_does_not_expire_early() -> None:
    """LeaseExpired before the lease's end is refused, both for an offer and for a reclaim."""
    offered = walk(ROUTES[S.OFFERED])
    early = LeaseExpired(START_S + LEASE_S - 0.001)
    with pytest.raises(IllegalTransition, match="runs until"):
        advance(offered, early)
    failed = advance(offered, LegFailed(START_S, reason="no decode worker"))
    with pytest.raises(IllegalTransition, match="runs until"):
        advance(failed, early)
    assert advance(failed, LeaseExpired(START_S + LEASE_S)).state is S.RECLAIMED


def test_failure_after_dispatch_waits_for_a_renewed_lease() -> None:
    """Decode may have renewed the lease just before it failed, so reclaiming waits for that."""
    accepted = walk(ROUTES[S.ACCEPTED])
    soon = advance(accepted, LegFailed(START_S + 1, reason="reset"))
    assert soon.lease_expires_s == START_S + LEASE_S
    late = advance(accepted, LegFailed(START_S + 25, reason="deadline"))
    assert late.lease_expires_s == pytest.approx(START_S + 25 + 20)


def test_reason_is_kept_short_and_never_empty() -> None:
    """A reason quotes at most REASON_MAX_CHARS, and a failure without words still has one."""
    handoff = walk(ROUTES[S.PREFILLING])
    long = advance(handoff, LegFailed(START_S, reason="x" * 5000))
    assert long.reason == "x" * protocol.REASON_MAX_CHARS
    assert advance(handoff, LegFailed(START_S, reason="")).reason == "leg failed"
    assert advance(handoff, ClientGone(START_S)).reason == "client gone"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_tokens": 0},
        {"kv_bytes": -1},
        {"lease_s": 0.0},
        {"lease_s": -1.0},
        {"lease_s": math.nan},
        {"lease_s": math.inf},
    ],
    ids=str,
)
def test_impossible_offers_are_refused(fields: dict[str, float]) -> None:
    """A peer's nonsense cannot become an event."""
    good = {"prompt_tokens": 1, "kv_bytes": 0, "lease_s": 1.0}
    with pytest.raises(ValueError, match=next(iter(fields))):
        PrefillAnswered(at_s=0.0, **(good | fields))  # type: ignore[arg-type]


def test_plan_needs_two_workers_and_a_time() -> None:
    """A worker does not hand over to itself; a plan has a moment."""
    one = WorkerId("w")
    with pytest.raises(ValueError, match="two workers"):
        plan(RequestId("r"), prefill=one, decode=one, at_s=0.0)
    with pytest.raises(ValueError, match="finite"):
        plan(RequestId("r"), prefill=one, decode=WorkerId("v"), at_s=math.nan)


def test_illegal_transitions_are_bugs_of_ours() -> None:
    """The error stands in the part of the tree that nobody catches to go on."""
    with pytest.raises(OurFault):
        advance(fresh(), Finished(START_S))


def test_a_bare_event_is_not_an_event() -> None:
    """The base class has no rows."""
    with pytest.raises(IllegalTransition):
        advance(fresh(), Event(START_S))


def ways_out(handoff: Handoff) -> bool:
    """Whether the lease's end and a client that leaves suffice to reach a final state."""
    for event in (ClientGone, LeaseExpired):
        if handoff.is_final:
            break
        if (handoff.state, event) in protocol.TRANSITIONS:
            at_s = max(handoff.updated_s, handoff.lease_expires_s or 0.0)
            handoff = advance(handoff, make(event, at_s))
    return handoff.is_final


STARTS = st.sampled_from([*ROUTES.values(), *STRANDED_ROUTES.values()])
# Which event, how much later, which figure. Runs begin in any state and most events are drawn
# from the legal ones, since blind draws from PLANNED seldom get past OFFERED.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(EVENTS),
        st.sampled_from([0.0, 0.0, 1.0, 24.0, 30.0, 45.0, -1.0]),
        st.integers(0, 10**6),
    ),
    max_size=20,
)


def pick(handoff: Handoff, choice: int, blind: type[Event]) -> type[Event]:
    legal = [event for state, event in protocol.TRANSITIONS if state is handoff.state]
    return legal[choice] if choice < len(legal) else blind


@given(STARTS, STEPS)
def test_invariants_hold_over_any_run_of_events(
    start: tuple[type[Event], ...], steps: list[tuple[int, type[Event], float, int]]
) -> None:
    """Whatever is thrown at it, a handoff keeps its promises and nothing illegal changes it."""
    handoff = walk(start)
    passed = {walk(start[:length]).state for length in range(len(start) + 1)}
    for choice, blind, later_s, kv_bytes in steps:
        event_type = pick(handoff, choice, blind)
        at_s = handoff.updated_s + later_s
        event = (
            PrefillAnswered(at_s, 700, kv_bytes, LEASE_S)
            if event_type is PrefillAnswered
            else make(event_type, at_s)
        )
        try:
            after = advance(handoff, event)
        except IllegalTransition:
            continue
        assert not handoff.is_final
        assert after.updated_s >= handoff.updated_s
        assert after.created_s == START_S
        if S.OFFERED in passed:
            assert after.kv_bytes == handoff.kv_bytes
            assert after.lease_expires_s is not None
            assert after.lease_expires_s >= (handoff.lease_expires_s or 0.0)
        handoff = after
        passed.add(handoff.state)
        assert handoff.is_open == (handoff.state in OPEN)
        assert not (handoff.is_open and handoff.is_final)
        assert not (handoff.is_open and handoff.stranded)
        if handoff.holds_kv:
            assert S.OFFERED in passed
        if handoff.is_final:
            assert not handoff.holds_kv
        assert bool(handoff.reason) == (handoff.state not in OPEN | {S.DONE})
        assert ways_out(handoff)


def test_every_state_is_reached_by_the_table() -> None:
    """No state is out of reach, and DONE only through OFFERED, ACCEPTED and PULLED."""
    reached = {S.PLANNED} | {row.target for row in protocol.TRANSITIONS.values()}
    assert reached == set(HandoffState)
    for target, only_from in ((S.DONE, S.PULLED), (S.PULLED, S.ACCEPTED), (S.ACCEPTED, S.OFFERED)):
        sources = {s for (s, _), row in protocol.TRANSITIONS.items() if row.target is target}
        assert sources == {only_from}


def test_mermaid_draws_every_row() -> None:
    """The picture has one labelled arrow per pair of states, and marks what strands blocks."""
    lines = mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> PLANNED"]
    assert "    OFFERED --> EXPIRED: LeaseExpired" in lines
    assert "    ACCEPTED --> EXPIRED: LeaseExpired*" in lines
    assert "    FAILED --> RECLAIMED: LeaseExpired, BlocksReleased" in lines
    drawn = set()
    for line in lines[2:]:
        source, _, rest = line.strip().partition(" --> ")
        target, _, labels = rest.partition(": ")
        drawn |= {(source, label.strip("* "), target) for label in labels.split(",") if label}
    assert drawn == {
        (source.name, event.__name__, row.target.name)
        for (source, event), row in protocol.TRANSITIONS.items()
    }
    assert {line.split()[0] for line in lines if line.endswith("--> [*]")} == {
        state.name for state in HandoffState if state not in OPEN
    }


def test_package_imports_nothing_heavy() -> None:
    """Routers and simulators import the package without the engine or a network library."""
    code = (
        "import sys, kvtransfer; "
        "print([m for m in ('torch', 'vllm', 'nixl', 'aiohttp', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
