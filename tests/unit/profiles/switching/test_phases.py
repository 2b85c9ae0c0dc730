"""Each move of a switch, from each phase: what it leads to, what it says, what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from baton.errors import ClientError, ProfileError
from baton.types import Tally
from profiles import ServingProfile, builtin_names, parse_profile, resolve_profile
from profiles.switching import (
    MAX_HISTORY,
    Phase,
    Ref,
    Seen,
    Shadow,
    State,
    SwitchRefused,
    Terms,
    back,
    begin,
    decode,
    encode,
    first,
    profile_of,
    ref,
    refuse,
    roll_back,
    skip,
    step,
    take_over,
    terms_of,
)
from profiles.switching.phases import MAX_REASON_CHARS, MAX_SENTENCE_CHARS, MAX_SENTENCES
from tests.unit.profiles.switching.states import (
    AT_S,
    EDITED,
    OTHER,
    PLAIN,
    R1,
    R2,
    SPLIT,
    ended,
    on,
    switching,
)
from tests.unit.profiles.texts import STANDARD, changed

ALL = (Phase.PREPARE, Phase.SHADOW, Phase.CANARY)
GOOD_SHADOW = Shadow(requests=200, changed={"local -> disaggregated": 30})


def move(state: State, **seen: object) -> State:
    return step(state, Seen(**seen), at_s=AT_S)  # type: ignore[arg-type]


def tallies(old: Tally, new: Tally) -> dict[str, Tally]:
    return {PLAIN.version: old, SPLIT.version: new}


def committed(state: State) -> State:
    """From any state with a switch to its good end."""
    while state.switch is not None:
        state = skip(state, AT_S)
    return state


# --- beginnings ---


def test_first() -> None:
    """At first a profile is active, and nothing else is known."""
    state = first(PLAIN)
    assert state.active == Ref("plain", PLAIN.version)
    assert list(state.profiles) == [PLAIN.version]
    assert (state.previous, state.switch, state.number, state.history) == (None, None, 0, ())


def test_begin() -> None:
    """A switch begins in PREPARE with its own number; what is active stays."""
    state = begin(
        first(PLAIN), SPLIT, router=R1, by="folder x", terms=Terms(), proposal="d", notes=["n"]
    )
    switch = on(state)
    assert (switch.number, state.number, switch.phase, switch.beat) == (1, 1, Phase.PREPARE, 0)
    assert (switch.old, switch.new, state.active) == (ref(PLAIN), ref(SPLIT), ref(PLAIN))
    assert (switch.by, switch.owner, switch.proposal, switch.notes) == ("folder x", R1, "d", ("n",))
    assert state.proposal == "d"
    assert set(state.profiles) == {PLAIN.version, SPLIT.version}


def test_an_operator_does_not_forget_the_sources_proposal() -> None:
    """Else the source's last word would be tried once more after each switch by hand."""
    state = replace(first(PLAIN), proposal="d")
    assert begin(state, SPLIT, router=R1, by="operator", terms=Terms()).proposal == "d"


def test_begin_is_refused_while_a_switch_is_on() -> None:
    """One at a time; the message says which, and what to do."""
    with pytest.raises(SwitchRefused, match=r"example is on \(number 1, phase prepare\)") as caught:
        begin(switching(), OTHER, router=R2, by="operator", terms=Terms())
    assert isinstance(caught.value, ClientError)
    assert (caught.value.status, caught.value.code) == (409, "switch_refused")


def test_begin_is_refused_for_what_is_active() -> None:
    """The same content under another name is no other profile."""
    renamed = parse_profile(changed(STANDARD, ("name: plain", "name: twin")), source="p.yaml")
    with pytest.raises(SwitchRefused, match="active already, under the name plain"):
        begin(first(PLAIN), renamed, router=R1, by="operator", terms=Terms())


def test_back() -> None:
    """Back to what was before, after PREPARE at once; and back again."""
    state = committed(switching())
    assert (state.active, state.previous) == (ref(SPLIT), ref(PLAIN))
    state = back(state, R2)
    assert (on(state).new, on(state).owner, on(state).phase) == (ref(PLAIN), R2, Phase.PREPARE)
    state = move(state)
    assert (state.active, state.previous) == (ref(PLAIN), ref(SPLIT))
    assert ended(state).reason == "without a canary"


def test_back_is_refused_without_a_before() -> None:
    """Nothing to go back to, or somewhere else already."""
    with pytest.raises(SwitchRefused, match="nothing was active before"):
        back(first(PLAIN), R1)
    state = committed(switching())
    with pytest.raises(SwitchRefused, match="is on"):
        back(begin(state, OTHER, router=R1, by="operator", terms=Terms()), R1)


@pytest.mark.parametrize("state", [first(PLAIN), *map(switching, ALL)], ids=["none", *ALL])
def test_refuse(state: State) -> None:
    """A report and a number, and nothing else; the proposal is remembered."""
    after = refuse(state, Ref("broken", ""), by="folder x", reason="bad", at_s=AT_S, proposal="d")
    report = after.history[-1]
    assert (report.outcome, report.number) == (Phase.REFUSED, state.number + 1)
    assert (report.old, report.new) == (state.active, Ref("broken", ""))
    assert (report.by, report.reason, report.at_s) == ("folder x", "bad", AT_S)
    unchanged = replace(after, history=state.history, number=state.number, proposal=state.proposal)
    assert unchanged == state
    assert after.proposal == "d"
    profile = refuse(state, SPLIT, by="operator", reason="bad", at_s=AT_S)
    assert (profile.history[-1].new, profile.proposal) == (ref(SPLIT), state.proposal)


# --- the owner's moves ---


def test_the_whole_way() -> None:
    """One phase per step, a beat with each, times by phase, then the new profile is active."""
    state = switching(hold_s=30.0, min_requests=20)
    state = move(state, phase_s=2.0, missing=("spec.pools.decode: no worker is ready",))
    assert on(state).waiting_for == ("spec.pools.decode: no worker is ready",)
    assert (on(state).phase, on(state).beat, on(state).phase_number) == (Phase.PREPARE, 1, 0)
    state = move(state, phase_s=4.0)
    assert (on(state).phase, on(state).beat, on(state).phase_number) == (Phase.SHADOW, 2, 1)
    assert on(state).waiting_for == ()
    state = move(state, phase_s=0.5)
    assert (on(state).phase, on(state).beat) == (Phase.SHADOW, 3)
    state = move(state, phase_s=1.0, shadow=GOOD_SHADOW)
    assert (on(state).phase, on(state).beat, on(state).phase_number) == (Phase.CANARY, 4, 2)
    counts = tallies(Tally(requests=90), Tally(requests=10))
    state = move(state, phase_s=31.0, tallies=counts | {"stranger": Tally(requests=1)})
    assert (on(state).phase, on(state).tallies, state.active) == (Phase.CANARY, counts, ref(PLAIN))
    counts = tallies(Tally(requests=180, streams=4, ttft_s=2.0), Tally(requests=20))
    state = move(state, phase_s=40.0, tallies=counts)
    report = ended(state)
    assert (state.active, state.previous, state.number) == (ref(SPLIT), ref(PLAIN), 1)
    assert set(state.profiles) == {PLAIN.version, SPLIT.version}
    assert (report.number, report.outcome, report.at_s) == (1, Phase.COMMITTED, AT_S)
    assert report.took_s == {"prepare": 4.0, "shadow": 1.0, "canary": 40.0}
    assert (report.shadow, report.tallies) == (GOOD_SHADOW, counts)
    assert report.reason == (
        "not worse in a canary of 40 s; errors: 0 of 20 requests under example (0.0 %), "
        "0 of 180 under plain (0.0 %); mean time to the first token: 0.500 s under plain"
    )


def test_prepare_has_an_end() -> None:
    """Rolled back with everything that is missing; nothing was touched."""
    state = move(switching(prepare_s=60.0), phase_s=60.0, missing=("a: no", "b: no"))
    report = ended(state)
    assert (report.outcome, report.reason) == (
        Phase.ROLLED_BACK,
        "not ready after 60 s: a: no; b: no",
    )
    assert report.waiting_for == ("a: no", "b: no")
    assert (state.active, state.previous) == (ref(PLAIN), None)
    assert list(state.profiles) == [PLAIN.version]


def test_what_is_there_in_the_last_moment_is_there() -> None:
    """The time is for waiting; what need not wait has no end."""
    assert on(move(switching(prepare_s=1.0), phase_s=99.0)).phase is Phase.SHADOW


def test_shadow_stops_what_would_find_no_worker() -> None:
    """With the figures."""
    state = move(switching(Phase.SHADOW), shadow=Shadow(requests=200, refused=12))
    report = ended(state)
    assert report.outcome is Phase.ROLLED_BACK
    assert report.reason == "12 of 200 recent requests would find no worker"
    assert report.shadow == Shadow(requests=200, refused=12)


def test_shadow_has_an_end() -> None:
    """An owner that never gets it done must not hold the switch for ever."""
    state = move(switching(Phase.SHADOW, prepare_s=5.0), phase_s=5.0)
    assert ended(state).reason == "recent requests could not be decided anew in 5 s"


def test_a_worse_canary_is_stopped_at_once() -> None:
    """Before its time, and whatever else is fulfilled."""
    counts = tallies(Tally(requests=380, errors=1), Tally(requests=41, errors=9))
    for phase_s in (0.5, 999.0):
        state = move(switching(Phase.CANARY), phase_s=phase_s, tallies=counts)
        report = ended(state)
        assert (report.outcome, state.active) == (Phase.ROLLED_BACK, ref(PLAIN))
        assert report.reason == (
            "errors: 9 of 41 requests under example (22.0 %), 1 of 380 under plain (0.3 %)"
        )
        assert report.tallies == counts


@pytest.mark.parametrize(
    ("phase_s", "requests", "over"),
    [(29.9, 1000, False), (30.0, 19, False), (30.0, 20, True), (299.0, 0, False), (300.0, 0, True)],
)
def test_when_a_good_canary_ends(phase_s: float, requests: int, over: bool) -> None:
    """After ``hold_s`` with enough requests, or at the end of its time without."""
    counts = tallies(Tally(requests=90), Tally(requests=requests))
    state = move(switching(Phase.CANARY), phase_s=phase_s, tallies=counts)
    assert (state.switch is None) is over
    assert (state.active == ref(SPLIT)) is over


def test_a_canary_without_traffic_says_so() -> None:
    """It is committed for want of anything against it, and the report does not hide that."""
    report = ended(move(switching(Phase.CANARY, canary_s=300.0), phase_s=300.0))
    assert report.outcome is Phase.COMMITTED
    assert report.reason.startswith(
        "the canary's 300 s are over, with 0 of the 20 requests that it should have seen; errors: "
        "no requests under example, no requests under plain"
    )


def test_an_edited_profile_is_told_from_its_old_self() -> None:
    """Both have one name, so the figures stand beside versions."""
    state = begin(first(SPLIT), EDITED, router=R1, by="operator", terms=Terms())
    state = move(skip(skip(state, AT_S), AT_S), phase_s=300.0)
    assert f"under example {EDITED.version}, " in ended(state).reason
    assert f"under example {SPLIT.version}" in ended(state).reason


@pytest.mark.parametrize(
    ("left_out", "share", "way"),
    [
        ((), 0.1, [Phase.PREPARE, Phase.SHADOW, Phase.CANARY]),
        ((), 0.0, [Phase.PREPARE, Phase.SHADOW]),
        ((Phase.SHADOW,), 0.1, [Phase.PREPARE, Phase.CANARY]),
        ((Phase.PREPARE, Phase.SHADOW), 0.1, [Phase.PREPARE, Phase.CANARY]),
        ((Phase.SHADOW, Phase.CANARY), 0.1, [Phase.PREPARE]),
        (ALL, 0.1, [Phase.PREPARE]),
    ],
)
def test_phases_left_out(left_out: tuple[Phase, ...], share: float, way: list[Phase]) -> None:
    """They are passed over; PREPARE waits for nothing then, and still takes a step."""
    state = switching(skip=left_out, share=share)
    seen: list[Phase] = []
    while state.switch is not None:
        seen.append(state.switch.phase)
        missing = ("x: no",) if Phase.PREPARE in left_out else ()
        state = move(state, phase_s=300.0, shadow=GOOD_SHADOW, missing=missing)
    assert seen == way
    assert (ended(state).outcome, state.active) == (Phase.COMMITTED, ref(SPLIT))


# --- everybody's moves ---


def test_skip() -> None:
    """Phase by phase to the end, and the report says who did it."""
    state = skip(switching(), AT_S, phase_s=3.0)
    assert (on(state).phase, on(state).phase_number) == (Phase.SHADOW, 1)
    state = skip(state, AT_S)
    assert on(state).phase is Phase.CANARY
    report = ended(skip(state, AT_S, phase_s=7.0))
    assert report.outcome is Phase.COMMITTED
    assert report.reason == "an operator ended prepare and shadow and canary early"
    assert report.took_s == {"prepare": 3.0, "canary": 7.0}


@pytest.mark.parametrize("phase", ALL)
def test_roll_back(phase: Phase) -> None:
    """From every phase; what is active stays, the new text goes."""
    state = switching(phase)
    after = roll_back(state, "an operator asked for it", AT_S, phase_s=2.0)
    report = ended(after)
    assert (report.outcome, report.reason) == (Phase.ROLLED_BACK, "an operator asked for it")
    assert report.took_s[phase] == 2.0
    assert (after.active, after.previous) == (state.active, state.previous)
    assert list(after.profiles) == [PLAIN.version]


@pytest.mark.parametrize("phase", ALL)
def test_take_over(phase: Phase) -> None:
    """Another owner in the same phase, whose time begins anew."""
    state = switching(phase)
    after = take_over(state, R2)
    assert on(after) == replace(
        on(state),
        owner=R2,
        beat=on(state).beat + 1,
        phase_number=on(state).phase_number + 1,
    )
    assert replace(after, switch=state.switch) == state


@pytest.mark.parametrize(
    "act",
    [
        lambda state: step(state, Seen(), at_s=AT_S),
        lambda state: skip(state, AT_S),
        lambda state: roll_back(state, "r", AT_S),
        lambda state: take_over(state, R2),
    ],
    ids=["step", "skip", "roll_back", "take_over"],
)
def test_moves_need_a_switch(act: Callable[[State], State]) -> None:
    """A switch that has ended is not ended once more."""
    with pytest.raises(SwitchRefused, match="no switch is on"):
        act(first(PLAIN))


# --- the document ---


@pytest.mark.parametrize("name", builtin_names())
def test_profiles_survive_the_document(name: str) -> None:
    """What comes out is what went in: the same value and the same version."""
    profile = resolve_profile(name)
    state = decode(encode(first(profile)))
    again = profile_of(state, profile.version)
    assert again == profile
    assert again.version == profile.version


def test_a_profile_that_cannot_be_had() -> None:
    """No text, or one of a router that knows more: an operator's error with the field's name."""
    state = first(PLAIN)
    with pytest.raises(ProfileError, match="has no profile of version abc"):
        profile_of(state, "abc")
    text = state.profiles[PLAIN.version].replace('"mode"', '"future":1,"mode"')
    newer = replace(state, profiles={PLAIN.version: text})
    with pytest.raises(ProfileError, match=r"spec\.future: "):
        profile_of(newer, PLAIN.version)


def test_texts_of_three_profiles_at_most() -> None:
    """Active, previous, and that of a switch that is on; what is left behind goes."""
    state = committed(switching())
    state = begin(state, OTHER, router=R1, by="operator", terms=Terms())
    assert set(state.profiles) == {PLAIN.version, SPLIT.version, OTHER.version}
    assert set(roll_back(state, "r", AT_S).profiles) == {PLAIN.version, SPLIT.version}
    assert set(committed(state).profiles) == {SPLIT.version, OTHER.version}


def test_a_flood_of_refusals_does_not_bury_how_a_switch_ended() -> None:
    """They have higher numbers, and there are more of them than the history keeps."""
    state = switching()
    for _ in range(MAX_HISTORY + 5):
        state = refuse(state, SPLIT, by="folder x", reason="bad", at_s=AT_S)
    state = roll_back(state, "r", AT_S)
    assert len(state.history) == MAX_HISTORY
    assert (state.history[0].number, state.history[0].outcome) == (1, Phase.ROLLED_BACK)
    numbers = [report.number for report in state.history]
    assert numbers == sorted(set(numbers))


def test_sentences_are_bounded() -> None:
    """Whoever says too much is cut, so that the document stays a few KB."""
    many = ["x" * 5000] * 100
    state = begin(first(PLAIN), SPLIT, router=R1, by="b" * 5000, terms=Terms(), notes=many)
    state = move(state, missing=tuple(many))
    switch = on(state)
    assert len(switch.notes) == len(switch.waiting_for) == MAX_SENTENCES
    assert {len(one) for one in (*switch.notes, *switch.waiting_for, switch.by)} == {
        MAX_SENTENCE_CHARS
    }
    assert len(ended(roll_back(state, "y" * 5000, AT_S)).reason) == MAX_REASON_CHARS


def test_terms_of() -> None:
    """``spec.switch`` as it stands; a canary of nothing is none."""
    assert terms_of(PLAIN) == Terms()

    def with_switch(values: str) -> ServingProfile:
        text = changed(STANDARD, ("  model:", f"  switch: {{{values}}}\n  model:"))
        return parse_profile(text, source="p.yaml")

    values = "prepare_s: 5, canary_share: 0.5, hold_s: 6, canary_s: 7, min_requests: 8"
    assert terms_of(with_switch(values)) == Terms(5.0, 0.5, 6.0, 7.0, 8)
    terms = terms_of(with_switch("shadow: false, canary_share: 0"))
    assert terms.skip == (Phase.SHADOW, Phase.CANARY)
