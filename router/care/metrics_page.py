"""A few numbers of an engine's ``/metrics`` page, read by a plain scan.

Names are those of vLLM 0.32 (``vllm/v1/metrics/loggers.py`` and the NIXL connector's
``stats.py``), with the suffixes that Prometheus gives to a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

_STEPS = "vllm:iteration_tokens_total_count"
_TRANSFERS = "vllm:nixl_xfer_time_seconds_count"
_TRANSFER_S = "vllm:nixl_xfer_time_seconds_sum"
_TRANSFER_BYTES = "vllm:nixl_bytes_transferred_sum"


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Totals since the engine's start, over all its ranks; None where the page has none.

    Attributes:
        steps: engine steps that computed something.
        transfers: pulls that ended well.
        transfer_s: seconds that those took.
        transfer_bytes: bytes that those moved.
    """

    steps: float | None = None
    transfers: float | None = None
    transfer_s: float | None = None
    transfer_bytes: float | None = None


_FIELDS = {
    _STEPS: "steps",
    _TRANSFERS: "transfers",
    _TRANSFER_S: "transfer_s",
    _TRANSFER_BYTES: "transfer_bytes",
}


def read_counters(page: bytes) -> EngineCounters:
    """The totals of a page; a line that is not understood counts as not there."""
    sums: dict[str, float] = {}
    for line in page.decode("utf-8", "replace").splitlines():
        field = _FIELDS.get(line.partition("{")[0].partition(" ")[0])
        if field is None:
            continue
        try:
            sums[field] = sums.get(field, 0.0) + float(line.rpartition(" ")[2])
        except ValueError:
            continue
    return EngineCounters(**sums)
