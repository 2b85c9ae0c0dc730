"""The profiles that a source's texts make, and the last good one of each.

Pure: bundles in, profiles and problems out. It never lets a text that is bad replace a profile
that was good, and says of each mistake where it stands. What is served is not its business: a
profile that vanished here is still served by who serves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from baton.errors import ProfileError
from profiles.document import show
from profiles.explain import closest
from profiles.resolve import builtin_names, parse_profile, resolve_profile
from profiles.schema import ServingProfile
from profiles.sources.base import Bundle

Adapt = Callable[[ServingProfile], ServingProfile]


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """What a bundle changed.

    Attributes:
        added, changed, removed: names of profiles, sorted. One whose text is bad is none of them.
        problems: all there are now, one line each.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What became of one text.

    Attributes:
        text: as it was read; None where it could not be.
        profile: what it says, or, with problems, what it said when it was last good.
        problems: why it is refused.
    """

    text: str | None
    profile: ServingProfile | None
    problems: tuple[str, ...] = ()


class Catalog:
    """Profiles by name.

    Args:
        adapt: what this router makes of each profile, built-in ones too; a ProfileError from it
            makes the text a bad one.
    """

    def __init__(self, adapt: Adapt | None = None) -> None:
        self._adapt: Adapt = adapt or (lambda profile: profile)
        self._readings: dict[str, _Reading] = {}
        self._profiles: dict[str, ServingProfile] = {}
        self._good: set[str] = set()
        self._builtin: dict[str, _Reading] = {}
        self._wanted: ServingProfile | None = None
        self._problems: tuple[str, ...] = ()

    @property
    def wanted(self) -> ServingProfile | None:
        """The profile that the source wants active. None where it names none, and where the text
        of the one it names is bad: then nothing is proposed, and what is served stays."""
        return self._wanted

    @property
    def wanted_digest(self) -> str:
        """Of name and text of ``wanted``, whatever this release of Baton or ``adapt`` makes of
        them; empty for none."""
        wanted = self._wanted
        if wanted is None:
            return ""
        texts = [r.text for r in self._readings.values() if r.profile is wanted and r.text]
        said = f"{wanted.name}\n{texts[0] if texts else 'built-in'}"
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the last bundle, one line each."""
        return self._problems

    def profiles(self) -> Mapping[str, ServingProfile]:
        """The source's, by name: the good ones, and of the bad ones the last good version."""
        return MappingProxyType(self._profiles)

    def get(self, name: str) -> ServingProfile | None:
        """The source's profile of that name, or else the built-in one; None where there is none or
        the built-in one does not bear ``adapt``."""
        found = self._profiles.get(name)
        return found if found is not None else self._from_builtin(name).profile

    def take(self, bundle: Bundle) -> CatalogChange:
        """Reads a bundle in the place of the one before. Texts that are the same are not parsed
        again."""
        readings: dict[str, _Reading] = {}
        for origin in sorted(bundle.texts.keys() | bundle.problems.keys()):
            readings[origin] = self._read(origin, bundle)
        self._readings = readings
        before, self._profiles = self._profiles, {}
        problems = [line for reading in readings.values() for line in reading.problems]
        self._good = set()
        owners: dict[str, str] = {}
        # Good texts first: what a bad one once said must not stand in the way of a good one.
        for origin, reading in sorted(readings.items(), key=lambda item: bool(item[1].problems)):
            profile, good = reading.profile, not reading.problems
            if profile is None:
                continue
            name = profile.name
            if name not in owners:
                owners[name] = origin
                self._profiles[name] = profile
                if good:
                    self._good.add(name)
            elif good:
                problems.append(
                    f"{origin}: metadata.name: {show(name)} is the name of the profile in "
                    f"{owners[name]} too, which counts; give this one another name"
                )
        self._wanted, wrong = self._choose(bundle)
        self._problems = (*problems, *wrong)
        after = self._profiles
        return CatalogChange(
            added=tuple(sorted(after.keys() - before.keys())),
            changed=tuple(
                sorted(name for name in after.keys() & before.keys() if after[name] != before[name])
            ),
            removed=tuple(sorted(before.keys() - after.keys())),
            problems=self._problems,
        )

    def _read(self, origin: str, bundle: Bundle) -> _Reading:
        before = self._readings.get(origin)
        held = before.profile if before is not None else None
        if origin in bundle.problems:
            return _Reading(None, held, (bundle.problems[origin],))
        text = bundle.texts[origin]
        if before is not None and before.text == text:
            return before
        try:
            return _Reading(text, self._adapted(parse_profile(text, source=origin), origin))
        except ProfileError as error:
            return _Reading(text, held, error.problems)

    def _adapted(self, profile: ServingProfile, origin: str) -> ServingProfile:
        try:
            return self._adapt(profile)
        except ProfileError as error:
            raise ProfileError(
                [
                    line if line.startswith(origin) else f"{origin}: {line}"
                    for line in error.problems
                ]
            ) from error

    def _choose(self, bundle: Bundle) -> tuple[ServingProfile | None, tuple[str, ...]]:
        """What ``active`` names, and what is wrong with it."""
        name, where = bundle.active, bundle.active_from or "active"
        if not name:
            return None, ()
        if name in self._good:
            return self._profiles[name], ()
        if name in self._profiles:
            return None, (
                f"{where}: names {show(name)}, whose text is refused now; nothing is switched",
            )
        reading = self._from_builtin(name)
        if reading.profile is not None:
            return reading.profile, ()
        if reading.problems:
            return None, (
                f"{where}: names the built-in profile {show(name)}, which cannot be used here",
                *reading.problems,
            )
        names = sorted({*self._profiles, *builtin_names()})
        near = closest(name, names)
        hint = f"; did you mean {near}?" if near else ""
        return None, (f"{where}: there is no good profile called {show(name)}{hint}",)

    def _from_builtin(self, name: str) -> _Reading:
        """Of a built-in profile; neither profile nor problems where there is none of that name."""
        if name not in self._builtin:
            # Asked by name before it is resolved: a path must not be read from here.
            if name not in builtin_names():
                return _Reading(None, None)
            try:
                profile = self._adapted(resolve_profile(name), f"built-in profile {name}")
                self._builtin[name] = _Reading(None, profile)
            except ProfileError as error:
                self._builtin[name] = _Reading(None, None, error.problems)
        return self._builtin[name]
