"""Profiles and states that the tests of the switch start from."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from baton.types import RouterId
from profiles import ServingProfile, parse_profile
from profiles.switching import Phase, Report, Seen, State, Switch, Terms, begin, first, step
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed

R1, R2, R3 = ROUTERS = (RouterId("r1"), RouterId("r2"), RouterId("r3"))
AT_S = 1_000_000.0


def parse(text: str) -> ServingProfile:
    return parse_profile(text, source="p.yaml")


SPLIT = parse(DISAGGREGATED)
PLAIN = parse(STANDARD)
EDITED = parse(changed(DISAGGREGATED, ("threshold_tokens: 256", "threshold_tokens: 512")))
OTHER = parse(
    changed(
        STANDARD,
        ("name: plain", "name: other"),
        ("accelerator: cpu", "replicas: 2\n      accelerator: cpu"),
    )
)
PROFILES = (SPLIT, PLAIN, EDITED, OTHER)

_BEFORE = {
    Phase.PREPARE: (),
    Phase.SHADOW: (Phase.PREPARE,),
    Phase.CANARY: (Phase.PREPARE, Phase.SHADOW),
}


def switching(phase: Phase = Phase.PREPARE, **terms: Any) -> State:
    """A switch from PLAIN to SPLIT, owned by R1, in ``phase``; ``terms`` name fields."""
    skip = Terms(skip=_BEFORE[phase])
    state = begin(first(PLAIN), SPLIT, router=R1, by="operator", terms=skip)
    if phase is not Phase.PREPARE:
        state = step(state, Seen(phase_s=1.0), at_s=AT_S)
    switch = on(state)
    assert switch.phase is phase
    return replace(state, switch=replace(switch, terms=Terms(**terms)))


def on(state: State) -> Switch:
    assert state.switch is not None
    return state.switch


def ended(state: State) -> Report:
    """The report of a switch that has just ended."""
    assert state.switch is None
    return state.history[-1]
