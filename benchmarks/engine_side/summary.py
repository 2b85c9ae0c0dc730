"""What the servers' own counters say of a run: where the time went, and what each worker did.

Pure. How vLLM 0.32.0 counts, which everything here rests on:

- A plain request on one engine: ``prompt_tokens`` by the prompt, ``generation_tokens`` by the
  answer, ``request_success`` by one, one observation in each request histogram.
- A handed-over request is a whole request on each side. Prefill counts the prompt, one
  generated token (its ``max_tokens`` is 1, and decode generates that token again) and one success
  of reason ``length``. Decode counts the prompt again, the whole answer and one success. So the
  client's figures are those of the decode and standard workers, and prefill's come on top.
- On decode the blocks that came over NIXL are hits of ``external_prefix_cache``, counted in tokens;
  ``prefix_cache`` has local blocks only. Both are looked up once per request, when it is admitted;
  lookups after a preemption are not counted.
- ``request_queue_time`` ends when a request first computes. On decode it therefore contains the
  transfer, and ``request_prefill_time`` is the one step that computes the last prompt token.
- The four request times are observed when a request finishes well or not, but not when it is
  aborted. ``time_to_first_token`` begins when the engine's API server has the tokens.
- ``nixl_xfer_time`` and ``nixl_bytes_transferred`` are counted by the side that pulls, once per
  rank of tensor parallelism and transfer.
- A transfer's figures reach the page with a later step of the engine, so the last one of a run may
  be missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.engine_side.changes import ROUTER, Changes, changes
from benchmarks.records import Problem, Run, Scrape

_ROUTER_TTFT = "baton_time_to_first_content_seconds"
_ANSWERING = ("decode", "standard")
_SLACK_SHARE = 0.02
"""Of the prompt tokens; text that a tokenizer joins across the pieces of a plan."""
_TEMPLATE_TOKENS = 64
"""Per request; what a chat template puts in front of every prompt, the same each time."""

_MEANS = ("_s", "_share")


def answering(servers: Iterable[Changes]) -> list[Changes]:
    """Those whose answers clients get: decode and standard workers."""
    return [server for server in servers if server.role in _ANSWERING]


def prefilling(servers: Iterable[Changes]) -> list[Changes]:
    """The prefill workers."""
    return [server for server in servers if server.role == "prefill"]


def total(servers: Iterable[Changes], name: str) -> float:
    """Growth of a counter over several servers."""
    return sum(server.growth(name) for server in servers)


def stages(runs: Iterable[Run]) -> dict[str, float]:
    """Mean seconds of the stages up to the first token, over all requests of ``runs`` that were
    finished.

    Keys, in order: ``queue``, ``prefill``, ``transfer``, ``first_decode`` and, behind a router
    that streamed, ``router`` (the rest of its time to the first content: connections, HTTP,
    tokenizing, its own work). Empty if no engine was seen. Requests that skip a stage count as
    zero there, so that the stages add up.

    A decode worker that also takes whole prompts has one histogram for both kinds of first step.
    The handed-over share of it is estimated: as many mean decode steps as there were handoffs.
    """
    servers = [server for run in runs for server in changes(run.scrapes)]
    front, back = answering(servers), prefilling(servers)
    count = total(front, "vllm:request_queue_time_seconds_count")
    if count <= 0:
        return {}
    pulled_s = sum(_transfer_s(server) for server in front)
    queue_s = total(front, "vllm:request_queue_time_seconds_sum") - pulled_s
    queue_s = max(0.0, queue_s) + total(back, "vllm:request_queue_time_seconds_sum")
    first_s = sum(_first_decode_s(server, _handed_share(server)) for server in front)
    prefill_s = total((*front, *back), "vllm:request_prefill_time_seconds_sum") - first_s
    found = {
        "queue": queue_s / count,
        "prefill": max(0.0, prefill_s) / count,
        "transfer": pulled_s / count,
        "first_decode": first_s / count,
    }
    routers = [server for server in servers if server.role == ROUTER]
    streams = total(routers, f"{_ROUTER_TTFT}_count")
    if streams > 0:
        ttft_s = total(routers, f"{_ROUTER_TTFT}_sum") / streams
        found["router"] = max(0.0, ttft_s - sum(found.values()))
    return found


def _transfer_s(server: Changes) -> float:
    """Seconds in which requests waited for transfers: ranks transfer at the same time."""
    mean_s = server.mean("vllm:nixl_xfer_time_seconds")
    return 0.0 if mean_s is None else mean_s * _handed_over(server)


def _handed_over(server: Changes) -> float:
    """Requests whose prompt came from elsewhere: transfers by ranks, at most all requests.

    Ranks are not on the page. Where each request had a transfer and there are more, that is why.
    """
    finished = server.growth("vllm:request_queue_time_seconds_count")
    return min(server.growth("vllm:nixl_xfer_time_seconds_count"), finished)


def _handed_share(server: Changes) -> float:
    finished = server.growth("vllm:request_queue_time_seconds_count")
    return _handed_over(server) / finished if finished > 0 else 0.0


def _first_decode_s(server: Changes, share: float) -> float:
    whole_s = server.growth("vllm:request_prefill_time_seconds_sum")
    if share >= 1.0 or share <= 0.0:
        return whole_s * share
    step_s = server.mean("vllm:inter_token_latency_seconds") or 0.0
    return min(whole_s, step_s * _handed_over(server))


def server_figures(scrapes: Iterable[Scrape]) -> dict[str, dict[str, float]]:
    """What each server did in the run, by ``router`` or worker id; only what its page tells.

    Engines: ``requests``, ``prompt_tokens``, ``computed_prompt_tokens``, ``generation_tokens``,
    ``preemptions``, ``running_max``, ``waiting_max``, ``kv_usage_max`` (share),
    ``prefix_hit_share`` and ``external_hit_share`` (of the tokens looked up), means ``queue_s``,
    ``prefill_s``, ``ttft_s``, ``step_s``, ``e2e_s``, and where NIXL moved anything
    ``nixl_transfers``, ``nixl_bytes``, ``nixl_s`` (sum), ``nixl_bytes_per_s`` (within a
    transfer), ``nixl_failures``, ``nixl_expired``, ``nixl_late`` (told after the lease had
    ended). Router: ``requests``, ``failed`` (5xx), ``in_flight_max``, ``handoffs``,
    ``kv_bytes``, means ``ttft_s``, ``e2e_s``, ``prefill_leg_s``, ``count_s``.
    """
    found = {}
    for server in changes(scrapes):
        figures = _router(server) if server.role == ROUTER else _engine(server)
        found[server.source] = {key: value for key, value in figures.items() if value is not None}
    return found


def combined_figures(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """``server_figures`` of several runs of the same servers, put together: counts are summed,
    peaks are the highest, means and shares are weighted by the requests of their run."""
    found: dict[str, dict[str, float]] = {}
    weights: dict[tuple[str, str], float] = {}
    for run in runs:
        for source, figures in server_figures(run.scrapes).items():
            mine = found.setdefault(source, {})
            requests = figures.get("requests", 0.0)
            for key, value in figures.items():
                if key.endswith("_max"):
                    mine[key] = max(mine.get(key, value), value)
                elif key.endswith(_MEANS) and key != "nixl_s":
                    before = weights.get((source, key), 0.0)
                    weights[source, key] = before + requests
                    if requests > 0:
                        mean = mine.get(key, 0.0) * before + value * requests
                        mine[key] = mean / (before + requests)
                else:
                    mine[key] = mine.get(key, 0.0) + value
    return found


def _router(server: Changes) -> dict[str, float | None]:
    errors = [str(status) for status in range(500, 600)]
    return {
        "requests": server.growth("baton_requests_total"),
        "failed": server.growth("baton_requests_total", status=errors),
        "in_flight_max": server.peak("baton_requests_in_flight"),
        "handoffs": server.growth("baton_handoffs_total"),
        "kv_bytes": server.growth("baton_handoff_kv_bytes_total"),
        "ttft_s": server.mean(_ROUTER_TTFT),
        "e2e_s": server.mean("baton_request_duration_seconds"),
        "prefill_leg_s": server.mean("baton_prefill_leg_seconds"),
        "count_s": server.mean("baton_token_count_seconds"),
    }


def _engine(server: Changes) -> dict[str, float | None]:
    computed = "vllm:prompt_tokens_by_source_total"
    figures: dict[str, float | None] = {
        "requests": _growth(server, "vllm:request_success_total"),
        "prompt_tokens": _growth(server, "vllm:prompt_tokens_total"),
        "computed_prompt_tokens": server.growth(computed, source="local_compute")
        if server.has(computed)
        else None,
        "generation_tokens": _growth(server, "vllm:generation_tokens_total"),
        "preemptions": _growth(server, "vllm:num_preemptions_total"),
        "running_max": server.peak("vllm:num_requests_running"),
        "waiting_max": server.peak("vllm:num_requests_waiting"),
        "kv_usage_max": server.peak("vllm:kv_cache_usage_perc"),
        "prefix_hit_share": _share(server, "vllm:prefix_cache"),
        "external_hit_share": _share(server, "vllm:external_prefix_cache"),
        "queue_s": server.mean("vllm:request_queue_time_seconds"),
        "prefill_s": server.mean("vllm:request_prefill_time_seconds"),
        "ttft_s": server.mean("vllm:time_to_first_token_seconds"),
        "step_s": server.mean("vllm:inter_token_latency_seconds"),
        "e2e_s": server.mean("vllm:e2e_request_latency_seconds"),
    }
    if figures["requests"] is not None:
        figures["requests"] = server.requests
    return {**figures, **_nixl(server)}


def _nixl(server: Changes) -> dict[str, float | None]:
    figures: dict[str, float | None] = {
        "nixl_failures": _growth(server, "vllm:nixl_num_failed_transfers_total"),
        "nixl_expired": _growth(server, "vllm:nixl_num_kv_expired_reqs_total"),
        "nixl_late": _growth(server, "vllm:nixl_num_notifications_after_expiry_total"),
    }
    transfers = server.growth("vllm:nixl_xfer_time_seconds_count")
    if transfers > 0:
        moved = server.growth("vllm:nixl_bytes_transferred_sum")
        took_s = server.growth("vllm:nixl_xfer_time_seconds_sum")
        figures["nixl_transfers"] = transfers
        figures["nixl_bytes"] = moved
        figures["nixl_s"] = took_s
        figures["nixl_bytes_per_s"] = moved / took_s if took_s > 0 else None
    return figures


def _growth(server: Changes, name: str) -> float | None:
    return server.growth(name) if server.has(name) else None


def _share(server: Changes, cache: str) -> float | None:
    asked = server.growth(f"{cache}_queries_total")
    return server.growth(f"{cache}_hits_total") / asked if asked > 0 else None


def warm_cache(
    scrapes: Iterable[Scrape],
    planned_shared_share: float,
    *,
    template_tokens: int = _TEMPLATE_TOKENS,
) -> Problem | None:
    """Whether engines knew more of the prompts than the plan explains: a fatal problem, or None.

    Args:
        scrapes: of one run.
        planned_shared_share: tokens of prompts that the plan says an earlier prompt, or answer, of
            the same run began with, as a share of all prompt tokens.
        template_tokens: of each request that are put down to a chat template. Very short prompts
            are not judged by this.

    Every prompt is looked up once among the answering workers, so their queries are all prompt
    tokens. Hits of answering and of prefill workers are each held against that sum: a handed-over
    prompt is looked up on both sides, and workers may well divide the shared prompts unevenly.
    Blocks that came over NIXL are not among these hits. None as well if the cache is off, or no
    engine was seen.
    """
    servers = changes(scrapes)
    asked = total(answering(servers), "vllm:prefix_cache_queries_total")
    if asked <= 0:
        return None
    requests = total(answering(servers), "vllm:request_success_total")
    allowed = (planned_shared_share + _SLACK_SHARE) * asked + template_tokens * requests
    for group, where in ((answering(servers), "answering"), (prefilling(servers), "prefill")):
        hits = total(group, "vllm:prefix_cache_hits_total")
        if hits > allowed:
            return Problem(
                "warm_cache",
                f"{hits / asked:.1%} of the prompt tokens were in the prefix cache of {where} "
                f"workers, the plan explains {planned_shared_share:.1%}: prompts were sent before. "
                "Use another salt, or restart the engines.",
            )
    return None


def lost_handoffs(scrapes: Iterable[Scrape]) -> Problem | None:
    """A problem if KV transfers failed or were told of after their lease: text may be wrong, and
    times hold retries. Not fatal but for the latter."""
    servers = changes(scrapes)
    late = total(servers, "vllm:nixl_num_notifications_after_expiry_total")
    failed = total(servers, "vllm:nixl_num_failed_transfers_total")
    expired = total(servers, "vllm:nixl_num_kv_expired_reqs_total")
    if late > 0:
        return Problem(
            "kv_after_lease",
            f"{late:.0f} transfer(s) ended after their blocks' lease: those answers may rest on "
            "other requests' blocks. Give the profile a longer lease, or less load.",
        )
    if failed > 0 or expired > 0:
        return Problem(
            "kv_transfers_failed",
            f"{failed:.0f} KV transfer(s) failed and {expired:.0f} lease(s) ran out.",
            fatal=False,
        )
    return None
