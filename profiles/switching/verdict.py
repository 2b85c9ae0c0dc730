"""Whether the requests under a new profile fare worse than those under the old one.

It exists so that a canary ends for a reason that can be checked by hand: two shares, two
intervals, a sentence with the figures. It judges shares of bad requests only. Times are shown and
not judged: what is too slow is said by the service level, and counts as missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from baton.types import Tally

LEAST_BAD = 3
"""Bad requests without which nothing is called worse: one or two are an accident."""

PRESUMED_NONE = 0.1
"""The most that the old profile's share of bad requests is taken to be while nothing is known of
it. It is what has served until now, so that a canary of everything still has a bar to clear."""

PRESUMED_GOOD = 0.5
"""The same while none of its few requests was bad. Their interval alone would reach to 0.87 after
one request, and a new profile under which everything fails would pass for as good."""

_Z = 2.58
"""Half-width of the intervals in standard deviations: 99 %, where one look would do with 95 %
(1.96). A canary is looked at twice a second, and each look is one more chance to be wrong. Asking
that two intervals do not touch is stricter by itself than testing the difference. Simulated over
1,000 looks with two requests each, 2 % bad on both sides and a canary of 0.1: 4 % of canaries are
stopped at 1.96, and 0.6 % here for each kind of bad. 30 % against 1 % is still seen within 60
requests of the canary (``test_verdict``)."""

_MEASURES: tuple[tuple[str, Callable[[Tally], int]], ...] = (
    ("errors", lambda tally: tally.errors),
    ("outside of the service level", lambda tally: tally.missed),
)
"""What is judged. Shares are of all requests, so that each can be compared with the other."""


class Verdict(NamedTuple):
    """Whether the new side is worse beyond chance, and the figures, in a sentence."""

    worse: bool
    sentence: str


def wilson(bad: int, requests: int, z: float = _Z) -> tuple[float, float]:
    """Bounds of a share of which ``bad`` out of ``requests`` are a sample; 0 to 1 without any.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927), 209-212. Unlike the textbook interval it is
    sound for small samples and shares near 0.
    """
    if requests <= 0:
        return 0.0, 1.0
    share, weight = bad / requests, z * z / requests
    middle = share + weight / 2
    reach = math.sqrt(weight * (share * (1 - share) + weight / 4))
    # At the ends the two terms cancel out, to within rounding.
    low = 0.0 if bad == 0 else (middle - reach) / (1 + weight)
    high = 1.0 if bad == requests else (middle + reach) / (1 + weight)
    return low, high


def judge(
    old: Tally,
    new: Tally,
    before: Tally,
    min_requests: int,
    *,
    old_name: str = "the old profile",
    new_name: str = "the new profile",
) -> Verdict:
    """Compares the two arms of a canary.

    Args:
        old: the arm that is served as ever.
        new: the canary's.
        before: the old profile's requests of the minutes before; counted in with ``old`` where
            that has fewer than ``min_requests``, and only there: the same minutes compare better.
        min_requests: see ``before``.
        old_name, new_name: what the sentence calls the two; they should differ.
    """
    if old.requests < min_requests and before.requests > 0:
        old = total((old, before))
        old_name += " (the minutes before included)"
    worse = False
    parts: list[str] = []
    for title, count in _MEASURES:
        old_bad, new_bad = count(old), count(new)
        worse = worse or _worse(old_bad, old.requests, new_bad, new.requests)
        if title == "errors" or old_bad or new_bad:
            first = _share(new_bad, new, new_name, noun=" requests")
            parts.append(f"{title}: {first}, {_share(old_bad, old, old_name)}")
    times = [
        f"{tally.ttft_s / tally.streams:.3f} s under {name}"
        for tally, name in ((new, new_name), (old, old_name))
        if tally.streams
    ]
    if times:
        parts.append("mean time to the first token: " + ", ".join(times))
    return Verdict(worse, "; ".join(parts))


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    together = Tally()
    for tally in tallies:
        together = Tally(
            requests=together.requests + tally.requests,
            errors=together.errors + tally.errors,
            missed=together.missed + tally.missed,
            streams=together.streams + tally.streams,
            ttft_s=together.ttft_s + tally.ttft_s,
        )
    return together


def _worse(old_bad: int, old_requests: int, new_bad: int, new_requests: int) -> bool:
    if new_bad < LEAST_BAD:
        return False
    bar = wilson(old_bad, old_requests)[1]
    if old_requests == 0:
        bar = PRESUMED_NONE
    elif old_bad == 0:
        bar = min(bar, PRESUMED_GOOD)
    return wilson(new_bad, new_requests)[0] > bar


def _share(bad: int, tally: Tally, name: str, *, noun: str = "") -> str:
    if not tally.requests:
        return f"no requests under {name}"
    percent = 100 * bad / tally.requests
    return f"{bad} of {tally.requests}{noun} under {name} ({percent:.1f} %)"
