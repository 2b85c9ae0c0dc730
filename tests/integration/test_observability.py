"""The dashboard and the alert rules against what the router's metrics really export, and spans
over OTLP to a receiver on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from baton.types import Role, WorkerState
from kvtransfer.protocol import HandoffState
from profiles.switching import Phase
from router.care import BreakerState, PairState
from router.flow import Turned
from router.observe import Stage, TracingSettings, make_tracer, tracing_settings
from router.observe import families as f
from router.policy import Reason
from tests.fakes.http_server import LoopServer
from tests.unit.router.observe.exercise import exercised

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
RULES = yaml.safe_load((FOLDER / "prometheus" / "baton-alerts.yaml").read_text())["groups"]
DASHBOARD = json.loads((FOLDER / "grafana" / "baton-router.json").read_text())

TARGET_LABELS = {"instance", "job"}
"""Given by Prometheus to everything it scrapes."""
IN_SWITCH: set[str] = {Phase.PREPARE, Phase.SHADOW, Phase.CANARY}
KNOWN_VALUES: dict[tuple[str, str], set[str]] = {
    ("baton_requests_total", "reason"): set(Reason),
    ("baton_handoffs_total", "state"): set(HandoffState),
    ("baton_pair_state", "state"): set(PairState),
    ("baton_breaker_state", "state"): set(BreakerState),
    ("baton_shed_total", "reason"): set(Turned),
    ("baton_workers", "role"): set(Role),
    ("baton_workers", "state"): set(WorkerState),
    ("baton_profile_info", "state"): {"active", "candidate"},
    ("baton_profile_switches_total", "outcome"): {str(phase) for phase in Phase} - IN_SWITCH,
    ("baton_profile_switch_phase", "phase"): IN_SWITCH,
    ("baton_canary_total", "result"): {"ok", "mismatched", "unknown", "skipped"},
    ("python_gc_collections_total", "generation"): {"0", "1", "2"},
}
OPERATORS = {"and", "or", "unless", "bool", "offset"}
CLAUSE = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
RANGE = re.compile(r"\[([^\]]*)\]")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(\s*\()?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@dataclass(frozen=True)
class Selector:
    name: str
    matchers: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Query:
    """What an expression of PromQL refers to; modest: enough for the expressions of ours."""

    selectors: tuple[Selector, ...]
    grouped: frozenset[str]
    ranges: tuple[str, ...]


def parse(expression: str) -> Query:
    grouped = {
        label.strip() for _, labels in CLAUSE.findall(expression) for label in labels.split(",")
    } - {""}
    rest = RANGE.sub("", CLAUSE.sub("", expression))
    selectors = [
        Selector(name, tuple(MATCHER.findall(matchers)))
        for name, matchers, call in SELECTOR.findall(rest)
        if not call and name not in OPERATORS
    ]
    return Query(tuple(selectors), frozenset(grouped), tuple(RANGE.findall(expression)))


def rules(kind: str) -> Iterator[dict[str, Any]]:
    for group in RULES:
        yield from (rule for rule in group["rules"] if kind in rule)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


EXPRESSIONS: dict[str, str] = {
    **{rule["record"]: rule["expr"] for rule in rules("record")},
    **{rule["alert"]: rule["expr"] for rule in rules("alert")},
    **{
        f"{panel['title']}/{target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    },
}
RECORDED = {rule["record"] for rule in rules("record")}


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """Sample name to label names to the values seen, as a scrape reads them."""
    found: dict[str, dict[str, set[str]]] = {}
    page = exercised(process=True).render()[0].decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def test_the_extractor_sees_names_labels_and_ranges() -> None:
    """The checks below are worth what it is worth."""
    query = parse(
        'sum by (le, path) (rate(a_bucket{x="1", y=~"b|c"}[5m])) / on (z) group_left () b:c:d'
        " and c_total > 0.5 or vector(0)"
    )
    assert query == Query(
        (
            Selector("a_bucket", (("x", "=", "1"), ("y", "=~", "b|c"))),
            Selector("b:c:d", ()),
            Selector("c_total", ()),
        ),
        frozenset({"le", "path", "z"}),
        ("5m",),
    )


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_expression_refers_to_what_the_router_exports(
    where: str, exported: dict[str, dict[str, set[str]]]
) -> None:
    """Names, labels, bucket bounds and the values of labels that our own code sets."""
    expression = EXPRESSIONS[where]
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")
    query = parse(expression)
    assert query.selectors
    labels: set[str] = set(TARGET_LABELS)
    for selector in query.selectors:
        if selector.name in RECORDED:
            assert selector.matchers == ()
            continue
        assert selector.name in exported
        own = exported[selector.name]
        labels |= set(own)
        for name, operator, wanted in selector.matchers:
            assert name in set(own) | TARGET_LABELS
            if name == "le":
                assert wanted in own["le"]
            known = KNOWN_VALUES.get((selector.name, name))
            if known is not None:
                parts = wanted.split("|") if "~" in operator else [wanted]
                assert set(parts) <= known
    assert query.grouped <= labels
    for length in query.ranges:
        assert re.fullmatch(r"\$__rate_interval|\d+[mh]", length)


def test_every_metric_is_looked_at() -> None:
    """A metric that is on no panel and in no rule is one that nobody would miss."""
    used = {s.name for expression in EXPRESSIONS.values() for s in parse(expression).selectors}
    stems = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used}
    assert {family.name for family in f.ALL} - stems == set()


@pytest.mark.parametrize("rule", [*rules("alert")], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    """``for``, a severity, a summary, a description and a runbook; labels it names exist."""
    assert re.fullmatch(r"Baton[A-Za-z]+", rule["alert"])
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert all(len(note) > 20 for note in notes.values())
    # What a firing alert carries: the labels it is grouped by, and no others.
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values())))
    assert named <= set(parse(rule["expr"]).grouped)


def test_names_of_rules_are_unique_and_recorded_ones_are_used() -> None:
    """Nothing is computed for nobody, but the request rate, which is for people's own panels."""
    names = [rule.get("alert") or rule["record"] for rule in (*rules("alert"), *rules("record"))]
    assert len(names) == len(set(names))
    used = {s.name for expression in EXPRESSIONS.values() for s in parse(expression).selectors}
    assert RECORDED - used == {"baton:requests:rate5m"}
    assert {rule["labels"]["severity"] for rule in rules("alert")} == {
        "critical",
        "warning",
        "info",
    }


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    """Ids are unique, no two panels overlap, and legends name labels that the query keeps."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= set(parse(target["expr"]).grouped)
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert len(rows) == 8


# --- spans over the wire ---


class Collector:
    """An OTLP/HTTP receiver: keeps the spans it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.add(scope["path"])
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        headers = [(b"content-type", b"application/x-protobuf")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def test_spans_arrive_at_a_collector() -> None:
    """A request's spans, in one trace, under the service's name, before the router is gone."""
    collector = Collector()
    server = LoopServer(collector)
    await server.start()
    try:
        tracer = make_tracer(tracing_settings({}, f"http://127.0.0.1:{server.port}"))
        span = tracer.begin([], "POST", "/v1/completions")
        with span.stage(Stage.DECODE):
            pass
        span.end(200)
        await tracer.aclose(timeout_s=60.0)
    finally:
        await server.stop()
    assert collector.paths == {"/v1/traces"}
    (resource,) = [found for request in collector.requests for found in request.resource_spans]
    attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert attributes["service.name"] == "baton-router"
    spans = {s.name: s for scope in resource.scope_spans for s in scope.spans}
    assert set(spans) == {"decode", "POST /v1/completions"}
    assert spans["decode"].parent_span_id == spans["POST /v1/completions"].span_id
    assert spans["decode"].trace_id.hex() == span.trace_id


async def test_a_collector_that_is_gone_costs_spans_and_nothing_else() -> None:
    """Requests are served, and the router's end does not wait beyond its bound."""
    server = LoopServer(Collector())
    await server.start()
    port = server.port
    await server.stop()
    settings = TracingSettings(
        f"http://127.0.0.1:{port}/v1/traces", export_timeout_s=0.05, queue_spans=8, batch_spans=4
    )
    tracer = make_tracer(settings)
    for _ in range(100):
        tracer.begin([], "POST", "/v1/completions").end(200)
    await tracer.aclose(timeout_s=60.0)
