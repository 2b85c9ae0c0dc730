"""What the router counts and times, for Prometheus. Base units, names under ``baton_``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


class RouterMetrics:
    """All metrics of one router process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "baton_requests",
            "Requests by endpoint, path taken, reason and status sent.",
            ["endpoint", "path", "reason", "status"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "baton_requests_in_flight", "Requests being served.", registry=self.registry
        )
        self.ttft = Histogram(
            "baton_time_to_first_content_seconds",
            "From the request's last byte to the first content sent on; streams only.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "baton_request_duration_seconds",
            "From the request's last byte to the answer's last byte.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prefill_leg = Histogram(
            "baton_prefill_leg_seconds",
            "First leg of a handoff: queue and prefill.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.counting = Histogram(
            "baton_token_count_seconds",
            "Time to know a prompt's length well enough to classify it, by how it was known.",
            ["by"],
            buckets=(0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5),
            registry=self.registry,
        )
        self.prompt_tokens = Histogram(
            "baton_prompt_tokens",
            "Prompt length where it was counted.",
            buckets=_TOKENS,
            registry=self.registry,
        )
        self.handoffs = Counter(
            "baton_handoffs",
            "Handoffs by the state they ended in.",
            ["state"],
            registry=self.registry,
        )
        self.handoffs_open = Gauge(
            "baton_handoffs_open", "Handoffs in progress.", registry=self.registry
        )
        self.stranded_bytes = Gauge(
            "baton_handoff_stranded_bytes",
            "KV bytes that prefill may hold for handoffs that ended early, until their lease ends.",
            registry=self.registry,
        )
        self.kv_bytes = Counter(
            "baton_handoff_kv_bytes",
            "KV bytes offered by prefill, in whole blocks, by the KV geometry.",
            registry=self.registry,
        )
        self.leg_failures = Counter(
            "baton_leg_failures",
            "Legs that failed before the client had its first content.",
            ["leg", "code"],
            registry=self.registry,
        )
        self.workers = Gauge(
            "baton_workers",
            "Registered workers by role and state.",
            ["role", "state"],
            registry=self.registry,
        )
