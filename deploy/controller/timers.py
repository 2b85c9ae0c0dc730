"""For how long something has been so, on one monotonic clock.

A controller that was started anew begins to count anew: it waits longer than it would have to,
never shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Timers:
    """Remembers since when keys have been told to hold.

    Args:
        now_s: monotonic seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._since: dict[str, float] = {}

    def held_s(self, key: str, holds: bool) -> float | None:
        """For how long ``key`` has held, in seconds; None where it does not."""
        if not holds:
            self._since.pop(key, None)
            return None
        now_s = self._now_s()
        return now_s - self._since.setdefault(key, now_s)

    def keep(self, prefix: str, keys: Iterable[str]) -> dict[str, float]:
        """Of all keys with the prefix these hold and no others; how long each has, by the key."""
        wanted = {prefix + key: key for key in keys}
        for key in [k for k in self._since if k.startswith(prefix) and k not in wanted]:
            del self._since[key]
        now_s = self._now_s()
        return {key: now_s - self._since.setdefault(full, now_s) for full, key in wanted.items()}
