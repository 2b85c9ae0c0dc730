"""What both sides of a canary did, at this router and at all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from baton.types import RouterId, RouterRecord, Tally
from profiles import SloSpec
from profiles.switching import Switch, total
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


def _requests(tallies: dict[str, Tally]) -> int:
    return sum(tally.requests for tally in tallies.values())


class Evidence:
    """What all routers saw of a canary, kept by its owner. What a router told stays when it is
    gone: it may be the new profile that took it away."""

    def __init__(self) -> None:
        self._number = 0
        self.told: dict[str, dict[str, Tally]] = {}
        self.told_before: dict[str, Tally] = {}

    def hear(
        self, switch: Switch, own: Arms, own_id: RouterId, others: Iterable[RouterRecord]
    ) -> None:
        """Takes over what is known now."""
        if self._number != switch.number:
            self._number = switch.number
            self.told, self.told_before = {}, {}
        # What another owner knew of routers that are gone by now.
        for router_id, tallies in switch.told.items():
            if _requests(tallies) >= _requests(self.told.get(router_id, {})):
                self.told[router_id] = tallies
                self.told_before[router_id] = switch.told_before.get(router_id, Tally())
        if own.number == switch.number:
            self.told[own_id], self.told_before[own_id] = own.tallies(), own.before
        for record in others:
            if record.switch == switch.number:
                self.told[record.id] = record.tallies
                self.told_before[record.id] = record.before

    def tallies(self) -> dict[str, Tally]:
        """By version."""
        found: dict[str, list[Tally]] = {}
        for told in self.told.values():
            for version, tally in told.items():
                found.setdefault(version, []).append(tally)
        return {version: total(parts) for version, parts in found.items()}

    def before(self) -> Tally:
        """What the old profile did in the minutes before."""
        return total(self.told_before.values())


__all__ = ["Arms", "Evidence"]
