"""Made-up classes of requests: one class of a workload as requests on a schedule, or as lanes.

Request n of a class depends on the seed, the class and n alone. Keys of prompts are names, never
text: what they stand for is decided by the run's salt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace as replaced

from baton.errors import WorkloadError
from benchmarks.plan import Lane, Piece, PlannedRequest
from benchmarks.workloads.arrivals import arrival_times
from benchmarks.workloads.distributions import pick_cumulative, seconds_at, whole_at
from benchmarks.workloads.draws import Draws
from benchmarks.workloads.spec import MAX_LANES, ClassSpec, ClosedArrivals

MAX_REQUESTS = 1_000_000
"""Of all classes of a plan together."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a plan does to its workload: ``rate`` multiplies rates and concurrency, ``time``
    multiplies every duration and pause."""

    rate: float = 1.0
    time: float = 1.0


class ClassDraws:
    """Everything that is drawn for the requests of one class, each for its own purpose."""

    def __init__(self, seed: int, name: str, spec: ClassSpec, scale: Scale) -> None:
        self.seed, self.name, self.spec, self.scale = seed, name, spec, scale
        prefix = spec.shared_prefix
        if prefix is not None:
            zipf = prefix.pick == "zipf"
            weights = (1.0 / (group if zipf else 1) for group in range(1, prefix.groups + 1))
            self._group_sums = list(itertools.accumulate(weights))
        self._draws: dict[str, Draws] = {}
        # In the order of the alphabet, and not of the file: equal versions mean equal plans.
        self._models = _sorted(spec.models)
        self._priorities = _sorted(spec.priorities)
        self._tenants = _sorted(spec.tenants)

    def __reduce__(self) -> tuple[type[ClassDraws], tuple[int, str, ClassSpec, Scale]]:
        # Hashes do not pickle, and follow from the rest.
        return ClassDraws, (self.seed, self.name, self.spec, self.scale)

    def request(self, *counts: int, first: bool = True) -> PlannedRequest:
        """The request that ``counts`` number within the class, with index 0, unplaced in time.
        ``first`` is False for one that continues a session: it has no prefix of its own."""
        spec = self.spec
        key = "/".join((self.name, *map(str, counts)))
        pieces = [Piece(key, whole_at(spec.prompt_tokens, self.at("prompt_tokens", *counts)))]
        prefix = spec.shared_prefix
        if first and prefix is not None and self.at("prefix_share", *counts) < prefix.share:
            group = pick_cumulative(self._group_sums, self.at("prefix_group", *counts))
            pieces.insert(0, Piece(f"{self.name}/prefix/{group}", prefix.tokens))
        # A session is one caller's, with one model.
        owner = counts[:1] if spec.turns is not None else counts
        priority = self._chosen(self._priorities, "priority", *owner)
        return PlannedRequest(
            index=0,
            class_name=self.name,
            pieces=tuple(pieces),
            output_tokens=whole_at(spec.output_tokens, self.at("output_tokens", *counts)),
            model=self._chosen(self._models, "model", *owner),
            tenant=self._chosen(self._tenants, "tenant", *owner),
            priority=None if priority is None else int(priority),
        )

    def at(self, purpose: str, *counts: int) -> float:
        """A number in [0, 1) for one purpose."""
        draws = self._draws.get(purpose)
        if draws is None:
            draws = self._draws[purpose] = Draws(self.seed, self.name, purpose)
        return draws.at(*counts)

    def _chosen(
        self, names: tuple[list[str], list[float]] | None, purpose: str, *counts: int
    ) -> str | None:
        if names is None:
            return None
        return names[0][pick_cumulative(names[1], self.at(purpose, *counts))]


def _sorted(weights: Mapping[str, float] | None) -> tuple[list[str], list[float]] | None:
    if weights is None:
        return None
    names = sorted(weights)
    return names, list(itertools.accumulate(weights[name] for name in names))


def scheduled(
    name: str, spec: ClassSpec, *, seed: int, scale: Scale, end_s: float
) -> Iterator[list[PlannedRequest]]:
    """An open class as sessions, in the order of their starts; a single request is one of one.

    Within a session ``index`` and ``after`` count its turns from 0; ``build`` numbers the plan.
    """
    arrivals = spec.arrivals
    assert not isinstance(arrivals, ClosedArrivals)
    rate = arrivals.rate * scale.rate / scale.time
    start_s = spec.start_s * scale.time
    # Checked before drawing, so that a slip of the pen does not fill the memory.
    check_count((end_s - start_s) * rate, f"class {name}")
    draws = ClassDraws(seed, name, spec, scale)
    times = arrival_times(
        arrivals, Draws(seed, name, "arrivals"), rate=rate, start_s=start_s, end_s=end_s
    )
    for number, at_s in enumerate(times):
        yield _session(draws, number, at_s)


def check_count(count: float, who: str) -> None:
    """Raises:
    WorkloadError: there are more requests than a plan may have.
    """
    if count > MAX_REQUESTS:
        raise WorkloadError(
            f"{who} would be about {count:.3g} requests, more than {MAX_REQUESTS}; lower the rate "
            "or the duration"
        )


def _session(draws: ClassDraws, number: int, at_s: float) -> list[PlannedRequest]:
    turns = draws.spec.turns
    if turns is None:
        return [replaced(draws.request(number), at_s=at_s)]
    count = whole_at(turns.count, draws.at("turns", number))
    requests: list[PlannedRequest] = []
    total = 0
    for turn in range(count):
        request = draws.request(number, turn, first=turn == 0)
        total += request.prompt_tokens + (request.output_tokens or 0)
        if turn > 0 and turns.max_tokens is not None and total > turns.max_tokens:
            break
        if turn == 0:
            request = replaced(request, at_s=at_s)
        else:
            think_s = seconds_at(turns.think_s, draws.at("think", number, turn))
            pause_s = think_s * draws.scale.time
            request = replaced(request, index=turn, after=turn - 1, think_s=pause_s)
        requests.append(request)
    if len(requests) == 1:
        return requests
    session = f"{draws.name}-{number}"
    return [replaced(request, session=session) for request in requests]


def lanes(name: str, spec: ClassSpec, *, seed: int, scale: Scale) -> list[Lane]:
    """A closed class as lanes; more concurrency adds lanes and leaves the others as they are."""
    arrivals = spec.arrivals
    assert isinstance(arrivals, ClosedArrivals)
    # Half up: round() would make three of both 2.5 and 3.5.
    count = max(1, int(arrivals.concurrency * scale.rate + 0.5))
    if count > MAX_LANES:
        raise WorkloadError(f"class {name} would have {count} clients, more than {MAX_LANES}")
    draws = ClassDraws(seed, name, spec, scale)
    found: list[Lane] = []
    for number in range(count):
        share = None
        if arrivals.requests is not None:
            share = arrivals.requests // count + (number < arrivals.requests % count)
        if share != 0:
            draw = partial(_lane_request, draws, number)
            found.append(Lane(f"{name}-{number}", name, draw, share))
    return found


def _lane_request(draws: ClassDraws, lane: int, k: int) -> PlannedRequest:
    """Request ``k`` of a lane. Its first one waits until the class begins."""
    arrivals = draws.spec.arrivals
    assert isinstance(arrivals, ClosedArrivals)
    if k == 0:
        pause_s = draws.spec.start_s
    else:
        pause_s = seconds_at(arrivals.think_s, draws.at("think", lane, k))
    request = draws.request(lane, k)
    name = f"{draws.name}-{lane}"
    return replaced(request, index=k, lane=name, think_s=pause_s * draws.scale.time)
