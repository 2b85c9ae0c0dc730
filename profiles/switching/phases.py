"""The switch from one profile to another: functions from one state to the next.

It exists so that "a switch ends exactly once, and nobody is left without a profile" is a property
of one file without I/O, clock or lots. Time and what was seen come in as arguments, states come
out; whoever calls writes them by compare-and-swap and, if somebody else was faster, begins again
with what is there then. A move that a state does not allow raises, and nothing has changed.

The way is PREPARE, SHADOW, CANARY, and then an end, which is a report in the history. Only the
owner may ``step``; any router may ``skip``, ``roll_back`` and, when the owner is silent,
``take_over``.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError

from baton.errors import ClientError, ProfileError
from baton.types import RouterId, Tally
from profiles.schema import ServingProfile
from profiles.switching.record import (
    MAX_HISTORY,
    Phase,
    Ref,
    Report,
    Shadow,
    State,
    Switch,
    Terms,
)
from profiles.switching.verdict import Verdict, judge

MAX_SENTENCES = 20
MAX_SENTENCE_CHARS = 300
MAX_REASON_CHARS = 1000
"""What is said in the document is for people, and is cut where it would bloat it."""

_ORDER = (Phase.PREPARE, Phase.SHADOW, Phase.CANARY, Phase.COMMITTED)


class SwitchRefused(ClientError):
    """A switch cannot begin, or be changed, as things stand; the message says what stands in the
    way."""

    status = 409
    code = "switch_refused"


class Seen(msgspec.Struct, frozen=True):
    """What the owner sees when it moves a switch on.

    Attributes:
        phase_s: seconds since this phase began for this owner, on its own clock.
        missing: in PREPARE, what is not there yet, a sentence each.
        shadow: in SHADOW, once it is known.
        tallies: in CANARY, by version, summed over all routers.
        before: the old profile's tally of the minutes before.
        told, told_before: the same by router, to be kept for a new owner.
    """

    phase_s: float = 0.0
    missing: tuple[str, ...] = ()
    shadow: Shadow | None = None
    tallies: dict[str, Tally] = {}
    before: Tally = Tally()
    told: dict[str, dict[str, Tally]] = {}
    told_before: dict[str, Tally] = {}


# --- profiles in the document ---


def ref(profile: ServingProfile) -> Ref:
    """How the document names a profile."""
    return Ref(profile.name, profile.version)


def profile_of(state: State, version: str) -> ServingProfile:
    """The profile of a version that the state names.

    A router of another version of Baton may compute another ``version`` for the same text; what
    counts is the one that it was asked for by.

    Raises:
        ProfileError: its text is not there, or is none that this version of Baton understands.
    """
    text = state.profiles.get(version)
    if text is None:
        raise ProfileError([f"the routers' shared state has no profile of version {version}"])
    try:
        return ServingProfile.model_validate_json(text)
    except ValidationError as error:
        problems = [
            f"shared state, version {version}: {'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ProfileError(problems) from error


def terms_of(profile: ServingProfile) -> Terms:
    """How the profile itself wants to be switched to (``spec.switch``)."""
    spec = profile.spec.switch
    left_out = {Phase.SHADOW: not spec.shadow, Phase.CANARY: spec.canary_share == 0}
    return Terms(
        prepare_s=spec.prepare_s,
        share=spec.canary_share,
        hold_s=spec.hold_s,
        canary_s=spec.canary_s,
        min_requests=spec.min_requests,
        skip=tuple(phase for phase, left in left_out.items() if left),
    )


# --- beginnings ---


def first(profile: ServingProfile) -> State:
    """Nothing has been agreed on yet: this profile is active."""
    return State(active=ref(profile), profiles={profile.version: _text(profile)})


def begin(
    state: State,
    profile: ServingProfile,
    *,
    router: RouterId,
    by: str,
    terms: Terms,
    proposal: str = "",
    notes: Iterable[str] = (),
) -> State:
    """A switch to ``profile``, owned by ``router``; in PREPARE, whatever is left out, so that each
    switch ends in a step. ``by`` and ``proposal`` are as in ``Switch``.

    Raises:
        SwitchRefused: a switch is on, or this version is active already.
    """
    if state.switch is not None:
        raise SwitchRefused(
            f"a switch to {state.switch.new.name} is on (number {state.switch.number}, phase "
            f"{state.switch.phase}); wait for its end, or roll it back"
        )
    new = ref(profile)
    if new.version == state.active.version:
        raise SwitchRefused(
            f"version {new.version} is active already, under the name {state.active.name}"
        )
    switch = Switch(
        number=state.number + 1,
        old=state.active,
        new=new,
        by=_cut(by, MAX_SENTENCE_CHARS),
        owner=router,
        terms=terms,
        proposal=proposal,
        notes=_sentences(notes),
    )
    return replace(
        state,
        switch=switch,
        number=switch.number,
        proposal=proposal or state.proposal,
        profiles=state.profiles | {new.version: _text(profile)},
    )


def back(state: State, router: RouterId, *, by: str = "operator") -> State:
    """A switch to what was active before, on that profile's terms but without a rehearsal: it has
    served already, and who asks for this is in a hurry.

    Raises:
        SwitchRefused: nothing was active before, or a switch is on.
        ProfileError: as of ``profile_of``.
    """
    if state.previous is None:
        raise SwitchRefused("nothing was active before this profile")
    profile = profile_of(state, state.previous.version)
    terms = replace(terms_of(profile), skip=(Phase.SHADOW, Phase.CANARY))
    return begin(state, profile, router=router, by=by, terms=terms)


def refuse(
    state: State,
    new: Ref | ServingProfile,
    *,
    by: str,
    reason: str,
    at_s: float,
    proposal: str = "",
) -> State:
    """Notes that a switch was asked for and never began. Nothing else changes, a switch that is on
    least of all; ``proposal`` is noted, so that it is not tried again.

    Args:
        state: any.
        new: the profile; of one that cannot be read, the name that was asked for.
        by: as in ``Switch``.
        reason: in sentences.
        at_s: wall-clock seconds.
        proposal: as in ``Switch``.
    """
    report = Report(
        number=state.number + 1,
        old=state.active,
        new=ref(new) if isinstance(new, ServingProfile) else new,
        by=_cut(by, MAX_SENTENCE_CHARS),
        outcome=Phase.REFUSED,
        reason=_cut(reason, MAX_REASON_CHARS),
        at_s=at_s,
    )
    return replace(
        state,
        number=report.number,
        proposal=proposal or state.proposal,
        history=_remember(state.history, report),
    )


# --- moves of a switch that is on; all raise SwitchRefused where none is ---


def step(state: State, seen: Seen, *, at_s: float) -> State:
    """The owner's move: at most one phase further, or an end; a new beat in any case.

    ``at_s`` is wall-clock seconds, for the report.
    """
    switch = _on(state)
    terms = switch.terms
    switch = replace(switch, beat=switch.beat + 1)
    match switch.phase:
        case Phase.PREPARE:
            waits = () if Phase.PREPARE in terms.skip else _sentences(seen.missing)
            state = replace(state, switch=replace(switch, waiting_for=waits))
            if not waits:
                return _next(state, at_s, seen.phase_s)
            if seen.phase_s >= terms.prepare_s:
                reason = f"not ready after {terms.prepare_s:g} s: {'; '.join(waits)}"
                return _end(state, Phase.ROLLED_BACK, reason, at_s, seen.phase_s)
        case Phase.SHADOW:
            state = replace(state, switch=replace(switch, shadow=seen.shadow))
            if seen.shadow is not None and seen.shadow.refused > 0:
                reason = (
                    f"{seen.shadow.refused} of {seen.shadow.requests} recent requests would find "
                    "no worker"
                )
                return _end(state, Phase.ROLLED_BACK, reason, at_s, seen.phase_s)
            if seen.shadow is not None:
                return _next(state, at_s, seen.phase_s)
            if seen.phase_s >= terms.prepare_s:
                reason = f"recent requests could not be decided anew in {terms.prepare_s:g} s"
                return _end(state, Phase.ROLLED_BACK, reason, at_s, seen.phase_s)
        case _:
            # Versions that are not of this switch have no place in its report.
            versions = (switch.old.version, switch.new.version)
            tallies = {version: seen.tallies.get(version, Tally()) for version in versions}
            switch = replace(switch, tallies=tallies, told=seen.told, told_before=seen.told_before)
            return _judged(replace(state, switch=switch), switch, seen, at_s)
    return state


def _judged(state: State, switch: Switch, seen: Seen, at_s: float) -> State:
    """A canary that goes on, or its end."""
    terms = switch.terms
    verdict = _verdict(switch, seen)
    served = switch.tallies[switch.new.version].requests
    if verdict.worse:
        return _end(state, Phase.ROLLED_BACK, verdict.sentence, at_s, seen.phase_s)
    if seen.phase_s >= terms.hold_s and served >= terms.min_requests:
        reason = f"not worse in a canary of {seen.phase_s:.0f} s; {verdict.sentence}"
        return _end(state, Phase.COMMITTED, reason, at_s, seen.phase_s)
    if seen.phase_s >= terms.canary_s:
        reason = (
            f"the canary's {terms.canary_s:g} s are over, with {served} of the "
            f"{terms.min_requests} requests that it should have seen; {verdict.sentence}"
        )
        return _end(state, Phase.COMMITTED, reason, at_s, seen.phase_s)
    return state


def _verdict(switch: Switch, seen: Seen) -> Verdict:
    old, new = switch.old, switch.new
    same = old.name == new.name  # an edited profile keeps its name
    return judge(
        switch.tallies[old.version],
        switch.tallies[new.version],
        seen.before,
        switch.terms.min_requests,
        old_name=f"{old.name} {old.version}" if same else old.name,
        new_name=f"{new.name} {new.version}" if same else new.name,
    )


def skip(state: State, at_s: float, *, phase_s: float | None = None) -> State:
    """An operator ends the phase early: a canary is committed, other phases go on to the next.
    ``phase_s`` is how long it lasted, where that is known."""
    switch = _on(state)
    switch = replace(switch, skipped=(*switch.skipped, switch.phase))
    return _next(replace(state, switch=switch), at_s, phase_s)


def roll_back(state: State, reason: str, at_s: float, *, phase_s: float | None = None) -> State:
    """The switch ends, and the old profile stays; ``phase_s`` as of ``skip``."""
    _on(state)
    return _end(state, Phase.ROLLED_BACK, reason, at_s, phase_s)


def take_over(state: State, router: RouterId) -> State:
    """``router`` goes on in the place of an owner that is silent; the phase's time begins anew,
    because nobody else's clock is known."""
    switch = _on(state)
    switch = replace(
        switch, owner=router, phase_number=switch.phase_number + 1, beat=switch.beat + 1
    )
    return replace(state, switch=switch)


# --- how phases and switches end ---


def _on(state: State) -> Switch:
    if state.switch is None:
        raise SwitchRefused("no switch is on")
    return state.switch


def _next(state: State, at_s: float, phase_s: float | None) -> State:
    """The next phase that is not left out."""
    switch = _on(state)
    left_out = set(switch.terms.skip)
    if switch.terms.share <= 0:
        left_out.add(Phase.CANARY)
    following = _ORDER[_ORDER.index(switch.phase) + 1 :]
    phase = next(one for one in following if one is Phase.COMMITTED or one not in left_out)
    if phase is Phase.COMMITTED:
        reason = "" if switch.phase is Phase.CANARY else "without a canary"
        return _end(state, Phase.COMMITTED, reason, at_s, phase_s)
    switch = replace(
        switch,
        phase=phase,
        phase_number=switch.phase_number + 1,
        waiting_for=(),
        took_s=_took(switch, phase_s),
    )
    return replace(state, switch=switch)


def _end(state: State, outcome: Phase, reason: str, at_s: float, phase_s: float | None) -> State:
    """The only way out of a switch: it becomes a report."""
    switch = _on(state)
    skipped = " and ".join(switch.skipped)
    parts = [reason, f"an operator ended {skipped} early" if skipped else ""]
    report = Report(
        number=switch.number,
        old=switch.old,
        new=switch.new,
        by=switch.by,
        outcome=outcome,
        reason=_cut("; ".join(filter(None, parts)), MAX_REASON_CHARS),
        at_s=at_s,
        waiting_for=switch.waiting_for,
        notes=switch.notes,
        shadow=switch.shadow,
        tallies=switch.tallies,
        took_s=_took(switch, phase_s),
    )
    committed = outcome is Phase.COMMITTED
    active = switch.new if committed else state.active
    previous = switch.old if committed else state.previous
    named = {active.version, previous.version if previous is not None else active.version}
    return replace(
        state,
        active=active,
        previous=previous,
        profiles={version: text for version, text in state.profiles.items() if version in named},
        switch=None,
        history=_remember(state.history, report),
    )


def _took(switch: Switch, phase_s: float | None) -> dict[str, float]:
    return switch.took_s if phase_s is None else switch.took_s | {switch.phase.value: phase_s}


def _remember(history: tuple[Report, ...], report: Report) -> tuple[Report, ...]:
    """The history with one more; that one is kept however many refusals were numbered after it."""
    report = replace(report, order=1 + max((one.order for one in history), default=0))
    kept = history[-(MAX_HISTORY - 1) :]
    return tuple(sorted((*kept, report), key=lambda one: one.number))


def _text(profile: ServingProfile) -> str:
    return profile.model_dump_json(by_alias=True)


def _sentences(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(_cut(one, MAX_SENTENCE_CHARS) for one in tuple(sentences)[:MAX_SENTENCES])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
