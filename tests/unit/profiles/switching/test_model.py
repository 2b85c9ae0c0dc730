"""What holds over any run of moves, and with several routers on one document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton.types import RouterId, Tally
from profiles import ServingProfile
from profiles.switching import (
    MAX_HISTORY,
    Phase,
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
    refuse,
    roll_back,
    skip,
    step,
    take_over,
)
from tests.unit.profiles.switching.states import AT_S, PLAIN, PROFILES, ROUTERS

MAX_BYTES = 120_000
"""Three texts, and twenty reports in which everything that the rules below say is cut."""

_READ: set[tuple[str, str]] = set()
"""Texts that were seen to be their versions'; reading one takes a millisecond."""

Act = Callable[[State], State]
WORDS = st.text(max_size=400)
TIMES = st.sampled_from((0.0, 1.0, 60.0, 300.0))
COUNTS = st.builds(
    lambda requests, errors: Tally(requests=requests, errors=min(errors, requests)),
    st.integers(0, 50),
    st.integers(0, 50),
)
TERMS = st.builds(
    Terms,
    share=st.sampled_from((0.0, 0.1, 1.0)),
    skip=st.lists(
        st.sampled_from((Phase.PREPARE, Phase.SHADOW, Phase.CANARY)), max_size=3, unique=True
    ).map(tuple),
)
SEEN = st.builds(
    Seen,
    phase_s=TIMES,
    missing=st.one_of(st.just(()), st.lists(WORDS, max_size=3).map(tuple)),
    shadow=st.one_of(
        st.none(), st.builds(Shadow, requests=st.just(9), refused=st.sampled_from((0, 0, 0, 9)))
    ),
    tallies=st.dictionaries(
        st.sampled_from([profile.version for profile in PROFILES]), COUNTS, max_size=4
    ),
    before=COUNTS,
)


@dataclass
class Ends:
    """How switches ended, as somebody has seen it; complains when it changes."""

    outcomes: dict[int, Phase] = field(default_factory=dict)

    def see(self, state: State) -> None:
        for report in state.history:
            known = self.outcomes.setdefault(report.number, report.outcome)
            assert known is report.outcome, f"number {report.number} ended twice"
        if state.switch is not None:
            assert state.switch.number not in self.outcomes, "a switch that had ended is on"


def sound(state: State) -> None:
    """What is true of every state by itself."""
    numbers = [report.number for report in state.history]
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= MAX_HISTORY
    assert all(report.outcome.over for report in state.history)
    named = [one for one in (state.active, state.previous) if one is not None]
    if state.switch is not None:
        assert not state.switch.phase.over
        assert state.switch.old == state.active
        assert state.switch.new.version != state.active.version
        assert state.switch.number not in numbers
        named.append(state.switch.new)
    assert set(state.profiles) == {one.version for one in named}
    for one in named:
        if (one.version, state.profiles[one.version]) not in _READ:
            assert profile_of(state, one.version).version == one.version
            _READ.add((one.version, state.profiles[one.version]))
    assert state.number >= max([*numbers, state.switch.number if state.switch else 0])
    value = encode(state)
    assert decode(value) == state
    assert len(value) < MAX_BYTES


class OneWriter(RuleBasedStateMachine):
    """Any move at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = first(PLAIN)
        self.ends = Ends()

    def act(self, move: Act) -> None:
        """What is refused changes nothing, and what moves keeps what has ended."""
        before = self.state
        try:
            self.state = move(before)
        except SwitchRefused:
            return
        if before.switch is not None and self.state.switch is None:
            last = next(r for r in self.state.history if r.number == before.switch.number)
            committed = last.outcome is Phase.COMMITTED
            assert self.state.active == (last.new if committed else last.old)
            assert self.state.previous == (last.old if committed else before.previous)
            assert len(self.state.history) == min(len(before.history) + 1, MAX_HISTORY)
        elif before.switch is not None:
            assert self.state.active == before.active
        self.ends.see(self.state)

    @rule(
        profile=st.sampled_from(PROFILES),
        router=st.sampled_from(ROUTERS),
        terms=TERMS,
        words=WORDS,
    )
    def begin(self, profile: ServingProfile, router: RouterId, terms: Terms, words: str) -> None:
        self.act(lambda s: begin(s, profile, router=router, by=words, terms=terms, notes=[words]))

    @rule(seen=SEEN)
    def step(self, seen: Seen) -> None:
        self.act(lambda s: step(s, seen, at_s=AT_S))

    @rule(seen=SEEN, times=st.integers(1, 4))
    def steps(self, seen: Seen, times: int) -> None:
        for _ in range(times):
            self.act(lambda s: step(s, seen, at_s=AT_S))

    @rule()
    def skip(self) -> None:
        self.act(lambda s: skip(s, AT_S))

    @rule(words=WORDS)
    def roll_back(self, words: str) -> None:
        self.act(lambda s: roll_back(s, words, AT_S))

    @rule(router=st.sampled_from(ROUTERS))
    def take_over(self, router: RouterId) -> None:
        self.act(lambda s: take_over(s, router))

    @rule(router=st.sampled_from(ROUTERS))
    def back(self, router: RouterId) -> None:
        self.act(lambda s: back(s, router))

    @rule(profile=st.sampled_from(PROFILES), words=WORDS, times=st.sampled_from((1, 1, 30)))
    def refuse(self, profile: ServingProfile, words: str, times: int) -> None:
        for _ in range(times):
            self.act(lambda s: refuse(s, profile, by=words, reason=words, at_s=AT_S, proposal="d"))

    @invariant()
    def holds(self) -> None:
        sound(self.state)


@dataclass
class Register:
    """The store's document: compare-and-swap on a revision that it counts."""

    value: bytes
    revision: int = 1

    def swap(self, expected: int, value: bytes) -> bool:
        if expected != self.revision:
            return False
        self.revision, self.value = self.revision + 1, value
        return True


@dataclass
class Router:
    """One that has read the register some time ago, and believes what it has read."""

    id: RouterId
    register: Register
    revision: int = 0
    ends: Ends = field(default_factory=Ends)

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        assert self.register.revision >= self.revision
        self.revision = self.register.revision
        self.state = decode(self.register.value)
        self.ends.see(self.state)

    def try_to(self, move: Act) -> State | None:
        """Moves from what it knows; the state that it has written, or None."""
        try:
            state = move(self.state)
        except SwitchRefused:
            return None
        if not self.register.swap(self.revision, encode(state)):
            return None
        self.read()
        assert self.state == state
        return state


WHO = st.integers(0, len(ROUTERS) - 1)


class ManyWriters(RuleBasedStateMachine):
    """Routers that act on what they have read some time ago, and read at random."""

    def __init__(self) -> None:
        super().__init__()
        self.register = Register(encode(first(PLAIN)))
        self.routers = [Router(router, self.register) for router in ROUTERS]
        self.ended: dict[int, Phase] = {}
        self.begun: set[int] = set()

    def act(self, who: int, move: Act) -> None:
        before = decode(self.register.value)
        after = self.routers[who].try_to(move)
        if after is None:
            return
        if before.switch is None and after.switch is not None:
            assert after.switch.number not in self.begun
            self.begun.add(after.switch.number)
        if before.switch is not None and after.switch is None:
            number = before.switch.number
            assert number not in self.ended
            self.ended[number] = next(r for r in after.history if r.number == number).outcome
        # A switch never turns into another one within one write.
        if before.switch is not None and after.switch is not None:
            assert before.switch.number == after.switch.number

    @rule(who=WHO)
    def read(self, who: int) -> None:
        self.routers[who].read()

    @rule(who=WHO, profile=st.sampled_from(PROFILES), terms=TERMS)
    def begin(self, who: int, profile: ServingProfile, terms: Terms) -> None:
        router = ROUTERS[who]
        self.act(who, lambda s: begin(s, profile, router=router, by="operator", terms=terms))

    @rule(who=WHO, seen=SEEN)
    def step(self, who: int, seen: Seen) -> None:
        """As a router does: only where it believes to be the owner."""
        router = self.routers[who]
        if router.state.switch is not None and router.state.switch.owner == router.id:
            self.act(who, lambda s: step(s, seen, at_s=AT_S))

    @rule(who=WHO)
    def take_over(self, who: int) -> None:
        self.act(who, lambda s: take_over(s, ROUTERS[who]))

    @rule(who=WHO)
    def skip(self, who: int) -> None:
        self.act(who, lambda s: skip(s, AT_S))

    @rule(who=WHO)
    def roll_back(self, who: int) -> None:
        self.act(who, lambda s: roll_back(s, "asked for", AT_S))

    @rule(who=WHO)
    def refuse(self, who: int) -> None:
        self.act(who, lambda s: refuse(s, PLAIN, by="folder", reason="bad", at_s=AT_S))

    @invariant()
    def each_switch_ends_once(self) -> None:
        """All that have begun but for the one that is on, and everybody believes the same end."""
        state = decode(self.register.value)
        sound(state)
        on = {state.switch.number} if state.switch is not None else set()
        assert self.begun == self.ended.keys() | on
        assert not on & self.ended.keys()
        for router in self.routers:
            for number, outcome in router.ends.outcomes.items():
                assert self.ended.get(number, Phase.REFUSED) is outcome


TestOneWriter = OneWriter.TestCase
TestOneWriter.settings = settings(max_examples=100, stateful_step_count=60)
TestManyWriters = ManyWriters.TestCase
TestManyWriters.settings = settings(max_examples=100, stateful_step_count=60)


def test_the_register_refuses_a_stale_writer() -> None:
    """The check of the check: the model's register is a compare-and-swap at all."""
    register = Register(encode(first(PLAIN)))
    late, early = Router(ROUTERS[0], register), Router(ROUTERS[1], register)
    terms = Terms()

    def move(state: State) -> State:
        return begin(state, PROFILES[0], router=ROUTERS[1], by="operator", terms=terms)

    assert early.try_to(move) is not None
    assert late.try_to(move) is None
    with pytest.raises(AssertionError, match="ended twice"):
        Ends({1: Phase.COMMITTED}).see(roll_back(early.state, "r", AT_S))
