"""What the source of profiles holds, as far as this router is concerned: names to profiles, the one
that should be active, and what is wrong. It proposes; the conductor decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from baton.clock import Clock
from baton.errors import BatonError
from profiles import ServingProfile, builtin_names, parse_profile
from profiles.sources import Bundle, Catalog, ProfileSource, Told, open_source
from profiles.switching import Phase, State
from router.settings import RouterSettings

_FIRST_READ_S = 5.0
"""For the source to answer when the router starts; later it may come whenever it comes."""

_TELL_AGAIN_S = 60.0
"""What is shown at the source is shown again, in case it was lost there."""
_MOST_UNTOLD = 32
_BROKEN_S = 15.0

log = logging.getLogger("baton.router.profiles")


class Proposals:
    """Follows one source, or none.

    Args:
        settings: the source, the profile to start with, and what is adapted in each.
        clock: paces the source.
        on_change: called when something else is proposed.
    """

    def __init__(
        self, settings: RouterSettings, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        ref = settings.profiles
        self._source: ProfileSource | None = None if ref is None else open_source(ref, clock)
        self._at_start = settings.profiles_at_start
        self._begins_with: ServingProfile | None = None
        self._adapt = settings.adapt
        self._catalog = Catalog(settings.adapt)
        self._started = settings.profile
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._clock = clock
        self._told: Told | None = None
        self._told_s = 0.0
        self._untold: deque[Told] = deque()
        self._tell_wake = asyncio.Event()
        self._reported: set[int] | None = None
        self._refused: frozenset[str] = frozenset()
        self._bundle = Bundle()

    @property
    def where(self) -> str:
        """The source, for people; empty for none."""
        if self._source is None:
            return ""
        return self._source.describe() + (" (at the start only)" if self._at_start else "")

    @property
    def begins_with(self) -> ServingProfile | None:
        """What the source says to serve by where nothing is agreed on yet."""
        return self._begins_with if self._at_start else self._catalog.wanted

    @property
    def wanted(self) -> ServingProfile | None:
        """What the source wants active."""
        return self._catalog.wanted

    @property
    def digest(self) -> str:
        """Of what the source wants active, name and text: the same at whoever reads it."""
        return self._catalog.wanted_digest

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the source is refused, and why."""
        return self._catalog.problems

    @property
    def bundle(self) -> Bundle:
        """What was read last."""
        return self._bundle

    def find(self, name: str) -> ServingProfile | None:
        """The profile of a name: the source's, the one that the router started with, a built-in."""
        if name in self._catalog.profiles():
            return self._catalog.get(name)
        return self._started if name == self._started.name else self._catalog.get(name)

    def known(self) -> Mapping[str, tuple[str, ServingProfile]]:
        """All profiles that can be switched to, by name, each with where it is from."""
        found: dict[str, tuple[str, ServingProfile]] = {}
        for name in builtin_names():
            profile = self._catalog.get(name)
            if profile is not None:
                found[name] = ("built-in", profile)
        found[self._started.name] = ("started with", self._started)
        for name, profile in self._catalog.profiles().items():
            found[name] = ("source", profile)
        return dict(sorted(found.items()))

    async def start(self) -> None:
        """Reads the source for the first time, and follows it from now on, unless it is for the
        start only."""
        if self._source is None:
            return
        try:
            async with asyncio.timeout(_FIRST_READ_S):
                bundle = await self._source.read()
                if self._at_start:
                    self._begin_with(bundle)
                else:
                    self._take(bundle)
        except Exception as error:
            what = error.message if isinstance(error, BatonError) else repr(error)
            log.warning("profiles cannot be read yet, starting without: %s", what)
        if self._at_start:
            return
        self._task = asyncio.create_task(self._follow(self._source), name="profile-source")
        self._telling = asyncio.create_task(
            self._tell_all(self._source), name="tell-profile-source"
        )

    def _begin_with(self, bundle: Bundle) -> None:
        """Of a source for the start only: nothing of it is kept as proposed, wanted or wrong. What
        it holds follows what routers agree on, and would lead back whenever it comes late."""
        catalog = Catalog(self._adapt)
        for problem in catalog.take(bundle).problems:
            log.error("refused: %s", problem)
        self._begins_with = catalog.wanted
        self._started = catalog.wanted or self._started

    async def _follow(self, source: ProfileSource) -> None:
        while True:
            try:
                async with contextlib.aclosing(source.changes()) as changes:  # type: ignore[type-var]
                    async for bundle in changes:
                        if bundle.digest != self._bundle.digest:
                            self._take(bundle)
                            self._on_change()
            except Exception:
                # A source that breaks in a way of its own must not be given up for good.
                log.exception("the source of profiles, %s, broke; trying again", self.where)
            await asyncio.sleep(_BROKEN_S)

    def _take(self, bundle: Bundle) -> None:
        before = set(self._catalog.problems)
        change = self._catalog.take(bundle)
        self._bundle = bundle
        for what, names in (
            ("new", change.added),
            ("changed", change.changed),
            ("gone", change.removed),
        ):
            if names:
                log.info("profiles of %s: %s: %s", self.where, what, ", ".join(names))
        for problem in change.problems:
            if problem not in before:
                log.error("refused: %s", problem)
        for problem in before - set(change.problems):
            log.info("mended: %s", problem)

    def tell(self, agreed: State, leads: bool) -> None:
        """Has the source show operators what became of it; one router of all does. Does not wait:
        a source that answers slowly holds nothing up."""
        if self._source is None or self._at_start:
            return
        ended, self._reported = self._reported, {report.number for report in agreed.history}
        refused, self._refused = self._refused, frozenset(self.problems)
        if not leads:
            return
        events = []
        for report in sorted(agreed.history, key=lambda report: report.order):
            if ended is not None and report.number not in ended:
                bad = report.outcome is not Phase.COMMITTED
                way = f"from {report.old.name} to {report.new.name}"
                events.append((f"Switch {way}: {report.outcome}. {report.reason}", bad))
        events += [(f"Refused: {line}", True) for line in self.problems if line not in refused]
        switch = agreed.switch
        told = Told(
            active=agreed.active.name,
            version=agreed.active.version,
            phase="" if switch is None else f"{switch.phase} of {switch.new.name}",
            problems=self.problems,
        )
        now_s = self._clock.monotonic_s()
        if told != self._told or now_s - self._told_s >= _TELL_AGAIN_S or events:
            self._told, self._told_s = told, now_s
            for event, bad in events or [("", False)]:
                if len(self._untold) < _MOST_UNTOLD:
                    self._untold.append(replace(told, event=event, warning=bad))
            self._tell_wake.set()

    async def _tell_all(self, source: ProfileSource) -> None:
        while True:
            await self._tell_wake.wait()
            self._tell_wake.clear()
            while self._untold:
                await source.tell(self._untold.popleft())

    async def close(self) -> None:
        """Stops following."""
        tasks = [task for task in (self._task, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._source is not None:
            await self._source.close()


def parsed(text: str, origin: str, settings: RouterSettings) -> ServingProfile:
    """A profile that an operator sends, as this router would serve it.

    Raises:
        ProfileError: it is not good.
    """
    profile = parse_profile(text, source=origin)
    return profile if settings.adapt is None else settings.adapt(profile)


__all__ = ["Proposals", "parsed"]
