"""A profile as one router serves it: what its parts make of it, and who is served by which one.

A request takes a ``Serving`` when it comes in and keeps it to its end, retries included, so that no
request sees two profiles. Nothing here decides when a profile is switched (``router.switching``).
"""

from __future__ import annotations

from typing import Final

from baton.types import Tally
from profiles import ServingProfile, SloSpec
from router.policy import Counts, Fleet, Traffic, compile_fleet, stable_hash
from router.settings import care_rules, flow_rules, routing_rules

_LOTS: Final = 2**32


class Serving:
    """One profile in one router.

    Attributes:
        profile, name, version: the profile and what it is called.
        routing, flow, care: its rules for those parts.
        classify, deadlines, pools, limits: sections of it.
        attempts: tries of one request in all.
        traffic: the workers under its rules.
        settled: whether ``traffic`` is of the router's own slots, and was not left half-made.
        held: requests that it serves now.

    The counters beside them only grow: ``requests`` that ended and were not the client's to end;
    ``errors``, ``missed``, ``streams`` and ``ttft_s`` as in ``Tally``.
    """

    def __init__(
        self,
        profile: ServingProfile,
        share: float,
        counts: Counts,
        *,
        version: str | None = None,
    ) -> None:
        spec = profile.spec
        self.profile = profile
        self.name = profile.name
        # A router of another release may compute another one of the same text: the agreed counts.
        self.version = version or profile.version
        self.routing = routing_rules(profile)
        self.flow = flow_rules(profile, share)
        self.care = care_rules(profile)
        self.classify = spec.classify
        self.deadlines = spec.deadlines
        self.pools = spec.pools
        self.limits = spec.limits
        self.attempts = profile.degrade.attempts
        self.body_bytes = spec.limits.body_bytes
        self.total_s = spec.deadlines.total_s
        self._counts = counts
        self.traffic = Traffic(compile_fleet((), self.routing), counts)
        self.settled = False
        self.held = 0
        self.requests = 0
        self.errors = 0
        self.missed = 0
        self.streams = 0
        self.ttft_s = 0.0

    @property
    def fleet(self) -> Fleet:
        """The workers under this profile."""
        return self.traffic.fleet

    def tally(self) -> Tally:
        """The counters of this moment."""
        return Tally(self.requests, self.errors, self.missed, self.streams, self.ttft_s)

    def leave(self) -> None:
        """It serves nobody any more."""
        self._counts.leave(self.traffic)


class Servings:
    """The profiles that a router serves by.

    Attributes:
        current: the active one.
        candidate: the one that a canary tries, or None.
        share: of the requests that go to the candidate, 0 to 1.
        number: of the switch; salts the lots, so that another switch tries other requests.
        slo: the service level that requests are held against, of either profile.
    """

    def __init__(self, current: Serving) -> None:
        self.current = current
        self.candidate: Serving | None = None
        self.share = 0.0
        self.number = 0
        self.slo: SloSpec = current.profile.spec.slo
        self._old: list[Serving] = []

    def pick(self, request_id: str) -> Serving:
        """Who serves a request: the same for the same id at every router."""
        candidate = self.candidate
        if candidate is None or stable_hash(f"{self.number}:{request_id}") >= self.share * _LOTS:
            return self.current
        return candidate

    def all(self) -> list[Serving]:
        """The current one first, then the candidate, then those that only end what they have."""
        candidate = self.candidate
        found = [self.current] if candidate is None else [self.current, candidate]
        return found + self._old

    def find(self, version: str) -> Serving | None:
        """The one of this version that is still here."""
        for serving in self.all():
            if serving.version == version:
                return serving
        return None

    def arrange(self, current: Serving, candidate: Serving | None) -> None:
        """From now on requests are served by these two; others end what they have."""
        others = [s for s in self.all() if s is not current and s is not candidate]
        self.current, self.candidate = current, candidate
        self._old = others

    def sweep(self) -> None:
        """Lets go of those whose last request has ended."""
        for serving in [old for old in self._old if not old.held]:
            self._old.remove(serving)
            serving.leave()

    def done(
        self,
        serving: Serving,
        *,
        status: int,
        broke_off: bool,
        ttft_s: float | None,
        tpot_s: float | None,
        duration_s: float,
    ) -> None:
        """A request of it has ended; not for those that their client ended, or the client's limits.

        Args:
            broke_off: whether an answer with a good status ended early.
            ttft_s: of streams.
            tpot_s: where there were several tokens.
        """
        serving.requests += 1
        if ttft_s is not None:
            serving.streams += 1
            serving.ttft_s += ttft_s
        if status >= 500 or broke_off:
            serving.errors += 1
        elif _misses(self.slo, ttft_s, tpot_s, duration_s):
            serving.missed += 1


def _misses(slo: SloSpec, ttft_s: float | None, tpot_s: float | None, duration_s: float) -> bool:
    """Whether an answer was outside of the service level."""
    for bound_s, took_s in ((slo.ttft_s, ttft_s), (slo.tpot_s, tpot_s), (slo.e2e_s, duration_s)):
        if bound_s is not None and took_s is not None and took_s > bound_s:
            return True
    return False


__all__ = ["Serving", "Servings"]
