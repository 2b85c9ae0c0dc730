"""Every metric of the router, in one table: names, labels, buckets, what a number means.

``docs/metrics.md`` is written from it (``python -m router.observe.docs``), and a test holds the
dashboard and the alert rules against it. Names are an interface: dashboards of other people break
when one changes. Base units (seconds, bytes, tokens), prefix ``baton_``.

Buckets are chosen per quantity, so that the values an operator cares about lie inside.
"""

from __future__ import annotations

from router.observe.hot import Family, Kind, Merge

_TTFT_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0),
)
_DURATION_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_QUEUE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LEG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_COUNTING_S = (0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5)
_TPOT_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
ITL_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5),
)
"""Also the bounds of ``ItlRecorder``."""
_PROMPT_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)
_UNCACHED_TOKENS = (0, *_PROMPT_TOKENS)
_OUTPUT_TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_ERROR_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_ATTEMPTS = (1, 2, 3, 4, 6)

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM


def _open(*names: str) -> frozenset[str]:
    return frozenset(names)


# --- requests ---

REQUESTS = Family(
    "baton_requests_total",
    _C,
    "Requests by endpoint, path taken, reason and status sent; 499 is a client that left.",
    ("endpoint", "path", "reason", "status", "profile_version"),
    open_labels=_open("reason", "profile_version"),
)
DURATION = Family(
    "baton_request_duration_seconds",
    _H,
    "From the request's last byte to the answer's last byte.",
    ("endpoint", "path", "profile_version"),
    open_labels=_open("profile_version"),
    buckets=_DURATION_S,
)
IN_FLIGHT = Family("baton_requests_in_flight", _G, "Requests being served.")
ATTEMPTS = Family(
    "baton_attempts",
    _H,
    "Attempts that a request took; 1 is one that went well at once.",
    buckets=_ATTEMPTS,
)

# --- latency ---

TTFT = Family(
    "baton_time_to_first_content_seconds",
    _H,
    "From the request's last byte to the first content sent on; streams only.",
    ("path", "profile_version"),
    open_labels=_open("profile_version"),
    buckets=_TTFT_S,
)
ITL = Family(
    "baton_inter_token_seconds",
    _H,
    "Gap between two content events of a stream as they are passed on (inter-token latency).",
    ("path", "profile_version"),
    open_labels=_open("profile_version"),
    buckets=ITL_BOUNDS_S,
)
TPOT = Family(
    "baton_time_per_output_token_seconds",
    _H,
    "Of a stream with two tokens or more: first to last content, divided by the tokens after the"
    " first.",
    ("path", "profile_version"),
    open_labels=_open("profile_version"),
    buckets=_TPOT_S,
)
QUEUE = Family(
    "baton_queue_seconds",
    _H,
    "Time that an admitted request waited in the router, by priority band.",
    ("band",),
    open_labels=_open("band"),
    buckets=_QUEUE_S,
)
PREFILL_LEG = Family(
    "baton_prefill_leg_seconds",
    _H,
    "First leg of a handoff, sent to answered: the prefill worker's queue and its prefill.",
    buckets=_LEG_S,
)
DECODE_FIRST = Family(
    "baton_decode_first_content_seconds",
    _H,
    "From the decode leg's sending to its first content: queue, transfer of the KV cache and first"
    " step on the disaggregated path; queue, prefill and first step on the local one.",
    ("path",),
    buckets=_LEG_S,
)
COUNTING = Family(
    "baton_token_count_seconds",
    _H,
    "Time to know a prompt's length well enough to classify it, by how it was known.",
    ("by",),
    buckets=_COUNTING_S,
)

# --- tokens ---

PROMPT_TOKENS = Family(
    "baton_prompt_tokens", _H, "Prompt length where it was counted.", buckets=_PROMPT_TOKENS
)
UNCACHED_TOKENS = Family(
    "baton_uncached_prompt_tokens",
    _H,
    "Prompt tokens that the chosen decode worker did not hold, as the router estimated.",
    buckets=_UNCACHED_TOKENS,
)
OUTPUT_TOKENS = Family(
    "baton_output_tokens", _H, "Tokens of an answer, from its usage.", buckets=_OUTPUT_TOKENS
)

# --- decisions ---

DECISIONS = Family(
    "baton_decisions_total",
    _C,
    "Decisions between local and disaggregated, by decider and reason.",
    ("decider", "reason", "profile_version"),
    open_labels=_open("decider", "reason", "profile_version"),
)
PREDICTION_ERROR = Family(
    "baton_predicted_ttft_error_ratio",
    _H,
    "How far the predicted time to first content was off, as a share of the measured one: 0.1 is"
    " ten per cent; side says whether the prediction was over or under.",
    ("path", "side"),
    buckets=_ERROR_SHARES,
)

# --- handoffs ---

HANDOFFS = Family("baton_handoffs_total", _C, "Handoffs by the state they ended in.", ("state",))
HANDOFFS_OPEN = Family("baton_handoffs_open", _G, "Handoffs in progress.")
STRANDED_BYTES = Family(
    "baton_handoff_stranded_bytes",
    _G,
    "KV bytes that a prefill worker may hold for handoffs that ended early, until they are"
    " reclaimed or their lease ends.",
    ("worker",),
    open_labels=_open("worker"),
)
KV_BYTES = Family(
    "baton_handoff_kv_bytes_total",
    _C,
    "KV bytes offered by prefill, in whole blocks, by the KV geometry.",
)
RECLAIMED = Family(
    "baton_handoffs_reclaimed_total",
    _C,
    "Stranded handoffs whose blocks are free again; how is released or lease.",
    ("how",),
)

# --- pairs ---

PAIR_STATE = Family(
    "baton_pair_state",
    _G,
    "1 for the state that a pair of a prefill and a decode worker is in.",
    ("prefill", "decode", "state"),
    open_labels=_open("prefill", "decode"),
    most_series=1024,
    merge=Merge.MAX,
)
PAIR_BANDWIDTH = Family(
    "baton_pair_bandwidth_bytes_per_second",
    _G,
    "Measured bandwidth of a pair, where it has been measured.",
    ("prefill", "decode"),
    open_labels=_open("prefill", "decode"),
    most_series=1024,
    merge=Merge.MAX,
)
CANARY = Family(
    "baton_canary_total",
    _C,
    "Finished handoffs computed again locally and compared; result is ok, mismatched or unknown.",
    ("result",),
)

# --- failure ---

BREAKER_STATE = Family(
    "baton_breaker_state",
    _G,
    "1 for the state that a worker's circuit breaker is in.",
    ("worker", "state"),
    open_labels=_open("worker"),
    most_series=2048,
    merge=Merge.MAX,
)
LEG_FAILURES = Family(
    "baton_leg_failures_total",
    _C,
    "Legs that failed before the client had its first content.",
    ("leg", "code"),
    open_labels=_open("code"),
)

# --- flow and tenants ---

QUEUE_DEPTH = Family(
    "baton_queue_depth",
    _G,
    "Requests waiting in the router, by priority band.",
    ("band",),
    open_labels=_open("band"),
)
SHED = Family(
    "baton_shed_total",
    _C,
    "Requests turned away or dropped from the queue, by reason.",
    ("reason",),
)
TENANT_REQUESTS = Family(
    "baton_tenant_requests_total",
    _C,
    "Requests by tenant and outcome.",
    ("tenant", "outcome"),
    open_labels=_open("tenant"),
)
TENANT_TOKENS = Family(
    "baton_tenant_tokens_total",
    _C,
    "Tokens by tenant; kind is prompt or output.",
    ("tenant", "kind"),
    open_labels=_open("tenant"),
)

# --- the fleet and the process ---

WORKERS = Family(
    "baton_workers",
    _G,
    "Registered workers by role and state.",
    ("role", "state"),
    merge=Merge.MAX,
)
PROFILE_INFO = Family(
    "baton_profile_info",
    _G,
    "1, with name and version of the active profile, and of one that a canary tries.",
    ("name", "version", "state"),
    merge=Merge.MAX,
)
SWITCHES = Family(
    "baton_profile_switches_total",
    _C,
    "Switches of the profile that this router has seen end; outcome is committed, rolled_back or"
    " refused.",
    ("outcome",),
    merge=Merge.MAX,
)
SWITCH_PHASE = Family(
    "baton_profile_switch_phase",
    _G,
    "1 for the phase that a switch of the profile is in: prepare, shadow or canary.",
    ("phase",),
    merge=Merge.MAX,
)
PROFILE_PROBLEMS = Family(
    "baton_profile_source_problems",
    _G,
    "Profiles, or other parts of their source, that are refused now; /admin/profiles says why.",
    merge=Merge.MAX,
)
TURNING = Family(
    "baton_workers_turning",
    _G,
    "Workers that change between prefilling and answering and end their old work.",
    merge=Merge.MAX,
)
ROUTERS = Family(
    "baton_routers",
    _G,
    "Router processes that share the store, this one included.",
    merge=Merge.MAX,
)
STORE_LOST = Family(
    "baton_store_lost",
    _G,
    "1 while the state store does not answer and the router goes on with what it read last.",
    merge=Merge.MAX,
)
BUILD_INFO = Family(
    "baton_build_info", _G, "1, with the router's version.", ("version",), merge=Merge.MAX
)
LOOP_LAG = Family(
    "baton_event_loop_lag_seconds",
    _G,
    "Longest time by which the event loop was late for a timer in the last 15 to 30 seconds.",
    merge=Merge.MAX,
)
OVERFLOW = Family(
    "baton_label_overflow_total",
    _C,
    "Updates counted under the label value other, and scrapes cut short, because a metric has as"
    " many series as it may.",
    ("metric",),
)

ALL: tuple[Family, ...] = (
    *(REQUESTS, DURATION, IN_FLIGHT, ATTEMPTS),
    *(TTFT, ITL, TPOT, QUEUE, PREFILL_LEG, DECODE_FIRST, COUNTING),
    *(PROMPT_TOKENS, UNCACHED_TOKENS, OUTPUT_TOKENS),
    *(DECISIONS, PREDICTION_ERROR),
    *(HANDOFFS, HANDOFFS_OPEN, STRANDED_BYTES, KV_BYTES, RECLAIMED),
    *(PAIR_STATE, PAIR_BANDWIDTH, CANARY),
    *(BREAKER_STATE, LEG_FAILURES),
    *(QUEUE_DEPTH, SHED, TENANT_REQUESTS, TENANT_TOKENS),
    *(WORKERS, TURNING, PROFILE_INFO, SWITCHES, SWITCH_PHASE, PROFILE_PROBLEMS),
    *(ROUTERS, STORE_LOST, BUILD_INFO, LOOP_LAG, OVERFLOW),
)
"""In the order of the documentation and of the page."""

BY_NAME = {family.name: family for family in ALL}
