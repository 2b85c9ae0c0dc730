"""Whether a run can be believed: pure judgements over its records and the client's health.

Thresholds, and why:

- ``client_lagged``: the p99 of the requests' lag, or of the event loop's stalls, over 10 ms and
  over 5 % of the median TTFT (25 % of the median gap between chunks for stalls). Ten milliseconds
  is what a busy machine's scheduler takes now and then; beyond it the client must at least be small
  against what it measures. Where fewer than three requests were late (the p99 of a hundred hangs
  on one) lag is noted and not fatal.
- ``rate_not_reached``: under 98 % of the planned requests were sent. Fatal: another load was
  measured than the one that is named.
- ``errors``: over 1 % is fatal: an SLO at 99 % cannot be judged, and failed requests leave the
  server more room for the others.
- ``output_length``: over 1 % of the answers are not as long as they were forced to be; times and
  rates of different lengths do not compare.
- ``warm_cache``: the servers took more than 5 % of all prompt tokens from their prefix cache that
  the plan does not explain; 64 tokens per request are put down to chat templates.
- ``too_few``: nothing was answered (fatal), or under 20 requests, which do not carry a median.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.load.health import lag_of, percentile
from benchmarks.plan import Plan, PlannedRequest
from benchmarks.records import ClientHealth, Problem, RequestRecord

LAG_FLOOR_S = 0.010
LAG_SHARE = 0.05
LATE_LEAST = 3
STALL_SHARE = 0.25
REACHED_SHARE = 0.98
ERROR_SHARE = 0.01
LENGTH_SHARE = 0.01
WARM_SHARE = 0.05
TEMPLATE_TOKENS = 64
FEW = 20
BUSY_SHARE = 0.85


def find_problems(
    records: Sequence[RequestRecord],
    health: ClientHealth,
    plan: Plan,
    *,
    force_output: bool = True,
    complete: bool = True,
) -> list[Problem]:
    """Everything that speaks against a run, the fatal things first.

    Args:
        records: all that was sent.
        health: of the client.
        plan: what was to be sent, whole.
        force_output: whether answers were forced to their planned length.
        complete: False if it was interrupted; rate and number are then not judged.
    """
    found = [
        *_lagged(records, health),
        *_errors(records),
        *_lengths(records, force_output),
        *_warm(records, plan),
        *_usage(records),
    ]
    if complete:
        found += [*_rate(records, plan), *_few(records)]
    else:
        text = f"The run was interrupted; {len(records)} requests are recorded."
        found.append(Problem("interrupted", text))
    return sorted(found, key=lambda problem: not problem.fatal)


def expected_cached_tokens(
    plan: Plan, records: Sequence[RequestRecord]
) -> Mapping[tuple[str | None, int], int]:
    """How many prompt tokens of each request an earlier one of the run began with, as planned: by
    lane and index. Earlier turns of a conversation count with their answers."""
    planned: dict[tuple[str | None, int], PlannedRequest] = {
        (None, request.index): request for request in plan.requests
    }
    lanes = {lane.name: lane for lane in plan.lanes}
    seen: set[int] = set()
    longest: dict[int, dict[str, int]] = defaultdict(dict)
    told: Counter[str] = Counter()
    found: dict[tuple[str | None, int], int] = {}
    for record in sorted(records, key=lambda r: (r.sent_s is None, r.sent_s, r.scheduled_s)):
        key = (record.lane, record.index)
        request = planned.get(key)
        if request is None and record.lane in lanes:
            request = lanes[record.lane].draw(record.index)
        if request is None:
            continue
        shared = _shared(request, seen, longest)
        if record.session is not None:
            if record.turn > 0:
                shared = told[record.session]
            elif record.lane is not None:
                told[record.session] = 0
            answered = record.output_tokens or record.planned_output_tokens or 0
            if record.error is None:
                told[record.session] += request.prompt_tokens + answered
        found[key] = shared
    return found


def planned_shared_share(plan: Plan, records: Sequence[RequestRecord]) -> float:
    """Tokens that the plan shares with earlier prompts and answers, as a share of all prompt
    tokens."""
    expected = expected_cached_tokens(plan, records)
    total = sum(r.prompt_tokens or r.planned_prompt_tokens for r in records)
    return min(1.0, sum(expected.values()) / total) if total else 0.0


def _shared(
    request: PlannedRequest,
    seen: set[int],
    longest: dict[int, dict[str, int]],
) -> int:
    """Tokens of the front that were sent before; notes this prompt as sent. Equal keys mean equal
    text, so the shorter of two pieces is shared whole."""
    shared, matching = 0, True
    front = 0
    for piece in request.pieces:
        before = longest[front].get(piece.key, 0)
        if matching:
            shared += min(before, piece.tokens)
        longest[front][piece.key] = max(before, piece.tokens)
        front = hash((front, piece.key, piece.tokens))
        matching = matching and front in seen
        seen.add(front)
    return shared


def _lagged(records: Sequence[RequestRecord], health: ClientHealth) -> Iterable[Problem]:
    sound = [r for r in records if r.error is None and r.sent_s is not None]
    first = sorted(
        at - (r.sent_s or 0.0) for r in sound if (at := r.first_content_s or r.end_s) is not None
    )
    gaps = sorted(
        (r.last_content_s - r.first_content_s) / (r.chunks - 1)
        for r in sound
        if r.chunks > 1 and r.last_content_s is not None and r.first_content_s is not None
    )
    lag_limit_s = max(LAG_FLOOR_S, LAG_SHARE * percentile(first, 0.5))
    stall_limit_s = max(LAG_FLOOR_S, STALL_SHARE * percentile(gaps, 0.5))
    advice = "Use more processes, or another machine than the servers'."
    if health.lag_p99_s > lag_limit_s:
        late = sum(1 for r in records if (lag_of(r) or 0.0) > lag_limit_s)
        yield Problem(
            "client_lagged",
            f"Requests left {health.lag_p99_s * 1e3:.0f} ms late (p99; at most "
            f"{health.lag_max_s * 1e3:.0f} ms), more than {lag_limit_s * 1e3:.0f} ms: the load "
            f"generator was the bottleneck. {advice}",
            fatal=late >= LATE_LEAST,
        )
    if health.stall_p99_s > stall_limit_s:
        yield Problem(
            "client_lagged",
            f"The load generator's event loop stood still for {health.stall_p99_s * 1e3:.0f} ms "
            f"(p99), more than {stall_limit_s * 1e3:.0f} ms, and read answers late. {advice}",
            # In a run of a second or less the p99 is a single stall.
            fatal=health.stall_p99_s < health.stall_max_s,
        )
    if health.cpu_share > BUSY_SHARE:
        yield Problem(
            "client_lagged",
            f"A process of the load generator used {health.cpu_share:.0%} of a core. {advice}",
            fatal=False,
        )


def _errors(records: Sequence[RequestRecord]) -> Iterable[Problem]:
    failed = [r for r in records if r.error is not None and r.error != "cancelled"]
    if not failed:
        return
    share = len(failed) / len(records)
    kinds = Counter(r.error for r in failed).most_common(3)
    words = ", ".join(f"{kind} {count} times" for kind, count in kinds)
    detail = next((f" ({r.detail})" for r in failed if r.detail), "")
    yield Problem(
        "errors",
        f"{len(failed)} of {len(records)} requests failed ({share:.1%}): {words}{detail}.",
        fatal=share > ERROR_SHARE,
    )


def _lengths(records: Sequence[RequestRecord], force_output: bool) -> Iterable[Problem]:
    if not force_output:
        return
    known = [
        (r.output_tokens, r.planned_output_tokens)
        for r in records
        if r.error is None and r.output_tokens is not None and r.planned_output_tokens is not None
    ]
    wrong = [(got, planned) for got, planned in known if got != planned]
    if wrong and len(wrong) / len(known) > LENGTH_SHARE:
        got, planned = wrong[0]
        yield Problem(
            "output_length",
            f"{len(wrong)} of {len(known)} answers are not as long as asked, such as {got} tokens "
            f"instead of {planned}: the server does not honour min_tokens and ignore_eos, or its "
            "context is too short.",
        )


def _warm(records: Sequence[RequestRecord], plan: Plan) -> Iterable[Problem]:
    said = [r for r in records if r.cached_tokens is not None and r.prompt_tokens]
    if not said:
        return
    expected = expected_cached_tokens(plan, records)
    total = sum(r.prompt_tokens or 0 for r in said)
    extra = sum(
        max(0, (r.cached_tokens or 0) - expected.get((r.lane, r.index), 0) - TEMPLATE_TOKENS)
        for r in said
    )
    if extra / total > WARM_SHARE:
        cached = sum(r.cached_tokens or 0 for r in said)
        yield Problem(
            "warm_cache",
            f"{cached / total:.0%} of the prompt tokens came from the prefix cache, "
            f"{extra / total:.0%} more than the plan's shared text explains: prompts were sent "
            "before. Use another salt, or restart the servers.",
        )


def _usage(records: Sequence[RequestRecord]) -> Iterable[Problem]:
    sound = [r for r in records if r.error is None]
    silent = sum(1 for r in sound if r.output_tokens is None)
    if silent > 0.01 * len(sound):
        yield Problem(
            "no_usage",
            f"{silent} of {len(sound)} answers say nothing of their tokens: TPOT and token rates "
            "leave them out.",
            fatal=False,
        )


def _rate(records: Sequence[RequestRecord], plan: Plan) -> Iterable[Problem]:
    planned = sum(1 for request in plan.requests if request.after is None)
    if not planned:
        return
    sent = sum(1 for r in records if r.lane is None and r.turn == 0 and r.error != "client_limit")
    if sent / planned < REACHED_SHARE:
        yield Problem(
            "rate_not_reached",
            f"{sent} of {planned} planned requests were sent ({sent / planned:.0%}): the load "
            "generator could not keep up. Use more processes, or a lower rate.",
        )


def _few(records: Sequence[RequestRecord]) -> Iterable[Problem]:
    sound = sum(1 for r in records if r.error is None)
    if sound == 0:
        yield Problem("too_few", f"None of {len(records)} requests was answered.")
    elif sound < FEW:
        yield Problem(
            "too_few",
            f"Only {sound} requests were answered; no percentile rests on so few. Run longer.",
            fatal=False,
        )
