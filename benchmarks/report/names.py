"""How figures are called, written and defined, so that all reports say the same words.

It turns keys such as ``itl_p99`` into labels, numbers into text with units, and outcomes into a
word and a symbol. It refuses to compute: a figure that is not there is written as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.comparison import Verdict

DASH = "\u2013"


class Kind(StrEnum):
    """What a number counts, which decides its unit and its digits."""

    SECONDS = "seconds"
    RATE = "rate"
    TOKENS = "tokens"
    SHARE = "share"
    DOLLARS = "dollars"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Figure:
    """What a key stands for: its label, its kind, and the name of its definition (or empty)."""

    label: str
    kind: Kind
    definition: str = ""


# Keys without their statistic; the statistic (``_p99``, ``_mean``) is taken off first.
_FIGURES: dict[str, Figure] = {
    "ttft": Figure("TTFT", Kind.SECONDS, "TTFT"),
    "ttft_sched": Figure("TTFT from schedule", Kind.SECONDS, "From schedule"),
    "itl": Figure("ITL", Kind.SECONDS, "ITL"),
    "longest_gap": Figure("Longest gap", Kind.SECONDS, "Longest gap"),
    "tpot": Figure("TPOT", Kind.SECONDS, "TPOT"),
    "e2e": Figure("E2E", Kind.SECONDS, "E2E"),
    "e2e_sched": Figure("E2E from schedule", Kind.SECONDS, "From schedule"),
    "goodput_rps": Figure("Goodput", Kind.RATE, "Goodput"),
    "goodput_per_accelerator": Figure("Goodput per accelerator", Kind.RATE, "Goodput"),
    "good_output_tokens_per_s": Figure("Good output tokens", Kind.TOKENS, "Goodput"),
    "max_rate": Figure("Highest rate within the SLO", Kind.RATE, "Highest rate"),
    "attainment": Figure("SLO attainment", Kind.SHARE, "Attainment"),
    "attainment_ttft": Figure("SLO attainment, TTFT", Kind.SHARE, "Attainment"),
    "attainment_tpot": Figure("SLO attainment, TPOT", Kind.SHARE, "Attainment"),
    "attainment_e2e": Figure("SLO attainment, E2E", Kind.SHARE, "Attainment"),
    "requests_per_s": Figure("Requests finished", Kind.RATE),
    "output_tokens_per_s": Figure("Output tokens", Kind.TOKENS),
    "output_tokens_per_s_per_accelerator": Figure("Output tokens per accelerator", Kind.TOKENS),
    "prompt_tokens_per_s": Figure("Prompt tokens", Kind.TOKENS),
    "in_flight": Figure("Requests in flight", Kind.PLAIN),
    "error_share": Figure("Failed requests", Kind.SHARE),
    "served_share": Figure("Served by due, second half", Kind.SHARE, "Saturated"),
    "cached_share": Figure("Prompt tokens from cache", Kind.SHARE, "Cache hits"),
    "chunks_per_token": Figure("Chunks per token", Kind.PLAIN, "Chunks per token"),
    "usd_per_million_good_tokens": Figure(
        "$ per million good output tokens", Kind.DOLLARS, "Price"
    ),
    "usd_per_million_tokens": Figure("$ per million output tokens", Kind.DOLLARS, "Price"),
}

DEFINITIONS: dict[str, str] = {
    "TTFT": "Time to first token: from the moment a request's bytes were handed to the connection "
    "to its first chunk with content. A chunk that only names a role is no content.",
    "ITL": "Inter-token latency: the gaps between neighbouring chunks with content, as they "
    "arrived, pooled over all requests. A pause that a reader sees is one long gap here; an "
    "average over an answer would hide it.",
    "Longest gap": "The longest of an answer's gaps: the pause that its reader saw. A pause that "
    "every tenth answer has is too rare among all gaps for ITL's p99, and is p90 here.",
    "TPOT": "Time per output token of one answer: (E2E - TTFT) / (n - 1), n output tokens as the "
    "server counted them. An answer of one token has none.",
    "E2E": "From the moment a request was sent to the end of its answer.",
    "From schedule": "The same figure, counted from when the request should have been sent. Where "
    "it is larger, the load generator or its connection limit held requests back.",
    "Goodput": "Requests per second that succeeded and met every service level that applies to "
    "them. They are judged from the schedule, because that is when a user began to wait. Per "
    "accelerator: divided by all accelerators of the arm.",
    "Highest rate": "Requests per second that an arm is offered where 90 % of them still succeed "
    "and meet their service level, on a straight line between the two levels of load around it.",
    "Attainment": "Share of the requests that succeeded and met every service level that applies "
    "to them, judged from the schedule.",
    "Saturated": "At a hollow point an arm no longer served what was offered: its queue grew for "
    "as long as the block went on, and its latencies say how long that was.",
    "Price": "Price of all accelerators of an arm per second, divided by its output tokens per "
    "second. Good tokens are those of requests within their service levels. Prices are those "
    "written in the profile.",
    "Cache hits": "Prompt tokens that the server took from its prefix cache, by its own count. "
    "Every block has its own salt in the prompts, so that no block finds what another left.",
    "Chunks per token": "Content chunks by output tokens. Below 1, several tokens shared a chunk, "
    "and ITL is the gap between groups of tokens.",
    "Interval": "Bootstrapped over pairs of blocks, never over single requests, which are not "
    "independent of each other; verdicts are widened for how many of them there are.",
    "Tie": "The interval contains no difference, or the difference is smaller than the instrument "
    "can resolve. It does not say that the arms are equal.",
    "Unknown": "Too few samples for this percentile, or too few pairs for an interval. A 99th "
    "percentile is not quoted from fewer than 1000 requests.",
}

_WORDS = {"better": "better", "worse": "worse", "tie": "tie", "unknown": "unknown: too few"}
_SYMBOLS = {"better": "✓", "worse": "✗", "tie": "=", "unknown": "?"}


def figure(key: str) -> Figure:
    """The figure behind ``key``; keys that are not known are spelled out, with a guessed unit."""
    stem, statistic = _split(key)
    known = _FIGURES.get(stem)
    if known is None:
        known = Figure(stem.replace("_", " ").strip() or key, _guess(stem))
    if not statistic:
        return known
    return Figure(f"{known.label} {statistic}", known.kind, known.definition)


def value_text(key: str, value: float | None) -> str:
    """``value`` with its unit: milliseconds under 10 s, else seconds; a dash for None."""
    return kind_text(figure(key).kind, value)


def kind_text(kind: Kind, value: float | None) -> str:
    """As `value_text`, for a number whose kind is known."""
    if value is None or not math.isfinite(value):
        return DASH
    if kind is Kind.SECONDS:
        if abs(value) < 10:
            return f"{digits(value * 1000)} ms"
        return f"{digits(value)} s"
    if kind is Kind.RATE:
        return f"{digits(value)} /s"
    if kind is Kind.TOKENS:
        return f"{digits(value)} tok/s"
    if kind is Kind.SHARE:
        return f"{digits(value * 100)} %"
    if kind is Kind.DOLLARS:
        return f"${value:,.2f}" if value >= 0.1 else f"${digits(value)}"
    return digits(value)


def digits(value: float) -> str:
    """Three significant digits, whole numbers from 100 on, commas between thousands."""
    value, size = float(value), abs(value)
    if size >= 99.95 or value.is_integer():
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.1e}"
    places = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{places}f}"


def change_text(ratio: float | None) -> str:
    """``12.3x lower``, ``2.4x higher``, ``+24 %``: what multiplies is said as a multiple."""
    if ratio is None or not math.isfinite(ratio) or ratio < 0:
        return DASH
    if 0 < ratio <= 0.5:
        return f"{_times(1 / ratio)} lower"
    if ratio >= 2:
        return f"{_times(ratio)} higher"
    return _percent(ratio)


def interval_text(ratio: float | None, low: float | None, high: float | None) -> str:
    """The interval in the words of `change_text`; a dash where there is none."""
    if ratio is None or low is None or high is None:
        return DASH
    if not (math.isfinite(low) and math.isfinite(high)):
        return DASH
    if low > 0 and high <= 1 and 0 < ratio <= 0.5:
        return f"{_times(1 / high)} to {_times(1 / low)} lower"
    if low >= 1 and ratio >= 2:
        return f"{_times(low)} to {_times(high)} higher"
    return f"{_percent(low)} to {_percent(high)}"


def outcome_word(outcome: str) -> str:
    """What the outcome is called in print."""
    return _WORDS.get(outcome, outcome)


def outcome_symbol(outcome: str) -> str:
    """A sign that says the outcome without colour."""
    return _SYMBOLS.get(outcome, "?")


def verdict_sentence(verdict: Verdict) -> str:
    """One verdict in one line of text."""
    return (
        f"{verdict.class_name} {figure(verdict.key).label}: "
        f"{value_text(verdict.key, verdict.value)} against "
        f"{value_text(verdict.key, verdict.base_value)} of {verdict.base}, "
        f"{change_text(verdict.ratio)} ({outcome_word(verdict.outcome)})"
    )


def _split(key: str) -> tuple[str, str]:
    stem, _, last = key.rpartition("_")
    if stem and (last in ("mean", "max", "min") or (last[:1] == "p" and last[1:].isdigit())):
        return stem, last
    return key, ""


def _guess(stem: str) -> Kind:
    if "usd" in stem or "price" in stem or "cost" in stem:
        return Kind.DOLLARS
    if stem.endswith("_share") or stem.startswith("attainment"):
        return Kind.SHARE
    if "tokens_per_s" in stem:
        return Kind.TOKENS
    if stem.endswith(("_rps", "_rate", "_per_s")) or stem.startswith("goodput"):
        return Kind.RATE
    if stem.endswith("_s"):
        return Kind.SECONDS
    if stem.startswith(("ttft", "itl", "tpot", "e2e")):
        return Kind.SECONDS
    return Kind.PLAIN


def _times(value: float) -> str:
    return f"{value:,.0f}x" if value >= 99.5 else f"{value:.1f}x"


def _percent(ratio: float) -> str:
    change = (ratio - 1) * 100
    places = 0 if abs(change) >= 9.95 else 1
    text = f"{abs(change):,.{places}f}"
    if float(text.replace(",", "")) == 0:
        return "0 %"
    return f"{'+' if change > 0 else '−'}{text} %"  # noqa: RUF001 - a minus sign is meant


SERVER_FIGURES: dict[str, Figure] = {
    "requests": Figure("requests", Kind.PLAIN),
    "handoffs": Figure("handoffs", Kind.PLAIN),
    "ttft_s": Figure("mean TTFT", Kind.SECONDS),
    "queue_s": Figure("mean queue", Kind.SECONDS),
    "prefill_s": Figure("mean prefill", Kind.SECONDS),
    "prefill_leg_s": Figure("mean prefill leg", Kind.SECONDS),
    "step_s": Figure("mean step", Kind.SECONDS),
    "waiting_max": Figure("most waiting", Kind.PLAIN),
    "kv_usage_max": Figure("KV cache, at most", Kind.SHARE),
    "prefix_hit_share": Figure("prefix hits", Kind.SHARE),
    "preemptions": Figure("preemptions", Kind.PLAIN),
    "nixl_transfers": Figure("KV transfers", Kind.PLAIN),
    "nixl_bytes": Figure("bytes moved", Kind.PLAIN),
    "nixl_s": Figure("seconds moving", Kind.SECONDS),
}
"""What is shown of ``engine_side.server_figures``, in this order."""


def server_columns(servers: Iterable[Mapping[str, float]]) -> list[str]:
    """The figures that at least one server has."""
    known = {key for figures in servers for key in figures}
    return [key for key in SERVER_FIGURES if key in known]


def server_cells(figures: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """A server's figures as text."""
    return [kind_text(SERVER_FIGURES[key].kind, figures.get(key)) for key in columns]
