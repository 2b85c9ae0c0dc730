"""Looks at servers, made by hand: what a prefill, a decode and a router page would have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.records import RequestRecord, Run, RunMeta, Scrape

MODEL = 'engine="0",model_name="m"'


def vllm(name: str, labels: str = "") -> str:
    """The full name of an engine's sample."""
    return f"vllm:{name}{{{MODEL}{',' + labels if labels else ''}}}"


def histogram(name: str, count: float, mean: float) -> dict[str, float]:
    """Count and sum of an engine's histogram."""
    return {vllm(f"{name}_count"): count, vllm(f"{name}_sum"): count * mean}


def engine(
    requests: float = 0,
    *,
    prompt: float = 0,
    answer: float = 0,
    queue_s: float = 0.0,
    prefill_s: float = 0.0,
    ttft_s: float = 0.0,
    step_s: float = 0.01,
    hits: float = 0,
    more: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """A page of an engine that finished ``requests`` of ``prompt`` and ``answer`` tokens each."""
    return {
        vllm("request_success_total", 'finished_reason="length"'): requests,
        vllm("request_success_total", 'finished_reason="stop"'): 0.0,
        vllm("request_success_total", 'finished_reason="abort"'): 0.0,
        vllm("prompt_tokens_total"): requests * prompt,
        vllm("generation_tokens_total"): requests * answer,
        vllm("prefix_cache_queries_total"): requests * prompt,
        vllm("prefix_cache_hits_total"): hits,
        vllm("num_requests_running"): 0.0,
        **histogram("request_queue_time_seconds", requests, queue_s),
        **histogram("request_prefill_time_seconds", requests, prefill_s),
        **histogram("time_to_first_token_seconds", requests, ttft_s),
        **histogram("inter_token_latency_seconds", requests * max(0, answer - 1), step_s),
        **(more or {}),
    }


def router(requests: float = 0, *, ttft_s: float = 0.0, failed: float = 0) -> dict[str, float]:
    """A page of a router that answered ``requests`` streams."""
    labels = 'endpoint="/v1/completions",path="local",reason="short_prompt"'
    found = {
        'baton_time_to_first_content_seconds_count{path="local"}': requests,
        'baton_time_to_first_content_seconds_sum{path="local"}': requests * ttft_s,
        "baton_requests_in_flight": 0.0,
    }
    if requests:
        found[f'baton_requests_total{{{labels},status="200"}}'] = requests
    if failed:
        found[f'baton_requests_total{{{labels},status="503"}}'] = failed
    return found


def looks(source: str, role: str, *pages: dict[str, float], every_s: float = 1.0) -> list[Scrape]:
    """One look per page."""
    return [
        Scrape(at_s=number * every_s, source=source, role=role, values=page)
        for number, page in enumerate(pages)
    ]


def before_after(source: str, role: str, after: dict[str, float]) -> list[Scrape]:
    """A server that had counted something before, and in the run what ``after`` says."""
    counted = ("_total", "_sum", "_count")
    before = {
        name: 1000.0 if name.partition("{")[0].endswith(counted) else value
        for name, value in after.items()
    }
    grown = {
        name: value + before[name] if name.partition("{")[0].endswith(counted) else value
        for name, value in after.items()
    }
    return looks(source, role, before, grown)


def records(
    count: int,
    *,
    prompt: int = 100,
    answer: int = 10,
    ttft_s: float = 0.1,
    path: str | None = None,
    reason: str | None = None,
) -> list[RequestRecord]:
    """Whole answers."""
    return [
        RequestRecord(
            index=index,
            class_name="all",
            scheduled_s=0.0,
            sent_s=0.0,
            first_content_s=ttft_s,
            last_content_s=ttft_s + 1,
            end_s=ttft_s + 1,
            status=200,
            prompt_tokens=prompt,
            output_tokens=answer,
            path=path,
            reason=reason,
        )
        for index in range(count)
    ]


def failed(count: int, error: str = "timeout") -> list[RequestRecord]:
    """Requests that were sent and not answered."""
    return [
        RequestRecord(
            index=1000 + index,
            class_name="all",
            scheduled_s=0.0,
            sent_s=0.0,
            end_s=9.0,
            error=error,
        )
        for index in range(count)
    ]


def together(*parts: Sequence[Scrape]) -> list[Scrape]:
    """All looks of several servers."""
    return [scrape for part in parts for scrape in part]


def run(client: Sequence[RequestRecord], *parts: Sequence[Scrape]) -> Run:
    """A run of these records and looks."""
    meta = RunMeta(
        id="r",
        started_wall_s=0.0,
        duration_s=10.0,
        ended_s=10.0,
        complete=True,
        salt="s",
        plan={},
        target={},
    )
    return Run(meta=meta, records=list(client), scrapes=together(*parts))
