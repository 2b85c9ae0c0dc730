"""When requests of an open loop arrive: a pure function of the arrival process and its draws.

Times are made from gaps of mean one which are then divided by the rate. So two levels of load
have the same arrivals, one only faster than the other, and their difference is the system's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from benchmarks.workloads.draws import Draws
from benchmarks.workloads.spec import ConstantArrivals, GammaArrivals, PoissonArrivals

OpenArrivals = ConstantArrivals | PoissonArrivals | GammaArrivals


def arrival_times(
    arrivals: OpenArrivals, draws: Draws, *, rate: float, start_s: float, end_s: float
) -> Iterator[float]:
    """Times in [start_s, end_s), rising, at ``rate`` per second.

    Constant arrivals begin at ``start_s``; random ones with a random gap after it.
    """
    for unit in _unit_times(arrivals, draws):
        at_s = start_s + unit / rate
        if at_s >= end_s:
            return
        yield at_s


def _unit_times(arrivals: OpenArrivals, draws: Draws) -> Iterator[float]:
    """Times of a process with one arrival per second, without end."""
    if isinstance(arrivals, ConstantArrivals):
        return (float(k) for k in itertools.count())
    if isinstance(arrivals, PoissonArrivals):
        return itertools.accumulate(-math.log1p(-draws.at(k)) for k in itertools.count())
    variance = arrivals.cv**2
    generator = draws.generator()
    return itertools.accumulate(
        generator.gammavariate(1.0 / variance, variance) for _ in itertools.count()
    )
