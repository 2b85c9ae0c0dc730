"""What the source of profiles holds, as far as this router is concerned: names to profiles, the one
that should be active, and what is wrong. It proposes; the conductor decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from baton.clock import Clock
from baton.errors import BatonError
from profiles import ServingProfile, builtin_names, parse_profile
from profiles.sources import Bundle, Catalog, ProfileSource, Told, open_source
from profiles.switching import Phase, State
from router.settings import RouterSettings

_FIRST_READ_S = 5.0
"""For the source to answer when the router starts; later it may come whenever it comes."""

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
        self._catalog = Catalog(settings.adapt)
        self._started = settings.profile
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._told: Told | None = None
        self._reported: set[int] | None = None
        self._bundle = Bundle()

    @property
    def where(self) -> str:
        """The source, for people; empty for none."""
        return "" if self._source is None else self._source.describe()

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
        """Reads the source for the first time, and follows it from now on."""
        if self._source is None:
            return
        try:
            async with asyncio.timeout(_FIRST_READ_S):
                self._take(await self._source.read())
        except (BatonError, TimeoutError) as error:
            what = error.message if isinstance(error, BatonError) else "no answer in time"
            log.warning("profiles cannot be read yet, starting without: %s", what)
        self._task = asyncio.create_task(self._follow(self._source), name="profile-source")

    async def _follow(self, source: ProfileSource) -> None:
        async with contextlib.aclosing(source.changes()) as changes:  # type: ignore[type-var]
            async for bundle in changes:
                if bundle.digest != self._bundle.digest:
                    self._take(bundle)
                    self._on_change()

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

    async def tell(self, agreed: State, leads: bool) -> None:
        """Shows at the source what became of it; one router of all does. Does not wait."""
        if self._source is None or not leads:
            return
        switch, history = agreed.switch, agreed.history
        event, warning = "", False
        new = [r for r in history if self._reported is not None and r.number not in self._reported]
        if new:
            last = max(new, key=lambda report: report.at_s)
            event = f"Switch from {last.old.name} to {last.new.name}: {last.outcome}. {last.reason}"
            warning = last.outcome is not Phase.COMMITTED
        self._reported = {report.number for report in history}
        told = Told(
            active=agreed.active.name,
            version=agreed.active.version,
            phase="" if switch is None else f"{switch.phase} of {switch.new.name}",
            problems=self.problems,
            event=event,
            warning=warning,
        )
        busy = self._telling is not None and not self._telling.done()
        if told == self._told or (busy and not event):
            return
        if busy and self._telling is not None:
            await self._telling
        self._told = told
        self._telling = asyncio.create_task(self._source.tell(told), name="tell-profile-source")

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
