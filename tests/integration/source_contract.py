"""What every source of profiles must do, written once; ``test_sources_contract.py`` runs it against
each kind.

A subclass provides the fixture ``place``. The suite knows a source by its Protocol only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import pytest

from baton.errors import SourceUnavailable
from profiles.sources import Bundle, ProfileSource, Told
from tests.fakes.waiting import until

QUIET_S = 0.25
"""Long enough for several looks of the sources under test."""


class Place(Protocol):
    """Where a source's texts lie, and a way to change them as operators do."""

    source: ProfileSource

    async def write(self, entries: Mapping[str, bytes]) -> None:
        """Makes these all there is, keys as in a ConfigMap. What differs from before in one entry
        is one change."""
        ...

    async def vanish(self) -> None:
        """Takes the place away, until ``come_back``."""
        ...

    async def come_back(self, entries: Mapping[str, bytes]) -> None:
        """It is there again, with these in it."""
        ...


class Reader:
    """Reads a source's changes in a task, as a router does."""

    def __init__(self, source: ProfileSource) -> None:
        self.bundles: list[Bundle] = []
        self._source = source
        self._task = asyncio.create_task(self._read(), name="reader")

    async def _read(self) -> None:
        changes = self._source.changes()
        try:
            async for bundle in changes:
                self.bundles.append(bundle)
        finally:
            await changes.aclose()  # type: ignore[attr-defined]

    async def until(self, condition: Callable[[Bundle], bool]) -> Bundle:
        """Waits until the last bundle fits."""
        await until(lambda: self._task.done() or (self.bundles and condition(self.bundles[-1])))
        assert not self._task.done(), self._task
        return self.bundles[-1]

    async def stop(self) -> None:
        """Cancels it where it waits."""
        self._task.cancel()
        async with asyncio.timeout(2):
            await asyncio.wait({self._task})
        assert self._task.cancelled(), self._task


@contextlib.asynccontextmanager
async def reading(source: ProfileSource) -> AsyncIterator[Reader]:
    """A reader for a while; nothing was told to it twice."""
    reader = Reader(source)
    try:
        yield reader
    finally:
        await reader.stop()
    digests = [bundle.digest for bundle in reader.bundles]
    assert all(one != next_ for one, next_ in itertools.pairwise(digests))


def texts(bundle: Bundle) -> set[str]:
    """What the texts say, wherever they are from."""
    return set(bundle.texts.values())


class SourceContract:
    """The suite."""

    async def test_read(self, place: Place) -> None:
        """All profiles with where they are from, and the name of the active one."""
        await place.write(
            {"a.yaml": b"one", "b.yml": b"two", "active": b"b\n", "README.md": b"", ".c.yaml": b"x"}
        )
        bundle = await place.source.read()
        assert texts(bundle) == {"one", "two"}
        assert bundle.active == "b"
        assert "active" in bundle.active_from
        assert not bundle.problems
        assert any("a.yaml" in origin for origin in bundle.texts)
        assert (await place.source.read()).digest == bundle.digest

    async def test_empty(self, place: Place) -> None:
        """No profiles and nothing active is a bundle like any other."""
        await place.write({})
        bundle = await place.source.read()
        assert (dict(bundle.texts), bundle.active, dict(bundle.problems)) == ({}, "", {})

    async def test_changes(self, place: Place) -> None:
        """What is there first, then each change once: a text, a new one, one gone, the active."""
        await place.write({"a.yaml": b"1"})
        steps: list[dict[str, bytes]] = [
            {"a.yaml": b"2"},
            {"a.yaml": b"2", "b.yaml": b"b"},
            {"a.yaml": b"2", "b.yaml": b"b", "active": b"x"},
            {"a.yaml": b"2", "b.yaml": b"b", "active": b"active: y\n"},
            {"b.yaml": b"b", "active": b"active: y\n"},
        ]
        async with reading(place.source) as reader:
            await reader.until(lambda bundle: texts(bundle) == {"1"})
            for number, entries in enumerate(steps):
                await place.write(entries)
                await until(lambda n=number: len(reader.bundles) == n + 2)  # type: ignore[misc]
            assert reader.bundles[-1].active == "y"
            assert texts(reader.bundles[-1]) == {"b"}
            assert len(reader.bundles) == len(steps) + 1

    async def test_nothing_new(self, place: Place) -> None:
        """The same content written again, and files that are no profiles, are no change."""
        await place.write({"a.yaml": b"1", "active": b"a"})
        async with reading(place.source) as reader:
            await reader.until(lambda bundle: bundle.active == "a")
            await place.write({"a.yaml": b"1", "active": b"a"})
            await place.write({"a.yaml": b"1", "active": b"a", "notes": b"more"})
            await place.write({"a.yaml": b"1", "active": b" a\n"})
            await asyncio.sleep(QUIET_S)
            assert len(reader.bundles) == 1

    async def test_many_changes(self, place: Place) -> None:
        """Some in between may be missed, the last is not."""
        await place.write({"a.yaml": b"0"})
        async with reading(place.source) as reader:
            for number in range(30):
                await place.write({"a.yaml": b"%d" % number})
                await asyncio.sleep(0.002)
            await reader.until(lambda bundle: texts(bundle) == {"29"})

    async def test_what_is_no_text(self, place: Place) -> None:
        """Is a problem of that entry, with the reason, and the others are read."""
        await place.write(
            {"a.yaml": b"fine", "b.yaml": b"x\n\xff\xfe", "active": b"two words and: more"}
        )
        bundle = await place.source.read()
        assert texts(bundle) == {"fine"}
        assert bundle.active == ""
        lines = sorted(bundle.problems.values())
        assert len(lines) == 2
        assert any("b.yaml" in line and "UTF-8" in line for line in lines), lines
        assert any("must be the name of a profile" in line for line in lines), lines
        for origin, line in bundle.problems.items():
            assert line.startswith(origin)
            assert origin not in bundle.texts

    async def test_outage(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        """Told once when it begins and once when it ends; a change meanwhile is seen then."""
        caplog.set_level(logging.INFO, "profiles.sources")
        await place.write({"a.yaml": b"before", "active": b"a"})
        async with reading(place.source) as reader:
            await reader.until(lambda bundle: bundle.active == "a")
            await place.vanish()
            with pytest.raises(SourceUnavailable) as caught:
                await place.source.read()
            assert caught.value.message
            await until(lambda: caplog.records)
            await asyncio.sleep(QUIET_S)
            assert len(reader.bundles) == 1
            await place.come_back({"a.yaml": b"after", "active": b"a"})
            await reader.until(lambda bundle: texts(bundle) == {"after"})
            await until(lambda: len(caplog.records) >= 2)
            kinds = [record.levelname for record in caplog.records]
            assert kinds == ["WARNING", "INFO"], caplog.messages

    async def test_outage_at_first(self, place: Place) -> None:
        """A router that starts before its source waits for it."""
        await place.vanish()
        async with reading(place.source) as reader:
            await asyncio.sleep(QUIET_S)
            assert not reader.bundles
            await place.come_back({"a.yaml": b"there"})
            await reader.until(lambda bundle: texts(bundle) == {"there"})

    async def test_two_readers(self, place: Place) -> None:
        """Each is told everything."""
        await place.write({"a.yaml": b"1"})
        async with reading(place.source) as one, reading(place.source) as other:
            await one.until(lambda bundle: texts(bundle) == {"1"})
            await place.write({"a.yaml": b"2"})
            await one.until(lambda bundle: texts(bundle) == {"2"})
            await other.until(lambda bundle: texts(bundle) == {"2"})

    async def test_close(self, place: Place) -> None:
        """May be done twice, and leaves no task and no connection; cancelled readers neither."""
        before = asyncio.all_tasks()
        await place.write({"a.yaml": b"1"})
        for pause_s in (0.0, 0.001, 0.02, 0.1):
            reader = Reader(place.source)
            # It has to have begun, or there is nothing to cancel.
            await asyncio.sleep(pause_s)
            await asyncio.sleep(0)
            await reader.stop()
        await place.source.close()
        await place.source.close()
        await until(lambda: not asyncio.all_tasks() - before, timeout_s=2.0)

    async def test_tell(self, place: Place) -> None:
        """Never raises, also where the place is gone, and ends in time."""
        told = Told(active="a", version="1", problems=("x: bad",), event="It is so.")
        async with asyncio.timeout(10):
            await place.source.tell(told)
            await place.vanish()
            await place.source.tell(told)

    async def test_describe(self, place: Place) -> None:
        """Says where on one line, without credentials."""
        described = place.source.describe()
        assert described
        assert "\n" not in described
        assert "swordfish" not in described
