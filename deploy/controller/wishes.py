"""Where the wish stands: new, open, or over and done with.

A wish is acted on once. What became of it stands in the routers' own history, under the name that
the controller asks by, and is copied into the controller's memory; so that neither a controller
that is killed between asking and hearing, nor an operator who switches elsewhere afterwards, makes
it ask twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.controller.actions import NoteWish
from deploy.controller.picture import Memory, Outcome, Picture, Routers, Wish
from profiles.switching import Phase

_OUTCOMES = {
    Phase.COMMITTED: Outcome.COMMITTED,
    Phase.ROLLED_BACK: Outcome.ROLLED_BACK,
    Phase.REFUSED: Outcome.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the wish stands.

    Attributes:
        wish: None for none.
        outcome: what became of it, as far as is known.
        noted: whether the controller's memory says so already.
        note: what it should say, where it does not.
    """

    wish: Wish | None = None
    outcome: Outcome = Outcome.OPEN
    noted: bool = True
    note: NoteWish | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something to bring about."""
        return self.wish is not None and self.outcome is Outcome.OPEN


def standing(picture: Picture, settle_s: float) -> Standing:
    """Where the picture's wish stands.

    Args:
        picture: what was seen.
        settle_s: how long routers have to know of fewer switches than before until it is believed
            that they have forgotten, and not that one of them is late.
    """
    wish, memory, routers = picture.wish, picture.memory, picture.routers
    if wish is None:
        return Standing()
    same = memory.digest == wish.digest
    if routers is None:
        return Standing(wish, memory.outcome if same else Outcome.OPEN, noted=same)
    if not same:
        # Without any memory the whole history counts: it may have been lost, not the routers'.
        after = routers.number if memory.digest else 0
        return _asked_before(wish, Memory(wish.digest, Outcome.OPEN, after), routers, noted=False)
    if memory.number > routers.number:
        return _forgotten(wish, picture, routers, settle_s)
    if memory.outcome is not Outcome.OPEN:
        return Standing(wish, memory.outcome)
    return _asked_before(wish, memory, routers, noted=True)


def _asked_before(wish: Wish, memory: Memory, routers: Routers, *, noted: bool) -> Standing:
    """Of a wish without an outcome: what the routers say."""
    for report in reversed(routers.history):
        if report.number > memory.number and report.by == wish.by:
            outcome = _OUTCOMES[report.outcome]
            return _over(wish, outcome, report.number, f"{outcome}: {report.reason}")
    if routers.switch is None and wish.known.ref.version == routers.active.version:
        reason = "the routers serve by it already"
        return _over(wish, Outcome.ACTIVE, max(memory.number, routers.number), reason)
    if noted:
        return Standing(wish)
    note = NoteWish(memory=memory, profile=wish.known.ref, reason="it was not seen before")
    return Standing(wish, noted=False, note=note)


def _over(wish: Wish, outcome: Outcome, number: int, reason: str) -> Standing:
    memory = Memory(wish.digest, outcome, number)
    return Standing(
        wish,
        outcome,
        noted=False,
        note=NoteWish(memory=memory, profile=wish.known.ref, reason=reason),
    )


def _forgotten(wish: Wish, picture: Picture, routers: Routers, settle_s: float) -> Standing:
    """The routers know of fewer switches than the controller: they began from nothing, unless one
    of them is late.

    Where they serve what served last, an operator's choice included, nothing is to be done. Where
    they serve something else, the wish is a wish again.
    """
    memory = picture.memory
    if routers.behind_s < settle_s:
        return Standing(wish, memory.outcome)
    mirrored = picture.mirrored
    kept = mirrored is not None and mirrored.ref.version == routers.active.version
    outcome = memory.outcome if kept else Outcome.OPEN
    note = NoteWish(
        memory=Memory(wish.digest, outcome, routers.number),
        profile=wish.known.ref,
        reason="the routers know nothing any more of what was agreed on before",
    )
    return Standing(wish, outcome, noted=False, note=note)
