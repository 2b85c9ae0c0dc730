"""Workload files: values, defaults, what is said of broken ones, and the built-in workloads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml

from baton.errors import WorkloadError
from benchmarks.workloads import build_plan, builtin_workloads, load_workload, workload_schema
from benchmarks.workloads.spec import ClosedArrivals, PoissonArrivals, Workload
from tests.unit.benchmarks.workloads.texts import CLASSES, TRACES, changed, parse


def problem_of(text: str) -> str:
    with pytest.raises(WorkloadError) as caught:
        parse(text)
    return str(caught.value)


def test_values_and_defaults() -> None:
    """What the text says is there, and the documented defaults are where it says nothing."""
    workload = parse(CLASSES)
    assert (workload.name, workload.metadata.description) == ("example", "")
    spec = workload.spec
    assert (spec.seed, spec.duration_s, spec.slo, spec.trace) == (0, 50, None, None)
    assert spec.classes is not None
    short, long = spec.classes["short"], spec.classes["long"]
    assert isinstance(short.arrivals, PoissonArrivals)
    assert short.arrivals.rate == 4
    assert isinstance(long.arrivals, ClosedArrivals)
    assert (long.arrivals.concurrency, long.arrivals.think_s, long.arrivals.requests) == (
        3,
        0,
        None,
    )
    assert (short.start_s, short.shared_prefix, short.turns, short.models) == (0, None, None, None)


BROKEN = [
    # arrivals
    (
        "kind: poisson",
        "kind: poison",
        "w.yaml:9: spec.classes.short.arrivals.kind: must be one of constant, poisson, gamma or "
        'closed (got "poison"; did you mean poisson?)',
    ),
    ("{kind: poisson, rate: 4}", "5", "w.yaml:9: spec.classes.short.arrivals: must be a mapping"),
    ("kind: poisson, rate", "rate", "w.yaml:9: spec.classes.short.arrivals.kind: is required"),
    ("rate: 4", "rate: 0", "spec.classes.short.arrivals.rate: must be more than 0 (got 0)"),
    ("rate: 4", "rate: .inf", "spec.classes.short.arrivals.rate: must be a finite number"),
    ("rate: 4", "rat: 4", "arrivals.rate: is required\nw.yaml:9: spec.classes.short.arrivals.rat:"),
    (
        "rate: 4",
        "rate: 4, cv: 1",
        "arrivals.cv: is not a known field here; it belongs at spec.classes.<name>.arrivals.cv",
    ),
    ("concurrency: 3", "concurrency: 0", "w.yaml:13: spec.classes.long.arrivals.concurrency: must"),
    # distributions
    ("2000", "0", "w.yaml:14: spec.classes.long.prompt_tokens: must be at least 1 (got 0)"),
    ("2000", "1.5", "w.yaml:14: spec.classes.long.prompt_tokens: must be a whole number (got 1.5)"),
    ("2000", "true", "spec.classes.long.prompt_tokens: must be a whole number (got true)"),
    (
        "2000",
        "many",
        'spec.classes.long.prompt_tokens: must be a number or a mapping with kind (got "many")',
    ),
    (
        "kind: uniform",
        "kind: unifrm",
        "w.yaml:10: spec.classes.short.prompt_tokens.kind: must be one of uniform, normal, "
        'lognormal or choice (got "unifrm"; did you mean uniform?)',
    ),
    ("max: 90", "max: 9", "short.prompt_tokens.max: must be at least min (10) (got 9)"),
    ("max: 90", "mx: 90", "short.prompt_tokens.mx: is not a known field; did you mean max?"),
    ("[8, 16]", "[8, 0]", "long.output_tokens.values[1]: must be at least 1 (got 0)"),
    ("[8, 16]", "[]", "long.output_tokens.values: must not be empty"),
    ("[8, 16]", "8", "long.output_tokens.values: must be a list (got 8)"),
    (
        "[8, 16]",
        "[8, 16], weights: [1]",
        "long.output_tokens.weights: must have one entry for each of values (2) (got 1)",
    ),
    (
        "2000",
        "{kind: normal, mean: 9, std: 1, min: 10, max: 20}",
        "long.prompt_tokens.mean: must be from min to max (got 9)",
    ),
    (
        "2000",
        "{kind: lognormal, median: 30, sigma: 1, min: 10, max: 20}",
        "long.prompt_tokens.median: must be from min to max (got 30)",
    ),
    # the rest of a class
    (
        "2000",
        "2000\n      turns: {count: 2}",
        "w.yaml:15: spec.classes.long.turns: has no meaning with closed arrivals",
    ),
    (
        "output_tokens: 20",
        "output_tokens: 20\n      turns: {count: {kind: choice, values: [1001, 2]}}",
        "w.yaml:12: spec.classes.short.turns.count: must be at most 1000 (got 1001)",
    ),
    (
        "2000",
        "2000\n      priorities: {high: 1}",
        "w.yaml:15: spec.classes.long.priorities.high: must be a whole number",
    ),
    ("2000", "2000\n      models: {}", "spec.classes.long.models: must not be empty"),
    ("2000", '2000\n      tenants: {"a b": 1}', 'spec.classes.long.tenants."a b": must be letters'),
    ("2000", "2000\n      models: {a: 0}", "spec.classes.long.models.a: must be more than 0"),
    (
        "2000",
        "2000\n      slo: {ttft: 1}",
        "long.slo.ttft: is not a known field; did you mean ttft",
    ),
    ("2000", "2000\n      start_s: 50", "long.start_s: must be less than spec.duration_s (50)"),
    ("    short:", "    Short_1:", "w.yaml:8: spec.classes.Short_1: must be lower-case letters,"),
    # the whole
    ("  duration_s: 50\n", "", "w.yaml:5: spec.duration_s: is required with classes"),
    (
        "  name: example",
        "  name: example\n  seed: 1",
        "is not a known field here; it belongs at spec",
    ),
    ("kind: Workload", "kind: ServingProfile", "w.yaml:2: kind: must be Workload"),
    (
        "  classes:",
        "  trace: {format: azure, file: x}\n  classes:",
        "w.yaml:7: spec.trace: must not stand beside classes",
    ),
    ("    long:", "    short:", "w.yaml:12: spec.classes.short: is given twice"),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN)
def test_a_mistake_is_explained_with_its_place(old: str, new: str, expected: str) -> None:
    """One mistake is reported with file, line, field and a plain sentence."""
    assert expected in problem_of(changed(CLASSES, (old, new)))


TRACE = """\
apiVersion: baton/v1
kind: Workload
metadata: {name: t}
spec:
  trace:
    format: mooncake
    file: t.jsonl
"""

BROKEN_TRACES = [
    ("format: mooncake", "format: azure\n    time_unit: s", "trace.time_unit: has no meaning with"),
    ("format: mooncake", "format: sharegpt", "trace.format: must be one of azure, mooncake,"),
    ("    file: t.jsonl\n", "", "w.yaml:5: spec.trace.file: is required"),
    (
        "file: t.jsonl",
        "file: t\n    classes: {a: {max_prompt_tokens: 5}}",
        "w.yaml:8: spec.trace.classes: must have exactly one class without max_prompt_tokens",
    ),
    (
        "file: t.jsonl",
        "file: t\n    classes: {a: {max_prompt_tokens: 5}, b: {max_prompt_tokens: 5}, c: {}}",
        "w.yaml:8: spec.trace.classes: must not have two classes of equal bounds",
    ),
    ("trace:\n    format: mooncake\n    file: t.jsonl", "seed: 1", "must have classes or a trace"),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN_TRACES)
def test_a_mistake_in_a_trace_section_is_explained(old: str, new: str, expected: str) -> None:
    """Traces have the same kind of messages."""
    assert expected in problem_of(changed(TRACE, (old, new)))


def test_messages_call_the_file_a_workload() -> None:
    """What is no YAML mapping at all is refused in the words of workloads, not of profiles."""
    assert problem_of("") == "w.yaml:1: is empty; a workload is a YAML mapping"
    assert "a workload is one document" in problem_of(CLASSES + "---\na: 1\n")


def test_priorities_are_written_as_numbers() -> None:
    """The keys of priorities may stand without quotes, negative ones too."""
    text = changed(CLASSES, ("2000", "2000\n      priorities: {0: 3, -5: 1}"))
    classes = parse(text).spec.classes
    assert classes is not None
    assert classes["long"].priorities == {"0": 3.0, "-5": 1.0}


@pytest.mark.parametrize("name", builtin_workloads())
def test_built_in_workloads_are_sound(name: str) -> None:
    """Each one has its file's name and a description, and gives a plan that pickles."""
    workload = load_workload(name)
    assert workload.name == name
    assert workload.metadata.description
    plan = build_plan(workload)
    assert plan.requests or plan.lanes
    assert pickle.loads(pickle.dumps(plan.requests)) == plan.requests
    for lane, copy in zip(plan.lanes, pickle.loads(pickle.dumps(plan.lanes)), strict=True):
        assert copy.draw(3) == lane.draw(3)


def test_the_main_comparison_is_what_it_says() -> None:
    """short-and-long: four lanes, and a long prompt every 5.1 s."""
    plan = build_plan(load_workload("short-and-long"))
    assert [lane.class_name for lane in plan.lanes] == ["short"] * 4
    drawn = [lane.draw(k) for lane in plan.lanes for k in range(20)]
    assert all(60 <= request.prompt_tokens <= 140 for request in drawn)
    assert all(40 <= (request.output_tokens or 0) <= 120 for request in drawn)
    assert len({request.output_tokens for request in drawn}) > 30
    times = [request.at_s or 0.0 for request in plan.requests]
    assert len(times) == 12
    assert times[1] - times[0] == pytest.approx(5.1, abs=0.002)
    assert {(r.prompt_tokens, r.output_tokens) for r in plan.requests} == {(2000, 16)}


def test_a_workload_written_out_reads_back() -> None:
    """The plain data of a workload, as YAML, is the same workload."""
    for name in builtin_workloads():
        workload = load_workload(name)
        data = workload.model_dump(mode="json", by_alias=True)
        assert parse(yaml.safe_dump(data, sort_keys=False)) == workload


def test_files_names_and_the_place_of_a_trace(tmp_path: Path) -> None:
    """A path is read as a file, relative traces start at its folder, names are built-in ones."""
    file = tmp_path / "w.yaml"
    file.write_text(changed(TRACE, ("t.jsonl", "sub/t.jsonl")))
    for source in (file, str(file)):
        trace = load_workload(source).spec.trace
        assert trace is not None
        assert trace.file == str(tmp_path / "sub" / "t.jsonl")
    file.write_text(changed(TRACE, ("t.jsonl", "~/t.jsonl")))
    trace = load_workload(file).spec.trace
    assert trace is not None
    assert trace.file == "~/t.jsonl"
    with pytest.raises(WorkloadError, match="no built-in workload is called"):
        load_workload("short-and-lang")
    with pytest.raises(WorkloadError, match="no such file"):
        load_workload(tmp_path / "missing.yaml")


def test_the_schema_describes_every_field() -> None:
    """Editors get a JSON Schema in which every field says its meaning, unit and default."""
    schema = workload_schema()
    json.dumps(schema)
    assert {"WholeUniform", "SecondsLogNormal", "ClassSpec"} <= set(schema["$defs"])
    text = json.dumps(schema)
    for name, definition in schema["$defs"].items():
        assert f"#/$defs/{name}" in text
        for field, about in definition["properties"].items():
            assert about.get("description"), (name, field)


def test_workloads_are_values() -> None:
    """Equal texts are equal workloads, and nobody changes one."""
    workload = parse(CLASSES)
    assert workload == Workload.model_validate(yaml.safe_load(CLASSES))
    with pytest.raises(ValueError, match="frozen"):
        workload.metadata.name = "other"


def test_sample_traces_are_there() -> None:
    """The samples that other tests read exist."""
    assert len(list(TRACES.glob("*.*"))) == 7
