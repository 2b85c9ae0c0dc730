"""What counters did between the first and the last look at a server. Pure.

A counter that fell was reset: its server was restarted in the run. What it had counted before is
kept in the sums, as far as it was seen, and ``interruptions`` says that the run was disturbed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.engine_side.pages import is_counter, split_name
from benchmarks.records import Problem, Scrape

ROUTER = "router"
_LATE_S = 2.5
"""A server first seen so long after the others joined in the run; looks are a second apart."""


@dataclass(frozen=True, slots=True)
class Changes:
    """One server over one run.

    Attributes:
        source: ``router`` or a worker id.
        role: ``router``, ``prefill``, ``decode``, ``standard`` or ``other``.
        looks: how many looks there were.
        grown: by sample, how much each counter grew.
        peaks: by sample, the largest value that was seen of each gauge.
    """

    source: str
    role: str
    looks: int
    grown: dict[str, float]
    peaks: dict[str, float]

    def has(self, name: str) -> bool:
        """Whether the page had any sample of this name."""
        return any(
            sample == name or sample.startswith(name + "{")
            for samples in (self.grown, self.peaks)
            for sample in samples
        )

    def growth(self, name: str, **labels: str | Iterable[str]) -> float:
        """How much the counter ``name`` grew, summed over all its label sets, or over those whose
        labels have the given value, or one of the given values."""
        wanted = {
            key: {value} if isinstance(value, str) else set(value) for key, value in labels.items()
        }
        total = 0.0
        for sample, value in self.grown.items():
            found, has = split_name(sample)
            if found == name and all(has.get(key) in among for key, among in wanted.items()):
                total += value
        return total

    def mean(self, histogram: str) -> float | None:
        """Mean of what a histogram observed in the run, or None if it observed nothing."""
        count = self.growth(f"{histogram}_count")
        return self.growth(f"{histogram}_sum") / count if count > 0 else None

    def peak(self, name: str) -> float | None:
        """Largest value of a gauge, over its label sets (engines) as well."""
        found = [value for key, value in self.peaks.items() if split_name(key)[0] == name]
        return max(found, default=None)

    @property
    def requests(self) -> float:
        """Requests that the engine finished as asked; aborted and failed ones not counted."""
        return self.growth(
            "vllm:request_success_total", finished_reason=("stop", "length", "repetition")
        )


def changes(scrapes: Iterable[Scrape]) -> list[Changes]:
    """One entry per server, the router first, then by id.

    A label set that appears after its server was first seen began at zero.
    """
    return [_changes(looks) for looks in _by_source(scrapes)]


def _by_source(scrapes: Iterable[Scrape]) -> list[list[Scrape]]:
    found: dict[str, list[Scrape]] = defaultdict(list)
    for scrape in scrapes:
        found[scrape.source].append(scrape)
    for looks in found.values():
        looks.sort(key=lambda look: look.at_s)
    return [found[source] for source in sorted(found, key=lambda name: (name != ROUTER, name))]


def _changes(looks: Sequence[Scrape]) -> Changes:
    grown: dict[str, float] = {}
    peaks: dict[str, float] = {}
    before = dict(looks[0].values)
    for number, look in enumerate(looks):
        for sample, value in look.values.items():
            if not is_counter(sample):
                peaks[sample] = max(value, peaks.get(sample, value))
                continue
            last = before.get(sample, 0.0)
            # After a reset everything that is there was counted since.
            step = value - last if value >= last else value
            grown[sample] = grown.get(sample, 0.0) + (step if number else 0.0)
            before[sample] = value
    return Changes(looks[0].source, looks[0].role, len(looks), grown, peaks)


def interruptions(scrapes: Iterable[Scrape]) -> list[Problem]:
    """Servers that were restarted (fatal), came or went in the run."""
    problems = []
    groups = _by_source(scrapes)
    begin_s = min((looks[0].at_s for looks in groups), default=0.0)
    end_s = max((looks[-1].at_s for looks in groups), default=0.0)
    for looks in groups:
        source = looks[0].source
        reset_s = _reset_at(looks)
        if reset_s is not None:
            problems.append(
                Problem(
                    "server_restarted",
                    f"{source} was restarted at about {reset_s:.0f} s: its counters went back. "
                    "Repeat the run, and look into its log.",
                )
            )
        if looks[0].at_s - begin_s > _LATE_S:
            problems.append(
                Problem(
                    "server_joined",
                    f"{source} was first seen at {looks[0].at_s:.0f} s; what it did before is in "
                    "no figure.",
                    fatal=False,
                )
            )
        if end_s - looks[-1].at_s > _LATE_S:
            problems.append(
                Problem(
                    "server_left",
                    f"{source} was last seen at {looks[-1].at_s:.0f} s, "
                    f"{end_s - looks[-1].at_s:.0f} s before the end; what it did after is in no "
                    "figure.",
                    fatal=False,
                )
            )
    return problems


def _reset_at(looks: Sequence[Scrape]) -> float | None:
    started = "process_start_time_seconds"
    for before, after in itertools.pairwise(looks):
        if before.values.get(started, 0.0) + 1.0 < after.values.get(started, 0.0):
            return after.at_s
        for sample, value in before.values.items():
            if is_counter(sample) and after.values.get(sample, 0.0) < value:
                return after.at_s
    return None
