"""The mock's metrics page, in vLLM's names and with vLLM's way of counting."""

from __future__ import annotations

import bisect
from collections import Counter

_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MAX_BLOCKS = 200_000


class Histogram:
    """Sum, count and buckets."""

    def __init__(self) -> None:
        self.total = 0.0
        self.counts = [0] * (len(_BUCKETS) + 1)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.total += value
        self.counts[bisect.bisect_left(_BUCKETS, value)] += 1


class Counters:
    """Everything on the page. ``model`` becomes a label."""

    def __init__(self, model: str) -> None:
        self.running = 0
        self.waiting = 0
        self.counts: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.histograms = {
            name: Histogram()
            for name in (
                "time_to_first_token_seconds",
                "inter_token_latency_seconds",
                "request_queue_time_seconds",
                "request_prefill_time_seconds",
                "request_decode_time_seconds",
                "e2e_request_latency_seconds",
            )
        }
        self._labels = f'engine="0",model_name="{model}"'

    def observe(self, histogram: str, value: float) -> None:
        """Counts one value in the histogram of that name."""
        self.histograms[histogram].observe(value)

    def page(self) -> str:
        """The page, in Prometheus' text format."""
        lines: list[str] = []

        def say(kind: str, name: str, *samples: tuple[str, str, float]) -> None:
            lines.append(f"# HELP vllm:{name} As an engine counts it.")
            lines.append(f"# TYPE vllm:{name} {kind}")
            for end, labels, value in samples:
                both = f"{self._labels},{labels}" if labels else self._labels
                lines.append(f"vllm:{name}{end}{{{both}}} {float(value)}")

        say("gauge", "num_requests_running", ("", "", self.running))
        say("gauge", "num_requests_waiting", ("", "", self.waiting))
        say("gauge", "kv_cache_usage_perc", ("", "", min(1.0, self.running / 100)))
        for name in (
            "prompt_tokens",
            "generation_tokens",
            "prefix_cache_queries",
            "prefix_cache_hits",
            "num_preemptions",
        ):
            say("counter", name, ("_total", "", self.counts[name]))
        reasons = [
            ("_total", f'finished_reason="{reason}"', self.finished[reason])
            for reason in ("stop", "length", "abort", "error")
        ]
        say("counter", "request_success", *reasons)
        for name, histogram in self.histograms.items():
            seen, samples = 0, []
            edges = (*map(str, _BUCKETS), "+Inf")
            for edge, count in zip(edges, histogram.counts, strict=True):
                seen += count
                samples.append(("_bucket", f'le="{edge}"', float(seen)))
            samples += [("_count", "", float(seen)), ("_sum", "", histogram.total)]
            say("histogram", name, *samples)
        return "\n".join(lines) + "\n"


class PrefixCache:
    """Which blocks of prompts were seen; the oldest are forgotten past a bound."""

    def __init__(self) -> None:
        self._blocks: dict[int, None] = {}

    def take(self, blocks: tuple[int, ...]) -> int:
        """How many leading blocks were known; all of them are, from now on."""
        known = 0
        while known < len(blocks) and blocks[known] in self._blocks:
            known += 1
        self._blocks.update(dict.fromkeys(blocks))
        while len(self._blocks) > _MAX_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        return known
