"""How long prefill and handoffs take, learned from those that were carried out.

Both are lines: seconds = fixed + slope x size. The size of a prefill is its uncached tokens plus
the tokens that were ahead of it; that of a handoff the KV bytes that were pulled. A line is kept
for each worker (or pair), and one for all that are alike, for those of whom little is known.

Old samples count less and less, by number and by time; what was not measured for long is not
known any more, and a decision falls back to its threshold, which brings new samples. No clock of
its own: times are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from baton.types import WorkerRecord

ENOUGH = 8.0
"""Samples (by weight) that make a line believable."""

_KEEP = 0.97
"""Weight that old samples keep with each new one: the last 33 or so count."""

_HALF_LIFE_S = 300.0
"""And with time: engines are reloaded, networks get crowded."""

_OUTLIER_SPREADS = 4.0
"""A sample further off than so many usual distances is moved to that distance; if they go on, the
usual distance grows and the line follows within ten samples or so."""

_LEAST_SPREAD = 0.02
"""Usual distance as a share of the prediction, at least: perfect samples make nobody an outlier."""

_DAMPING = 0.05
"""A straight line through sizes that hardly differ says nothing about others: below this ratio of
standard deviation to mean, seconds are taken to be proportional to the size."""


class LineView(msgspec.Struct, frozen=True):
    """A line as it is now, for people: seconds = ``fixed_s + slope_s * size``."""

    key: str
    samples: float
    fixed_s: float
    slope_s: float
    spread_s: float


class Line:
    """A straight line through samples, least squares with forgetting. Neither part is negative.

    Attributes:
        fixed_s: at size 0.
        slope_s: per token or byte.
        mean_s: of the samples themselves.
        spread_s: how far samples usually are from it.
    """

    __slots__ = (
        "_at_s",
        "_w",
        "_x",
        "_xx",
        "_xy",
        "_y",
        "fixed_s",
        "mean_s",
        "slope_s",
        "spread_s",
    )

    def __init__(self) -> None:
        self._w = self._x = self._y = self._xx = self._xy = 0.0
        self._at_s = 0.0
        self.fixed_s = self.slope_s = self.mean_s = self.spread_s = 0.0

    def samples(self, now_s: float) -> float:
        """What is left of the weight of all samples."""
        idle_s = now_s - self._at_s
        return self._w * 0.5 ** (idle_s / _HALF_LIFE_S) if idle_s > 0 else self._w

    def at(self, size: float) -> float:
        """Seconds for ``size``."""
        return self.fixed_s + self.slope_s * size

    def observe(self, size: float, seconds: float, now_s: float) -> None:
        """One more sample."""
        keep = _KEEP
        if now_s > self._at_s:
            keep *= 0.5 ** ((now_s - self._at_s) / _HALF_LIFE_S)
            self._at_s = now_s
        expected_s = self.at(size)
        if self._w >= ENOUGH:
            off_s = max(self.spread_s, _LEAST_SPREAD * expected_s) * _OUTLIER_SPREADS
            seconds = min(max(seconds, expected_s - off_s), expected_s + off_s)
            self.spread_s += 0.1 * (abs(seconds - expected_s) - self.spread_s)
        elif self._w > 0:
            self.spread_s += (abs(seconds - expected_s) - self.spread_s) / (self._w + 1)
        w = self._w = self._w * keep + 1.0
        x = self._x = self._x * keep + size
        y = self._y = self._y * keep + seconds
        xx = self._xx = self._xx * keep + size * size
        xy = self._xy = self._xy * keep + size * seconds
        self.mean_s = y / w
        variance = w * xx - x * x
        if variance > (_DAMPING * x) ** 2:
            slope_s = max(0.0, (w * xy - x * y) / variance)
            fixed_s = (y - slope_s * x) / w
            if fixed_s < 0:
                fixed_s, slope_s = 0.0, xy / xx
        elif x > 0:
            fixed_s, slope_s = 0.0, y / x
        else:
            fixed_s, slope_s = y / w, 0.0
        self.fixed_s, self.slope_s = fixed_s, slope_s


class Estimates:
    """Lines of all workers and pairs; what was used longest ago is dropped over the bound.

    Args:
        max_lines: of each kind. A line takes about 300 bytes.
    """

    def __init__(self, *, max_lines: int = 20_000) -> None:
        self._prefills = _Lines(max_lines)
        self._pulls = _Lines(max_lines)

    def observe_prefill(
        self,
        worker: WorkerRecord,
        uncached_tokens: int,
        seconds: float,
        now_s: float,
        *,
        ahead_tokens: int = 0,
    ) -> None:
        """A prompt was prefilled on ``worker``.

        Args:
            worker: a prefill worker, or whoever did all.
            uncached_tokens: those that it computed.
            seconds: from sending the request to its first token (of a prefill leg: its answer).
            now_s: the time, on any clock that only goes forward.
            ahead_tokens: prompt tokens in prefill there when the request was sent.
        """
        if _sound(seconds) and uncached_tokens > 0:
            size = uncached_tokens + ahead_tokens
            self._prefills.observe(_prefill_keys(worker), size, seconds, now_s)

    def observe_pull(
        self,
        prefill: WorkerRecord,
        decode: WorkerRecord,
        kv_bytes: int,
        seconds: float,
        now_s: float,
    ) -> None:
        """A handoff was pulled.

        Args:
            prefill: from whom.
            decode: by whom.
            kv_bytes: that decode lacked.
            seconds: from sending the decode request to its first token: set-up, pull and the
                first decode step, which nobody outside the engine can tell apart in one sample.
            now_s: as above.
        """
        if _sound(seconds) and kv_bytes >= 0:
            self._pulls.observe(_pull_keys(prefill, decode), kv_bytes, seconds, now_s)

    def prefill(self, worker: WorkerRecord, now_s: float) -> Line | None:
        """The line of ``worker``, else of its like; None if too little was measured."""
        return self._prefills.best(_prefill_keys(worker), now_s)

    def pull(
        self, prefill: WorkerRecord, decode: WorkerRecord, now_s: float
    ) -> tuple[Line | None, bool]:
        """The line of the pair, else of pairs of such machines; None as above. And whether it is
        about this very pair."""
        keys = _pull_keys(prefill, decode)
        own = self._pulls.best(keys[:1], now_s)
        return (own, True) if own is not None else (self._pulls.best(keys[1:], now_s), False)

    def views(self, now_s: float) -> dict[str, list[LineView]]:
        """All lines, for people."""
        return {"prefill": self._prefills.views(now_s), "pull": self._pulls.views(now_s)}


class _Lines:
    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lines: OrderedDict[str, Line] = OrderedDict()

    def observe(self, keys: Sequence[str], size: float, seconds: float, now_s: float) -> None:
        for key in keys:
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = Line()
                if len(self._lines) > self._bound:
                    self._lines.popitem(last=False)
            else:
                self._lines.move_to_end(key)
            line.observe(size, seconds, now_s)

    def best(self, keys: Sequence[str], now_s: float) -> Line | None:
        for key in keys:
            line = self._lines.get(key)
            if line is not None and line.samples(now_s) >= ENOUGH:
                return line
        return None

    def views(self, now_s: float) -> list[LineView]:
        return [
            LineView(key, line.samples(now_s), line.fixed_s, line.slope_s, line.spread_s)
            for key, line in self._lines.items()
        ]


def _prefill_keys(worker: WorkerRecord) -> tuple[str, str]:
    return worker.id, f"{worker.role}/{worker.accelerator}/{worker.model}"


def _pull_keys(prefill: WorkerRecord, decode: WorkerRecord) -> tuple[str, str]:
    where = "node" if prefill.node == decode.node else "network"
    return (
        f"{prefill.id} > {decode.id}",
        f"{prefill.accelerator} > {decode.accelerator}/{decode.model}/{where}",
    )


def _sound(seconds: float) -> bool:
    return 0.0 < seconds < 86_400.0
