"""Looks at the servers' metrics pages while a run is going on.

One look at the start, one per interval, one at the very end; what is kept of a page is in
``pages``. A page that cannot be read is noted and never ends a run. The cluster token goes to the
router's admin endpoint and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from baton.clock import Clock, SystemClock
from benchmarks.engine_side.changes import ROUTER
from benchmarks.engine_side.pages import parse_page, split_name
from benchmarks.records import Problem, Scrape

_MAX_PAGES = 64
_MAX_PAGE_BYTES = 8 * 1024 * 1024
_MAX_SCRAPES = 40_000
_FIND_EVERY = 10
"""Looks between two questions to the router who its workers are."""
_SETTLE_LOOKS = 8
_SETTLE_S = 0.25
_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting", "baton_requests_in_flight")
_ROLES = ("prefill", "decode", "standard", "other")


class Scrapable(Protocol):
    """What has to be known of a target."""

    @property
    def url(self) -> str:
        """Base URL, without ``/v1``."""
        ...

    @property
    def cluster_token(self) -> str | None:
        """Baton's, or None."""
        ...

    @property
    def metrics_urls(self) -> tuple[str, ...]:
        """Further pages, see ``page_of``."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """A metrics page: ``role`` is empty where only its content tells."""

    url: str
    source: str
    role: str


def page_of(written: str) -> Page:
    """A page as a person names it: ``URL``, or ``ROLE=URL`` with the role ``prefill``,
    ``decode``, ``standard`` or ``other``. Without a path ``/metrics`` is meant."""
    role, mark, rest = written.partition("=")
    if not mark or role not in _ROLES:
        role, rest = "", written
    parts = urlsplit(rest)
    url = rest if parts.path.strip("/") else f"{rest.rstrip('/')}/metrics"
    return Page(url, parts.netloc or rest, role)


class Scraper:
    """Observes one run.

    Args:
        interval_s: from look to look.
        timeout_s: for one page.
        clock: the one that the run's records are on.
        on_scrape: called with every look, for a live display; must not block.
    """

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        timeout_s: float = 2.0,
        clock: Clock | None = None,
        on_scrape: Callable[[Scrape], None] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._on_scrape = on_scrape
        self._zero_s = 0.0
        self._status_url = ""
        self._token: str | None = None
        self._pages: list[Page] = []
        self._scrapes: list[Scrape] = []
        self._failures: Counter[str] = Counter()
        self._why: dict[str, str] = {}
        self._http: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def problems(self) -> list[Problem]:
        """Pages that could not be read, none of them fatal."""
        return [
            Problem(
                "page_unreadable",
                f"{url} could not be read {count} time(s), last: {self._why[url]}.",
                fatal=False,
            )
            for url, count in sorted(self._failures.items())
        ]

    async def start(self, clock_zero: float, target: Scrapable) -> None:
        """Finds the pages, looks once, and goes on looking in a task of its own.

        Args:
            clock_zero: second zero of the run, on the monotonic clock.
            target: whom the run talks to.
        """
        self._zero_s = clock_zero
        self._scrapes, self._failures = [], Counter()
        base = target.url.rstrip("/").removesuffix("/v1")
        self._token = target.cluster_token
        self._status_url = f"{base}/admin/status"
        self._pages = [
            Page(f"{base}/metrics", urlsplit(base).netloc, ""),
            *(page_of(written) for written in target.metrics_urls),
        ][:_MAX_PAGES]
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s), trust_env=False
        )
        try:
            await self._find_workers()
            await self._look()
        except BaseException:
            await self._http.close()
            raise
        self._task = asyncio.create_task(self._keep_looking(), name="scraper")

    async def stop(self) -> list[Scrape]:
        """Looks a last time and returns all looks, by time.

        Servers count a request when they are through with it, which can be a moment after its
        client is: while one of them is busy the last look is repeated, for two seconds at most.
        """
        assert self._http is not None, "not started"
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                self._task = None
            for number in range(_SETTLE_LOOKS):
                if number:
                    await asyncio.sleep(_SETTLE_S)
                kept = len(self._scrapes)
                busy = await self._look()
                if not busy or number == _SETTLE_LOOKS - 1:
                    break
                del self._scrapes[kept:]
        finally:
            await self._http.close()
            self._http = None
        self._scrapes.sort(key=lambda scrape: scrape.at_s)
        return self._scrapes

    async def _keep_looking(self) -> None:
        due_s, interval_s, number = self._clock.monotonic_s(), self._interval_s, 0
        while True:
            number += 1
            now_s = self._clock.monotonic_s()
            # On absolute times: a slow page does not move the looks after it. Missed ones are
            # left out.
            due_s += interval_s * max(1, math.ceil((now_s - due_s) / interval_s))
            await asyncio.sleep(due_s - now_s)
            if number % _FIND_EVERY == 0:
                await self._find_workers()
            await self._look()
            if len(self._scrapes) > _MAX_SCRAPES:
                self._thin_out()
                interval_s *= 2

    def _thin_out(self) -> None:
        """Keeps every second look at each server, and each server's first."""
        seen: Counter[str] = Counter()
        kept = []
        for scrape in self._scrapes:
            if seen[scrape.source] % 2 == 0:
                kept.append(scrape)
            seen[scrape.source] += 1
        self._scrapes = kept

    async def _look(self) -> bool:
        """Reads every page once. Returns whether a server is busy."""
        seen = await asyncio.gather(*(self._read(page) for page in self._pages))
        looks = [scrape for scrape in seen if scrape is not None]
        self._scrapes += looks
        return any(
            value > 0
            for look in looks
            for sample, value in look.values.items()
            if split_name(sample)[0] in _BUSY
        )

    async def _read(self, page: Page) -> Scrape | None:
        body = await self._get(page.url, {})
        if body is None:
            return None
        at_s = self._clock.monotonic_s() - self._zero_s
        values = parse_page(body.decode("utf-8", "replace"))
        source, role = page.source, page.role
        if not role:
            engine = any(sample.startswith("vllm:") for sample in values)
            router = any(sample.startswith("baton_") for sample in values)
            role = ROUTER if router else "standard" if engine else "other"
            source = ROUTER if router and page is self._pages[0] else source
        scrape = Scrape(at_s=at_s, source=source, role=role, values=values)
        if self._on_scrape is not None:
            self._on_scrape(scrape)
        return scrape

    async def _find_workers(self) -> None:
        """Adds the workers that the router names and that are not known yet."""
        if self._token is None:
            return
        body = await self._get(self._status_url, {"Authorization": f"Bearer {self._token}"})
        if body is None:
            return
        known = {page.url for page in self._pages}
        for record in _records(body):
            url = f"{record.url.rstrip('/')}/metrics"
            if url not in known and len(self._pages) < _MAX_PAGES:
                self._pages.append(Page(url, record.id, record.role))

    async def _get(self, url: str, headers: dict[str, str]) -> bytes | None:
        assert self._http is not None
        try:
            async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
                body = bytearray()
                if answer.status == 200:
                    async for part in answer.content.iter_any():
                        body += part
                        if len(body) > _MAX_PAGE_BYTES:
                            raise ValueError(f"larger than {_MAX_PAGE_BYTES} bytes")
                    return bytes(body)
                why = f"status {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            why = str(error) or type(error).__name__
        self._failures[url] += 1
        self._why[url] = why
        return None


class _Record(msgspec.Struct):
    id: str
    url: str
    role: str


class _Worker(msgspec.Struct):
    record: _Record


class _Status(msgspec.Struct):
    workers: list[_Worker]


def _records(body: bytes) -> list[_Record]:
    with contextlib.suppress(msgspec.DecodeError):
        return [worker.record for worker in msgspec.json.decode(body, type=_Status).workers]
    return []


__all__ = ["Page", "Scrapable", "Scraper", "page_of"]
