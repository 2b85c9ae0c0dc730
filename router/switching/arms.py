"""What both sides of a canary did, at this router and at all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from baton.types import RouterRecord, Tally
from profiles import SloSpec
from profiles.switching import total
from router.serving import Serving

_EVERY_S = 10.0
_KEPT = 30
"""Five minutes of the active profile's counts, for canaries beside which nobody is left."""


def _since(now: Tally, then: Tally) -> Tally:
    return Tally(
        now.requests - then.requests,
        now.errors - then.errors,
        now.missed - then.missed,
        now.streams - then.streams,
        now.ttft_s - then.ttft_s,
    )


class Arms:
    """The counts of one router since a canary began; before one, those of the last minutes."""

    def __init__(self) -> None:
        self.number = 0
        self.before = Tally()
        self._slo = SloSpec()
        self._from: dict[str, tuple[Serving, Tally]] = {}
        self._history: deque[tuple[float, str, Tally]] = deque(maxlen=_KEPT)

    def note(self, active: Serving, slo: SloSpec, now_s: float) -> None:
        """Remembers the active profile's counts of this moment, every ten seconds; from anew where
        requests are held against another service level."""
        history = self._history
        if slo != self._slo or (history and history[-1][1] != active.version):
            history.clear()
            self._slo = slo
        if not history or now_s - history[-1][0] >= _EVERY_S:
            history.append((now_s, active.version, active.tally()))

    def begin(self, number: int, old: Serving, new: Serving) -> None:
        """A canary begins here."""
        self.number = number
        self._from = {arm.version: (arm, arm.tally()) for arm in (old, new)}
        then = next((t for _, version, t in self._history if version == old.version), None)
        self.before = Tally() if then is None else _since(old.tally(), then)

    def tallies(self) -> dict[str, Tally]:
        """By version, since the canary began."""
        return {v: _since(arm.tally(), then) for v, (arm, then) in self._from.items()}


def summed(number: int, own: Arms, others: Iterable[RouterRecord]) -> dict[str, Tally]:
    """The same over all routers that take part in the switch of this number."""
    found: dict[str, list[Tally]] = {}
    told = [own.tallies()] if own.number == number else []
    told += [record.tallies for record in others if record.switch == number]
    for tallies in told:
        for version, tally in tallies.items():
            found.setdefault(version, []).append(tally)
    return {version: total(parts) for version, parts in found.items()}


def before(number: int, own: Arms, others: Iterable[RouterRecord]) -> Tally:
    """What the old profile did in the minutes before, at all routers."""
    told = [own.before] if own.number == number else []
    return total([*told, *(r.before for r in others if r.switch == number)])


__all__ = ["Arms", "before", "summed"]
