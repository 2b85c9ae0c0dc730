"""What is kept of a metrics page: a short list of families, read by one regular expression.

A vLLM page has many hundred lines, nearly all of them histogram buckets. Prometheus' own parser
makes an object of every one; that is several milliseconds in which a load generator that shares
the process would send nothing. Here a page costs a fraction of one. This module opens no
connection and computes no figure.
"""

from __future__ import annotations

import math
import re

_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")

_COUNTERS = (
    "prompt_tokens",
    "prompt_tokens_by_source",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "request_success",
    "num_preemptions",
    "nixl_num_failed_transfers",
    "nixl_num_failed_notifications",
    "nixl_num_kv_expired_reqs",
    "nixl_num_notifications_after_expiry",
)

_HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "nixl_xfer_time_seconds",
    "nixl_post_time_seconds",
    "nixl_bytes_transferred",
)

KEPT: tuple[str, ...] = (
    "process_start_time_seconds",
    *(f"vllm:{name}" for name in _GAUGES),
    *(f"vllm:{name}_total" for name in _COUNTERS),
    *(f"vllm:{name}{end}" for name in _HISTOGRAMS for end in ("_sum", "_count")),
)
"""Sample names that are kept, beside everything of the router's own (``baton_``) but buckets.
vLLM's names as of 0.32.0."""

_SAMPLE = re.compile(
    r"^((?:baton_(?!\w*_(?:bucket|created)[ {])\w+|"
    + "|".join(re.escape(name) for name in KEPT)
    + r")(?:\{.*\})?) (\S+)(?: -?\d+)?\r?$",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COUNTER_ENDS = ("_total", "_sum", "_count")


def parse_page(text: str) -> dict[str, float]:
    """The kept samples of a page in Prometheus' text format, by name with labels as on the page.

    Lines that do not parse, and values that are not finite, are left out.
    """
    values = {}
    for name, written in _SAMPLE.findall(text):
        try:
            value = float(written)
        except ValueError:
            continue
        if math.isfinite(value):
            values[name] = value
    return values


def split_name(sample: str) -> tuple[str, dict[str, str]]:
    """A sample's name and its labels."""
    name, brace, labels = sample.partition("{")
    return name, dict(_LABEL.findall(labels)) if brace else {}


def is_counter(sample: str) -> bool:
    """Whether a sample only ever grows: a counter, or the sum or count of a histogram."""
    return sample.partition("{")[0].endswith(_COUNTER_ENDS)
