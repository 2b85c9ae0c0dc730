"""Reading an engine's metrics page."""

from __future__ import annotations

from router.care.metrics_page import EngineCounters, read_counters

PAGE = b"""
# HELP vllm:nixl_xfer_time_seconds Histogram of transfer duration for NIXL KV Cache transfers.
# TYPE vllm:nixl_xfer_time_seconds histogram
vllm:nixl_xfer_time_seconds_bucket{engine="0",le="0.005",model_name="a b"} 1.0
vllm:nixl_xfer_time_seconds_count{engine="0",model_name="a b"} 2.0
vllm:nixl_xfer_time_seconds_count{engine="1",model_name="a b"} 1.0
vllm:nixl_xfer_time_seconds_sum{engine="0",model_name="a b"} 0.25
vllm:nixl_bytes_transferred_sum 1.5e+06
vllm:iteration_tokens_total_count{engine="0",model_name="a b"} nonsense
"""


def test_totals() -> None:
    """Summed over engines, with or without labels; what is not understood is not there."""
    assert read_counters(PAGE) == EngineCounters(
        steps=None, transfers=3.0, transfer_s=0.25, transfer_bytes=1.5e6
    )


def test_an_empty_page() -> None:
    assert read_counters(b"\xff\n\n") == EngineCounters()
