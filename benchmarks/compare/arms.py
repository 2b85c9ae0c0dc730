"""What is compared: arms, as they are written on a command line, and the order of their blocks.

An arm is a serving profile that is started for the comparison, or an endpoint that runs already.
Nothing is started here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from baton.errors import SettingsError
from benchmarks.comparison import Accelerators, Arm
from benchmarks.plan import Slo
from profiles import ServingProfile, resolve_profile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,38}")
_SLO_KEYS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm as asked for.

    Attributes:
        name: unique in a comparison.
        profile_ref: name or file of the profile to start, or that describes what runs at ``url``.
        profile: the same, resolved. None for an endpoint of which nothing is known.
        url: an endpoint that runs already; None to start the profile.
    """

    name: str
    profile_ref: str | None
    profile: ServingProfile | None
    url: str | None

    def describe(self) -> Arm:
        """What the report says of it."""
        accelerators = []
        if self.profile is not None:
            accelerators = [
                Accelerators(
                    label=pool.accelerator,
                    count=pool.replicas * pool.devices,
                    price_per_hour=pool.price_per_hour,
                )
                for pool in self.profile.spec.pools.by_role.values()
            ]
        return Arm(
            name=self.name,
            url=self.url or "",
            profile=self.profile.name if self.profile else None,
            profile_version=self.profile.version if self.profile else None,
            profile_spec=self.profile.canonical_spec() if self.profile else None,
            accelerators=accelerators,
        )


def parse_arms(texts: Sequence[str]) -> list[ArmSpec]:
    """Reads arms: ``PROFILE``, ``NAME=PROFILE``, ``NAME=URL`` or ``NAME=URL@PROFILE``.

    Arms without a name are called as their profile, with a number if that is taken.

    Raises:
        SettingsError: fewer than two arms, a name twice, or something unreadable.
        ProfileError: a profile is wrong.
    """
    if len(texts) < 2:
        raise SettingsError("a comparison needs at least two profiles or endpoints")
    arms: list[ArmSpec] = []
    for text in texts:
        name, _, rest = text.rpartition("=") if _is_named(text) else ("", "", text)
        url, profile_ref = None, rest
        if rest.startswith(("http://", "https://")):
            url, _, profile_ref = rest.partition("@")
            if not name:
                name = f"endpoint-{len(arms) + 1}"
        profile = resolve_profile(profile_ref) if profile_ref else None
        if name and not _NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} cannot name an arm: letters, digits, dots, dashes and underscores, "
                "39 at most"
            )
        taken = {arm.name for arm in arms}
        if name in taken:
            raise SettingsError(f"two arms are called {name}; name them: first=..., second=...")
        if not name:
            assert profile is not None
            name = profile.name
            while name in taken:
                count = sum(1 for arm in arms if arm.profile and arm.profile.name == profile.name)
                name = f"{profile.name}-{count + 1}"
                taken -= {profile.name}
        arms.append(ArmSpec(name, profile_ref or None, profile, url))
    return arms


def _is_named(text: str) -> bool:
    head, equals, _ = text.partition("=")
    return bool(equals) and "/" not in head and "?" not in head


def parse_slo(text: str) -> Slo:
    """Reads ``ttft=0.5,tpot=0.1,e2e=20``: seconds, each bound optional.

    Raises:
        SettingsError: an unknown bound, or no positive number.
    """
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if key not in _SLO_KEYS or not 0 < value < 1e6:
            raise SettingsError(
                f"--slo {part!r} is not understood; give seconds, as in ttft=0.5,tpot=0.1,e2e=20"
            )
        values[f"{key}_s"] = value
    return Slo(**values)


def profile_slo(profile: ServingProfile | None) -> Slo:
    """The service level of a profile."""
    if profile is None:
        return Slo()
    slo = profile.spec.slo
    return Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, e2e_s=slo.e2e_s)


def block_order(
    arms: Sequence[str], levels: Sequence[float], pairs: int
) -> list[tuple[float, int, str]]:
    """The sequence of blocks as (level, pair, arm).

    Repetitions run forwards and backwards in turn (A B B A), so that a machine that slowly gets
    faster or slower favours nobody; with three arms and more the first one changes as well. All
    levels are run through before a repetition begins anew, so that an interrupted comparison has
    some of each.
    """
    sequence: list[tuple[float, int, str]] = []
    for pair in range(pairs):
        turn = (pair // 2) % len(arms)
        order = [*arms[turn:], *arms[:turn]]
        if pair % 2:
            order.reverse()
        for level in levels if pair % 2 == 0 else reversed(levels):
            sequence.extend((level, pair, arm) for arm in order)
    return sequence


def block_salt(comparison: str, arm: str, level: float, pair: int) -> str:
    """A salt that no other block has, so that no prefix of it is in any cache."""
    text = f"{comparison}/{arm}/{level!r}/{pair}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
