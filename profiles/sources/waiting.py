"""How sources wait: for the next look, and for an outage to end.

What sources that are asked each second have in common, and how an outage is told: once when it
begins, again when its reason changes, and once when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable

from baton.clock import until_beat_s
from baton.errors import SourceUnavailable
from profiles.sources.base import Bundle

POLL_S = 1.0
"""Between two looks: an operator who waits for a change does not notice it."""

_log = logging.getLogger(__name__)


class Outage:
    """Whether a source can be read, told to the log where that changes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._reason: str | None = None

    def goes_on(self, error: SourceUnavailable) -> None:
        """The source could not be read."""
        if error.message != self._reason:
            self._reason = error.message
            _log.warning("profiles stay as they are: %s", error.message)

    def is_over(self) -> None:
        """The source was read."""
        if self._reason is not None:
            self._reason = None
            _log.info("profiles can be read again from %s", self._what)


class Backoff:
    """Growing pauses with jitter, so that many routers do not come back at the same moment.

    Args:
        rng: draws the jitter.
        least_s, most_s: the first pause and the longest one; what is drawn is between half of it
            and all of it.
    """

    def __init__(self, rng: random.Random, *, least_s: float = 0.5, most_s: float = 15.0) -> None:
        self._rng = rng
        self._least_s = least_s
        self._most_s = most_s
        self._next_s = least_s

    def next_s(self) -> float:
        """The pause before the next try."""
        pause_s = self._next_s
        self._next_s = min(self._most_s, 2 * pause_s)
        return pause_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It works again: the next pause is the shortest."""
        self._next_s = self._least_s


async def polled(
    read: Callable[[], Awaitable[Bundle | None]], *, what: str, every_s: float
) -> AsyncGenerator[Bundle]:
    """Bundles as :meth:`profiles.sources.base.ProfileSource.changes` gives them.

    Args:
        read: what is there now, or None if that is what it gave last; raises SourceUnavailable.
        what: the source, for the log.
        every_s: seconds between two looks.
    """
    loop = asyncio.get_running_loop()
    outage = Outage(what)
    last: str | None = None
    while True:
        try:
            bundle = await read()
        except SourceUnavailable as error:
            outage.goes_on(error)
        else:
            outage.is_over()
            if bundle is not None and bundle.digest != last:
                last = bundle.digest
                yield bundle
        await asyncio.sleep(until_beat_s(loop.time(), every_s))
