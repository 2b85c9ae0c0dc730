"""Whether the client and the servers tell the same story of a run. Pure.

Two instruments that agree are better evidence than one that is precise. Each figure has its
allowance stated in its note; how the servers count is in ``summary``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.comparison import Agreement
from benchmarks.engine_side.changes import ROUTER, Changes, changes
from benchmarks.engine_side.summary import answering, prefilling, total
from benchmarks.records import RequestRecord, Run

_ROUTER_ROOM_S = 0.010
_ENGINE_ROOM_S = 0.050
_ROOM_SHARE = 0.10
_BELOW_S = 0.001
_BELOW_SHARE = 0.02


def agreements(arm: str, runs: Iterable[Run]) -> list[Agreement]:
    """Every figure that both sides saw, summed over ``runs``.

    Counts must be equal, apart from requests that failed for the client: how far a server got
    with those is not known, so they widen what is allowed by themselves. Times: the client's mean
    contains the server's and may exceed it by the allowance of the note. Figures that a side does
    not have are left out.
    """
    seen = [(run.records, changes(run.scrapes)) for run in runs]
    rows = [
        _completed(arm, seen),
        _tokens(arm, seen, "prompt tokens", "vllm:prompt_tokens_total", "prompt_tokens"),
        _tokens(arm, seen, "generated tokens", "vllm:generation_tokens_total", "output_tokens"),
        _engine_requests(arm, seen),
        _handoffs(arm, seen),
        _router_ttft(arm, seen),
        _engine_ttft(arm, seen),
    ]
    return [row for row in rows if row is not None]


_Pairs = Sequence[tuple[Sequence[RequestRecord], list[Changes]]]


def _answered(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    return [record for record in records if record.error is None and record.end_s is not None]


def _failed(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Sent, but not answered in full: a server may have counted them or not."""
    return [record for record in records if record.error is not None and record.sent_s is not None]


def _within(client: float, server: float, more: float) -> bool:
    return client <= server <= client + more


def _count_note(pairs: _Pairs) -> str:
    failed = sum(len(_failed(records)) for records, _ in pairs)
    return f"{failed} failed request(s) may be on the server's side too" if failed else ""


def _completed(arm: str, pairs: _Pairs) -> Agreement | None:
    routers = [server for _, servers in pairs for server in servers if server.role == ROUTER]
    if not routers:
        return None
    client = sum(len(_answered(records)) for records, _ in pairs)
    server = sum(router.growth("baton_requests_total", status="200") for router in routers)
    more = sum(len(_failed(records)) for records, _ in pairs)
    return Agreement(
        arm=arm,
        what="completed requests (router)",
        client=client,
        server=server,
        unit="requests",
        agrees=_within(client, server, more),
        note=_count_note(pairs),
    )


def _engine_requests(arm: str, pairs: _Pairs) -> Agreement | None:
    engines = [server for _, servers in pairs for server in answering(servers)]
    if not any(engine.has("vllm:request_success_total") for engine in engines):
        return None
    client = sum(len(_answered(records)) for records, _ in pairs)
    server = sum(engine.requests for engine in engines)
    more = sum(len(_failed(records)) for records, _ in pairs)
    return Agreement(
        arm=arm,
        what="completed requests (engines that answer)",
        client=client,
        server=server,
        unit="requests",
        agrees=_within(client, server, more),
        note=_count_note(pairs),
    )


def _tokens(arm: str, pairs: _Pairs, what: str, name: str, field: str) -> Agreement | None:
    engines = [server for _, servers in pairs for server in answering(servers)]
    counts = [getattr(record, field) for records, _ in pairs for record in _answered(records)]
    if not any(engine.has(name) for engine in engines) or None in counts or not counts:
        return None
    client, server = float(sum(counts)), total(engines, name)
    failed = [record for records, _ in pairs for record in _failed(records)]
    # A failed request has at most been prefilled and answered whole, twice if the router retried.
    more = sum(2 * max(counts) for _ in failed)
    return Agreement(
        arm=arm,
        what=f"{what} (engines that answer)",
        client=client,
        server=server,
        unit="tokens",
        agrees=_within(client, server, more),
        note=_count_note(pairs),
    )


def _handoffs(arm: str, pairs: _Pairs) -> Agreement | None:
    """The router's word in the answers' headers against what prefill workers did."""
    engines = [server for _, servers in pairs for server in prefilling(servers)]
    if not any(engine.has("vllm:request_success_total") for engine in engines):
        return None
    answered = [record for records, _ in pairs for record in _answered(records)]
    client = sum(record.path == "disaggregated" for record in answered)
    server = sum(engine.requests for engine in engines)
    # A request that fell back to its decode worker was prefilled for nothing.
    fell_back = sum((record.reason or "").endswith("_failed") for record in answered)
    failed = sum(len(_failed(records)) for records, _ in pairs)
    notes = [f"{fell_back} fell back after prefill"] if fell_back else []
    return Agreement(
        arm=arm,
        what="handed-over requests (prefill engines)",
        client=client,
        server=server,
        unit="requests",
        agrees=_within(client, server, fell_back + failed),
        note="; ".join([*notes, *filter(None, [_count_note(pairs)])]),
    )


def _client_ttft_s(pairs: _Pairs) -> float | None:
    found = [
        record.first_content_s - record.sent_s
        for records, _ in pairs
        for record in _answered(records)
        if record.first_content_s is not None and record.sent_s is not None
    ]
    return sum(found) / len(found) if found else None


def _ttft_row(
    arm: str, what: str, client: float, server: float, room_s: float, legs: str, failed: int
) -> Agreement:
    most = server + room_s + _ROOM_SHARE * client
    least = server - _BELOW_S - _BELOW_SHARE * server
    note = (
        f"the client may see up to {room_s * 1000:.0f} ms and {_ROOM_SHARE:.0%} more "
        f"({legs}), and never less"
    )
    if failed:
        note += f"; {failed} failed request(s) may be in the server's mean"
    return Agreement(
        arm=arm,
        what=what,
        client=client,
        server=server,
        unit="s",
        agrees=least <= client <= most,
        note=note,
    )


def _router_ttft(arm: str, pairs: _Pairs) -> Agreement | None:
    name = "baton_time_to_first_content_seconds"
    routers = [server for _, servers in pairs for server in servers if server.role == ROUTER]
    count, client = total(routers, f"{name}_count"), _client_ttft_s(pairs)
    if client is None or count <= 0:
        return None
    server = total(routers, f"{name}_sum") / count
    failed = sum(len(_failed(records)) for records, _ in pairs)
    return _ttft_row(
        arm, "mean TTFT (router)", client, server, _ROUTER_ROOM_S, "network, sending", failed
    )


def _engine_ttft(arm: str, pairs: _Pairs) -> Agreement | None:
    """Prefill's and decode's times to the first token follow each other; per client request."""
    name = "vllm:time_to_first_token_seconds"
    front = [server for _, servers in pairs for server in answering(servers)]
    back = [server for _, servers in pairs for server in prefilling(servers)]
    count, client = total(front, f"{name}_count"), _client_ttft_s(pairs)
    if client is None or count <= 0:
        return None
    server = total((*front, *back), f"{name}_sum") / count
    legs = "HTTP, tokenizing, the router"
    room_s = _ENGINE_ROOM_S * (2 if back else 1)
    failed = sum(len(_failed(records)) for records, _ in pairs)
    return _ttft_row(arm, "mean TTFT (engines)", client, server, room_s, legs, failed)
