"""Counters and histograms that a request can afford.

A request makes some fifteen updates and the whole router may spend 0.16 ms on it; the
instruments of ``prometheus_client`` cost 2 to 3 microseconds each, for locks that one event loop
does not need. These are a dictionary look-up and an addition. They are written by one thread, the
event loop's; another thread may read them at any time and sees a count that is at most a moment
old.

Bounded: a label whose values are not written down in our code (a tenant, a worker) is *open*, and
once a family has as many series as it may, further values of open labels are counted under
``other``. Nothing is ever forgotten, since a counter that goes back reads as a restart.

It refuses to know about exposition formats (``router.observe.render``) and about meaning
(``router.observe.families``).
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OTHER = "other"
"""Label value under which everything past the bound is counted."""

Labels = tuple[str, ...]
"""Label values in the order of the family's label names."""


class Kind(enum.StrEnum):
    """What a family's numbers mean."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(enum.StrEnum):
    """How the numbers of several processes of one router become one."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, what it means, and what it may cost.

    Attributes:
        name: as exposed; counters end in ``_total``.
        kind: what its numbers mean.
        help: one sentence for people.
        labels: label names.
        open_labels: those whose values are not written down in our code.
        buckets: upper bounds of a histogram, in the unit of the name, ascending, without +Inf.
        most_series: label tuples kept apart; more are folded into ``other``.
        merge: how several processes' numbers become one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    open_labels: frozenset[str] = frozenset()
    buckets: tuple[float, ...] = ()
    most_series: int = 500
    merge: Merge = Merge.SUM


class _Series:
    """Which label tuple an update belongs to, within the family's bound."""

    __slots__ = ("_on_overflow", "family")

    def __init__(self, family: Family, on_overflow: Callable[[str], None]) -> None:
        self.family = family
        self._on_overflow = on_overflow

    def _place(self, labels: Labels, known: Mapping[Labels, object]) -> Labels:
        """The series of a label tuple that has none of its own yet.

        Raises:
            ValueError: the tuple does not fit the family; a bug at the call site.
        """
        family = self.family
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name} has labels {family.labels}, not {labels}")
        if len(known) < family.most_series:
            return labels
        self._on_overflow(family.name)
        folded = tuple(
            OTHER if name in family.open_labels else value
            for name, value in zip(family.labels, labels, strict=True)
        )
        if folded in known or len(known) < 2 * family.most_series:
            return folded
        return (OTHER,) * len(labels)


class Counter(_Series):
    """A number per label tuple that only grows."""

    __slots__ = ("values",)

    def __init__(self, family: Family, on_overflow: Callable[[str], None]) -> None:
        super().__init__(family, on_overflow)
        self.values: dict[Labels, float] = {}
        if not family.labels:
            self.values[()] = 0

    def add(self, labels: Labels = (), n: float = 1) -> None:
        """Adds ``n``, at least 0."""
        try:
            self.values[labels] += n
        except KeyError:
            place = self._place(labels, self.values)
            self.values[place] = self.values.get(place, 0) + n

    def prime(self, labels: Labels) -> None:
        """Shows the series with 0 before its first event, so that a rate sees that event."""
        self.add(labels, 0)


class Histogram(_Series):
    """Values per label tuple, counted by bucket.

    A series is one list: a count for every bucket, the last one up to +Inf, and then the sum.
    """

    __slots__ = ("_width", "bounds", "cells")

    def __init__(self, family: Family, on_overflow: Callable[[str], None]) -> None:
        super().__init__(family, on_overflow)
        self.bounds = family.buckets
        self._width = len(family.buckets) + 2
        self.cells: dict[Labels, list[float]] = {}
        if not family.labels:
            self.cells[()] = [0] * self._width

    def observe(self, labels: Labels, value: float) -> None:
        """Counts one value; what is no number (NaN) is dropped, since a sum never recovers."""
        if value != value:
            return
        try:
            cell = self.cells[labels]
        except KeyError:
            cell = self._cell(labels)
        cell[bisect_left(self.bounds, value)] += 1
        cell[-1] += value

    def merge(self, labels: Labels, counts: Sequence[float], total: float) -> None:
        """Adds what was counted elsewhere by the same bounds.

        Args:
            labels: the series.
            counts: values per bucket, the last one up to +Inf.
            total: their sum.
        """
        cell = self.cells.get(labels) or self._cell(labels)
        for i, count in enumerate(counts):
            if count:
                cell[i] += count
        cell[-1] += total

    def _cell(self, labels: Labels) -> list[float]:
        place = self._place(labels, self.cells)
        return self.cells.setdefault(place, [0] * self._width)


Pull = Callable[[], Mapping[Labels, float]]
"""Reads numbers at the time of a scrape: a value per label tuple."""


class Pulled(_Series):
    """A gauge, or a counter kept elsewhere, that nobody updates here: a callable is asked at every
    scrape."""

    __slots__ = ("_read",)

    def __init__(self, family: Family, on_overflow: Callable[[str], None]) -> None:
        super().__init__(family, on_overflow)
        self._read: Pull = dict

    def read_from(self, read: Pull) -> None:
        """Sets the callable; the last one counts."""
        self._read = read

    def read(self) -> Mapping[Labels, float]:
        """The values of this moment, at most ``most_series`` of them.

        Raises:
            ValueError: a label tuple does not fit the family.
            Exception: whatever the callable raises.
        """
        found = self._read()
        width = len(self.family.labels)
        kept: dict[Labels, float] = {}
        for labels, value in found.items():
            if len(labels) != width:
                raise ValueError(f"{self.family.name} has labels {self.family.labels}: {labels}")
            if len(kept) >= self.family.most_series:
                self._on_overflow(self.family.name)
                break
            kept[labels] = value
        return kept


Instrument = Counter | Histogram | Pulled
