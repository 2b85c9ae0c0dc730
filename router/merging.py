"""Several processes' answers to one question, made into one: what ``--workers N`` shows operators.

Pure, over plain JSON data. Numbers of a process's own doing are summed; what every process knows of
the same fleet is taken once, by the worst word on it; rows that belong to one process stay apart
and carry its number as ``process``. Nothing here asks anybody, and nothing averages: a mean of
processes describes none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from router.observe import merge_pages

Answers = Mapping[int, dict[str, Any]]
"""What each process said, by its number; at least one."""

Merge = Callable[[Answers], dict[str, Any]]

_BREAKERS = ("closed", "suspicious", "half_open", "open")
"""From the best word on a worker to the worst."""

_FAMILIES = re.compile(r"^(?=# HELP )", re.MULTILINE)
_GROWS = re.compile(r"^# TYPE \S+ (?:counter|histogram|summary)$", re.MULTILINE)
"""A page's families begin with their help; those of these types only grow."""


def merge_status(answers: Answers) -> dict[str, Any]:
    """``/admin/status``: version, profile and store are the same in all processes."""
    reports = list(answers.values())
    return {
        **reports[0],
        "in_flight": _sum(report["in_flight"] for report in reports),
        "workers": _workers([report["workers"] for report in reports]),
        "handoffs": merge_handoffs({n: report["handoffs"] for n, report in answers.items()}),
    }


def merge_workers(answers: Answers) -> dict[str, Any]:
    """``/admin/workers``."""
    return {"workers": _workers([answer["workers"] for answer in answers.values()])}


def _workers(lists: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each worker once: legs, tokens and bytes summed, the freshest record, the worst breaker;
    suspect and cordoned if any process says so, drained if all say so."""
    views: dict[str, list[dict[str, Any]]] = {}
    for workers in lists:
        for worker in workers:
            views.setdefault(worker["record"]["id"], []).append(worker)
    return [_worker(views[name]) for name in sorted(views)]


def _worker(views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "record": max((v["record"] for v in views), key=lambda record: record["heartbeat_s"]),
        "legs": _sum(v["legs"] for v in views),
        "suspect": any(v["suspect"] for v in views),
        "breaker": max((v["breaker"] for v in views), key=_BREAKERS.index),
        "cordoned": any(v["cordoned"] for v in views),
        "drained": all(v["drained"] for v in views),
        "prefilling_tokens": _sum(v["prefilling_tokens"] for v in views),
        "stranded_bytes": _sum(v["stranded_bytes"] for v in views),
    }


def merge_handoffs(answers: Answers) -> dict[str, Any]:
    """``/admin/handoffs``: each handoff belongs to one process; bytes per worker are summed."""
    return {
        "open": _rows(answers, "open"),
        "stranded": _rows(answers, "stranded"),
        "stranded_bytes": _sum_maps(answer["stranded_bytes"] for answer in answers.values()),
    }


def merge_pairs(answers: Answers) -> dict[str, Any]:
    """``/admin/pairs``: each process checks and measures pairs for itself, so each has its row."""
    return {"pairs": _rows(answers, "pairs")}


def merge_queue(answers: Answers) -> dict[str, Any]:
    """``/admin/queue``: sums, and the longest wait of all."""
    waits = list(answers.values())
    maps = ("waiting_by_band", "waiting_by_model", "out_by_model", "limit_by_model", "turned")
    return {
        **{name: _sum_maps(wait[name] for wait in waits) for name in maps},
        "oldest_age_s": max(wait["oldest_age_s"] for wait in waits),
        "admitted": _sum(wait["admitted"] for wait in waits),
    }


def merge_tenants(answers: Answers) -> dict[str, Any]:
    """``/admin/tenants``: running requests summed; the source as seen by a process that has trouble
    with it, if one has."""
    sources = [answer["source"] for answer in answers.values()]
    return {
        "source": next((source for source in sources if source["problem"]), sources[0]),
        "running": _sum_maps(answer["running"] for answer in answers.values()),
    }


def merge_drain(answers: Answers) -> dict[str, Any]:
    """``/admin/workers/ID/drain``: drained once every process is done with the worker."""
    states = list(answers.values())
    return {
        "worker": states[0]["worker"],
        "registered": any(state["registered"] for state in states),
        "cordoned": any(state["cordoned"] for state in states),
        "drained": all(state["drained"] for state in states),
        "legs": _sum(state["legs"] for state in states),
        "stranded_bytes": _sum(state["stranded_bytes"] for state in states),
    }


def merge_any(answers: Answers) -> dict[str, Any]:
    """What every process says alike: one answer, with the number of who gave it."""
    number, answer = next(iter(answers.items()))
    return {**answer, "process": number}


def merge_ready(answers: Answers) -> dict[str, Any]:
    """``/readyz``: ready if a process is; its word on the workers, else the first one's."""
    said = list(answers.values())
    return next((answer for answer in said if answer["status"] == "ready"), said[0])


def merge_metrics(pages: Sequence[str], ended: str) -> str:
    """One page of metrics: the running processes', and the counts of those that have ended.

    Args:
        pages: of each running process, in Prometheus's text format.
        ended: from ``counts_of``, or empty.
    """
    return merge_pages([*pages, ended] if ended else pages)


def counts_of(pages: Iterable[str]) -> str:
    """What stays of pages when their processes end: counters and histograms, summed.

    Without them the sum would fall when a process dies, and Prometheus, which takes a fall for a
    restart from zero, would report all that the others ever counted as having happened just then.
    """
    kept = [
        "".join(block for block in _FAMILIES.split(page) if _GROWS.search(block)) for page in pages
    ]
    return merge_pages(kept)


def _rows(answers: Answers, field: str) -> list[dict[str, Any]]:
    return [{**row, "process": n} for n, answer in answers.items() for row in answer[field]]


def _sum(numbers: Iterable[float]) -> float:
    return sum(numbers)


def _sum_maps(maps: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in maps:
        for key, value in one.items():
            total[key] = total.get(key, 0) + value
    return total
