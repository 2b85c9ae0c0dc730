"""What routers agree on: which profile is active, and how far a switch to another one is.

Plain data that goes into the store as one JSON document; every change of it is made by a pure
function of ``phases`` and written by compare-and-swap. New fields must have defaults.
"""

from __future__ import annotations

import enum

import msgspec

from baton.types import RouterId, Tally

MAX_HISTORY = 20
"""Reports that are kept, newest last."""

OWNER_SILENT_S = 3.0
"""Seconds without a new beat, on the clock of whoever looks, after which another router takes over.
An owner's beat is half a second; a store that is away stops everybody alike."""


class Phase(enum.StrEnum):
    """Where a switch is, or how it ended."""

    PREPARE = "prepare"
    """Waits until the pools that the profile needs are there, and their pairs checked."""
    SHADOW = "shadow"
    """Decides the last requests anew under the new profile, and compares."""
    CANARY = "canary"
    """A share of the requests is served under the new profile."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    """It never began: the profile is broken, or does not fit."""

    @property
    def over(self) -> bool:
        """Whether the switch has ended."""
        return self in (Phase.COMMITTED, Phase.ROLLED_BACK, Phase.REFUSED)


class Terms(msgspec.Struct, frozen=True):
    """How a switch is made: the new profile's ``spec.switch``, or what the operator says instead.

    Attributes:
        prepare_s: how long to wait for pools.
        share: of requests that the canary takes, above 0 up to 1.
        hold_s: how long the canary lasts at least.
        canary_s: and at most; then what is known has to do.
        min_requests: that the canary should have served before it is judged good.
        skip: phases that are left out.
    """

    prepare_s: float = 60.0
    share: float = 0.1
    hold_s: float = 30.0
    canary_s: float = 300.0
    min_requests: int = 20
    skip: tuple[Phase, ...] = ()


class Ref(msgspec.Struct, frozen=True):
    """A profile by its name and version (``ServingProfile.version``)."""

    name: str
    version: str


class Shadow(msgspec.Struct, frozen=True):
    """What the last requests would have met under the new profile.

    Attributes:
        requests: how many were decided anew.
        changed: how many would take another path, by ``"old -> new"``, such as
            ``"disaggregated -> local"``.
        refused: how many would find no worker that have found one.
        old_ttft_s, new_ttft_s: mean predicted times to the first token, where something is
            predicted on both sides; None where not.
    """

    requests: int = 0
    changed: dict[str, int] = {}
    refused: int = 0
    old_ttft_s: float | None = None
    new_ttft_s: float | None = None


class Switch(msgspec.Struct, frozen=True):
    """A switch that is on.

    Attributes:
        number: counts switches; also salts the canary's lots.
        old, new: the profiles.
        by: who asked: ``operator``, or the source's description.
        proposal: digest of the source's bundle that asked for it; empty for an operator's.
        terms: how it is made.
        phase: never one that is over.
        phase_number: counts phases; a new owner begins the phase's time anew.
        owner: who moves it on.
        beat: raised by each of the owner's writes.
        waiting_for: in PREPARE, what is missing, a sentence each.
        notes: what else operators should know, a sentence each.
        shadow: once the phase is over.
        tallies: in CANARY, by version, over all routers, as the owner last summed them.
        told, told_before: in CANARY, by router, what it told of both sides, and of the old one's
            minutes before; so that a new owner knows it of routers that are gone.
        took_s: by phase that is over, how long it lasted under its last owner, where that is known.
        skipped: phases that an operator ended early.
    """

    number: int
    old: Ref
    new: Ref
    by: str
    owner: RouterId
    terms: Terms = Terms()
    proposal: str = ""
    phase: Phase = Phase.PREPARE
    phase_number: int = 0
    beat: int = 0
    waiting_for: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shadow: Shadow | None = None
    tallies: dict[str, Tally] = {}
    told: dict[str, dict[str, Tally]] = {}
    told_before: dict[str, Tally] = {}
    took_s: dict[str, float] = {}
    skipped: tuple[Phase, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """How a switch ended; ``at_s`` is wall-clock time of the router that ended it, for people.
    ``order`` counts ends: a refusal while a switch is on has the higher number and ends first.
    ``reason`` says it in sentences, with figures."""

    number: int
    old: Ref
    new: Ref
    by: str
    outcome: Phase
    reason: str
    at_s: float
    waiting_for: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shadow: Shadow | None = None
    tallies: dict[str, Tally] = {}
    took_s: dict[str, float] = {}
    order: int = 0


class State(msgspec.Struct, frozen=True):
    """The whole document.

    Attributes:
        active: what requests are served by, but for a canary's share.
        previous: what was active before; None at first.
        profiles: by version, the profiles named here, as JSON text of the whole profile, so that
            every router has them whatever its own source holds.
        switch: the one that is on.
        number: of the last switch.
        proposal: digest of the source's bundle that was acted on last, well or not.
        history: how the last switches ended, in the order of their numbers. A proposal that is
            refused while a switch is on has the higher number, and is there earlier.
    """

    active: Ref
    previous: Ref | None = None
    profiles: dict[str, str] = {}
    switch: Switch | None = None
    number: int = 0
    proposal: str = ""
    history: tuple[Report, ...] = ()


def encode(state: State) -> bytes:
    """As it is stored."""
    return msgspec.json.encode(state)


def decode(value: bytes) -> State:
    """From the store.

    Raises:
        msgspec.DecodeError: it is no state.
    """
    return msgspec.json.decode(value, type=State)
