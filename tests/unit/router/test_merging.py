"""What several processes of one router say, made into one answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton.errors import SettingsError
from profiles import resolve_profile
from router.merging import (
    counts_of,
    merge_any,
    merge_drain,
    merge_handoffs,
    merge_metrics,
    merge_pairs,
    merge_queue,
    merge_ready,
    merge_status,
    merge_tenants,
    merge_workers,
)
from router.observe import RouterMetrics
from router.parent import check_shared
from router.processes import VARIABLE, Place, take_place
from router.settings import RouterSettings, flow_rules


def worker(name: str, **more: Any) -> dict[str, Any]:
    """A worker as one process sees it."""
    return {
        "record": {"id": name, "heartbeat_s": 1.0, "state": "ready"},
        "legs": 0,
        "suspect": False,
        "breaker": "closed",
        "cordoned": False,
        "drained": False,
        "prefilling_tokens": 0,
        "stranded_bytes": 0,
        **more,
    }


def test_workers_are_shown_once() -> None:
    """What each process has on a worker is summed, the worst word on it wins, and the record is
    the freshest; a worker that only one process knows yet is there too."""
    late = {"id": "d", "heartbeat_s": 2.0, "state": "draining"}
    first = [worker("d", legs=2, prefilling_tokens=10, breaker="half_open", drained=True)]
    second = [
        worker("d", record=late, legs=3, stranded_bytes=7, breaker="open", suspect=True),
        worker("a", cordoned=True, drained=True),
    ]
    merged = merge_workers({1: {"workers": first}, 2: {"workers": second}})["workers"]
    assert merged == [
        worker("a", cordoned=True, drained=True),
        worker(
            "d",
            record=late,
            legs=5,
            prefilling_tokens=10,
            stranded_bytes=7,
            breaker="open",
            suspect=True,
        ),
    ]


def test_a_worker_is_drained_when_all_are_done_with_it() -> None:
    """A process that does not know of the cordon yet is not done."""
    state = {"worker": "d", "registered": True, "legs": 0, "stranded_bytes": 0}
    done, busy = (
        {**state, "cordoned": True, "drained": True},
        {**state, "cordoned": False, "drained": False, "legs": 2},
    )
    assert merge_drain({1: done, 2: busy}) == {
        **state,
        "cordoned": True,
        "drained": False,
        "legs": 2,
    }
    assert merge_drain({1: done, 2: done})["drained"] is True


def test_rows_keep_their_process() -> None:
    """Handoffs and pairs are one process's own."""
    handoffs = merge_handoffs(
        {
            1: {"open": [{"request_id": "a"}], "stranded": [], "stranded_bytes": {"p": 5}},
            3: {"open": [], "stranded": [{"request_id": "b"}], "stranded_bytes": {"p": 2, "q": 1}},
        }
    )
    assert handoffs == {
        "open": [{"request_id": "a", "process": 1}],
        "stranded": [{"request_id": "b", "process": 3}],
        "stranded_bytes": {"p": 7, "q": 1},
    }
    row = {"prefill": "p", "decode": "d", "state": "ready"}
    assert merge_pairs({1: {"pairs": [row]}, 2: {"pairs": [row]}}) == {
        "pairs": [{**row, "process": 1}, {**row, "process": 2}]
    }


def test_the_status_is_one_router_s() -> None:
    """What is equal stands once, what is work is summed."""
    empty: dict[str, Any] = {"open": [], "stranded": [], "stranded_bytes": {}}
    report = {"version": "1", "profile": {"name": "x"}, "store": "redis", "handoffs": empty}
    merged = merge_status(
        {
            1: {**report, "in_flight": 2, "workers": [worker("d", legs=2)]},
            2: {**report, "in_flight": 3, "workers": [worker("d", legs=3)]},
        }
    )
    assert merged == {**report, "in_flight": 5, "workers": [worker("d", legs=5)]}


def test_queues_add_up() -> None:
    """The oldest of all is the oldest."""
    one = {
        "waiting_by_band": {"0": 2},
        "oldest_age_s": 1.0,
        "waiting_by_model": {"m": 2},
        "out_by_model": {"m": 4},
        "limit_by_model": {"m": 8},
        "admitted": 10,
        "turned": {"full": 1},
    }
    other = {**one, "waiting_by_band": {"-1": 1}, "oldest_age_s": 3.0, "turned": {}}
    assert merge_queue({1: one, 2: other}) == {
        "waiting_by_band": {"0": 2, "-1": 1},
        "oldest_age_s": 3.0,
        "waiting_by_model": {"m": 4},
        "out_by_model": {"m": 8},
        "limit_by_model": {"m": 16},
        "admitted": 20,
        "turned": {"full": 1},
    }


def test_trouble_with_tenants_is_not_hidden() -> None:
    """One process that cannot read them is told of."""
    good = {"source": {"source": "f", "problem": ""}, "running": {"a": 1}}
    bad = {"source": {"source": "f", "problem": "unreadable"}, "running": {"a": 2, "b": 1}}
    assert merge_tenants({1: good, 2: bad}) == {
        "source": {"source": "f", "problem": "unreadable"},
        "running": {"a": 3, "b": 1},
    }


def test_ready_if_one_is() -> None:
    """Clients get an answer then, on this connection or the next."""
    ready, not_yet = {"status": "ready"}, {"status": "no worker"}
    assert merge_ready({1: not_yet, 2: ready}) == ready
    assert merge_ready({1: not_yet, 2: not_yet}) == not_yet
    assert merge_any({2: {"name": "x"}}) == {"name": "x", "process": 2}


def page_of(requests: int, in_flight: int) -> str:
    """A process's metrics after some requests."""
    metrics = RouterMetrics()
    metrics.pull("baton_workers", lambda: {("decode", "ready"): 2})
    for _ in range(requests):
        metrics.tenant_done("someone", "ok", output_tokens=3)
    metrics.in_flight = in_flight
    return metrics.render("")[0].decode()


def samples(page: str) -> dict[str, float]:
    """The sums of samples by name."""
    found: dict[str, float] = {}
    for metric in text_string_to_metric_families(page):
        for sample in metric.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_counts_outlive_their_process() -> None:
    """After two processes have ended and new ones have come, no counter has fallen, and no gauge
    of the dead is left."""
    ended = counts_of(["", page_of(5, in_flight=2)])
    ended = counts_of([ended, page_of(7, in_flight=1)])
    assert "baton_workers" not in samples(ended)
    merged = samples(merge_metrics([page_of(1, in_flight=4), page_of(2, in_flight=0)], ended))
    assert merged["baton_tenant_tokens_total"] == 3 * (5 + 7 + 1 + 2)
    assert merged["baton_requests_in_flight"] == 4
    assert merged["baton_workers"] == 2
    assert samples(merge_metrics([page_of(1, in_flight=4)], ""))["baton_requests_in_flight"] == 4


def test_a_place_is_taken_once() -> None:
    """A process's own children are not of the family; a value that is none is an error."""
    place = Place(2, 4, "token", "http://127.0.0.1:9")
    env = {VARIABLE: msgspec.json.encode(place).decode()}
    assert take_place(env) == place
    assert env == {}
    assert take_place(env) is None
    with pytest.raises(SettingsError, match=VARIABLE):
        take_place({VARIABLE: "2"})


def test_bounds_are_shared_out() -> None:
    """Each of several processes holds its part of the requests that the router may hold."""
    profile = resolve_profile("disaggregated")
    whole, part = flow_rules(profile), flow_rules(profile, 1 / 3)
    assert (whole.in_flight, whole.queue) == (1024, 256)
    assert (part.in_flight, part.queue) == (342, 86)


def test_processes_need_a_common_store() -> None:
    """Memory is nobody else's."""
    profile = resolve_profile("disaggregated")
    check_shared(RouterSettings(profile, "token", "redis://127.0.0.1:1/0"), 4)
    with pytest.raises(SettingsError, match=r"--workers 4 needs --store redis://"):
        check_shared(RouterSettings(profile, "token"), 4)
