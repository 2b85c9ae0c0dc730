"""How manifests are checked: strict schemas out of CRDs, their CEL rules, spellings of names."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import cel, crds, names, schemas
from tests.manifests.examples import keys
from tests.manifests.findings import show_path
from tests.manifests.needs import mark, needs_crds

# --- CEL ---

CREATED_ONLY = 115
"""Different rules of the CRDs that are about new objects too: all of them are evaluated."""
COMPARING = 12
"""Those that compare an object with what it was; API servers skip them for new objects."""


@needs_crds
def test_only_rules_about_changes_are_not_evaluated() -> None:
    """The list of rules that nothing here evaluates does not grow unseen."""
    rules = {rule for crd in crds.every() for rule in cel.rules(crd.schema)}
    comparing = {rule for rule in rules if cel.needs_old(rule)}
    assert (len(rules - comparing), len(comparing)) == (CREATED_ONLY, COMPARING)
    unknown = {rule: cel.unknown_functions(rule) for rule in rules - comparing}
    assert not {rule: missing for rule, missing in unknown.items() if missing}


@needs_crds
def test_no_rule_applies_to_new_objects_by_an_optional_old_one() -> None:
    """``optionalOldSelf`` would make a comparing rule count on creation; no CRD has it."""
    texts = [json.dumps(crd.schema) for crd in crds.every()]
    assert not any("optionalOldSelf" in text for text in texts)


RULE = "x-kubernetes-validations"


def verdict(rule: str, value: Any, **schema: Any) -> list[str]:
    found = cel.findings(value, {**schema, RULE: [{"rule": rule, "message": "broken"}]})
    return [reason for _, reason in found]


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("self.size() < 3", [1, 2], [1, 2, 3]),
        ("self.all(one, self.exists_one(two, one.n == two.n))", [{"n": 1}], [{"n": 1}] * 2),
        ("isURL(self)", "https://shop.example/a?b=c", "shop"),
        ("self.split('/')[0] == 'a'", "a/b", "b/a"),
        ("self.matches('^(?i)a+$')", "AAa", "ab"),
        ("duration(self) <= duration('1h')", "59m59s", "1h1ms"),
        ("has(self.name) ? self.name != '' : true", {}, {"name": ""}),
        ("self != 0", 1, 0),
        ("self != 0", "http", 0),
        ("self == oldSelf || false", "anything is fine for a new object", None),
    ],
)
def test_rules_are_evaluated(rule: str, good: Any, bad: Any) -> None:
    """By their sense: what they allow passes, what they forbid is a finding."""
    assert verdict(rule, good) == []
    assert verdict(rule, bad) == ([] if bad is None else ["broken"])


def test_a_rule_that_cannot_be_evaluated_is_a_finding() -> None:
    """As at an API server: a missing field that the rule reads is no pass."""
    (said,) = verdict("self.name == ''", {})
    assert "cannot be evaluated: no such member in mapping: 'name'" in said


def test_reserved_words_are_escaped_as_kubernetes_does() -> None:
    """``namespace`` is a word of CEL's own; a map's own keys stay as they are."""
    properties = {"namespace": {"type": "string"}, "a-b": {"type": "string"}}
    value = {"namespace": "x", "a-b": "y"}
    rule = "self.__namespace__ == 'x' && self.a__dash__b == 'y'"
    assert verdict(rule, value, properties=properties) == []
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    assert verdict("'a-b' in self", {"a-b": "y"}, **labels) == []


def test_rules_stand_at_every_level() -> None:
    """Below properties, entries of lists, and values of maps; the path says where."""
    below = {"type": "integer", RULE: [{"rule": "self > 0"}]}
    schema = {
        "properties": {
            "list": {"items": below},
            "map": {"additionalProperties": below},
            "one": {RULE: [{"rule": "self.b == 1", "fieldPath": ".b", "message": "no"}]},
        }
    }
    value = {"list": [1, 0], "map": {"a/b": 0}, "one": {"b": 2}}
    assert [(show_path(path), reason) for path, reason in cel.findings(value, schema)] == [
        ("list[1]", "breaks the rule self > 0"),
        ('map["a/b"]', "breaks the rule self > 0"),
        ("one.b", "no"),
    ]


# --- schemas ---

CRD = {
    "type": "object",
    "properties": {
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "half": {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {"closed": {"type": "object", "properties": {"a": {"type": "string"}}}},
        },
        "embedded": {
            "type": "object",
            "x-kubernetes-embedded-resource": True,
            "properties": {
                "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            },
        },
        "port": {"x-kubernetes-int-or-string": True},
        "maybe": {"type": "string", "nullable": True},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "count": {"type": "integer", "format": "int32", "default": 3},
        "when": {"type": "string", "format": "date-time"},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {
                "type": "object",
                "properties": {
                    "port": {"type": "integer"},
                    "protocol": {"type": "string", "default": "TCP"},
                },
            },
        },
        "name": {"type": "string", "pattern": "^[a-z]+$"},
    },
}


def said(value: dict[str, Any]) -> list[str]:
    validator = schemas.validator(schemas.strict(CRD))
    return [f"{show_path(path)}: {reason}" for path, reason in schemas.findings(value, validator)]


@pytest.mark.parametrize(
    "value",
    [
        {"open": {"any": {"thing": 1}}},
        {"half": {"any": 1, "closed": {"a": "b"}}},
        {"embedded": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"x": 1}}},
        {"port": 1},
        {"port": "http"},
        {"maybe": None},
        {"labels": {"a": "b"}},
        {"when": "2026-11-29T01:02:03Z"},
        {"set": ["a", "b"]},
        {"map": [{"port": 1}, {"port": 1, "protocol": "UDP"}]},
        {"name": "abc"},
    ],
)
def test_what_a_schema_takes(value: dict[str, Any]) -> None:
    """Everything that an API server would store as it is."""
    assert said(value) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"opne": {}}, "opne: is no field that the schema knows"),
        ({"half": {"closed": {"b": 1}}}, "half.closed.b: is no field that the schema knows"),
        ({"embedded": {"other": 1}}, "embedded.other: is no field that the schema knows"),
        ({"port": 1.5}, "port: 1.5 is not of type 'integer', 'string'"),
        ({"port": None}, "port: None is not of type 'integer', 'string'"),
        ({"labels": {"a": 1}}, "labels.a: 1 is not of type 'string'"),
        ({"labels": None}, "labels: None is not of type 'object'"),
        ({"count": True}, "count: True is not of type 'integer'"),
        ({"count": 3.0}, "count: 3.0 is not of type 'integer'"),
        ({"count": 2**31}, "count: 2147483648 is not a 'int32'"),
        ({"when": "yesterday"}, "when: 'yesterday' is not a 'date-time'"),
        ({"set": ["a", "a"]}, 'set[1]: has the same value as an earlier entry ("a")'),
        (
            {"map": [{"port": 1}, {"port": 1, "protocol": "TCP"}]},
            'map[1]: has the same port and protocol as an earlier entry ([1, "TCP"])',
        ),
        ({"name": "abc\n"}, "name: 'abc\\n' does not match '^[a-z]+$'"),
    ],
)
def test_what_a_schema_refuses(value: dict[str, Any], expected: str) -> None:
    """Unknown fields that would be dropped in silence, and what JSON Schema does not know."""
    assert said(value) == [expected]


def test_defaults_are_filled_in_where_their_object_is() -> None:
    """As API servers do before they evaluate rules; the value itself stays as it was."""
    value = {"map": [{"port": 1}]}
    assert schemas.with_defaults(value, CRD) == {
        "map": [{"port": 1, "protocol": "TCP"}],
        "count": 3,
    }
    assert value == {"map": [{"port": 1}]}


@needs_crds
def test_crds_of_one_group_are_read_together() -> None:
    """By version and kind; a group that is not there has none."""
    found = crds.of_group("leaderworkerset.x-k8s.io")
    assert set(found) == {("v1", "LeaderWorkerSet")}
    assert found["v1", "LeaderWorkerSet"].namespaced
    assert not crds.of_group("kueue.x-k8s.io")["v1beta2", "ClusterQueue"].namespaced
    assert crds.of_group("nobody.example") == {}


def test_without_crds_tests_are_skipped_except_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CI must not pass because it has looked at nothing; the reason says what to set."""
    monkeypatch.setenv("BATON_CRDS", str(tmp_path))
    missing = crds.missing()
    assert missing == (
        f"no CRDs in {tmp_path}: set BATON_CRDS to a folder that holds <project>/<crd>.yaml"
    )
    skipping = mark(missing, ci=False)
    assert (skipping.args, skipping.kwargs) == ((True,), {"reason": missing})
    with pytest.raises(pytest.UsageError, match="set BATON_CRDS"):
        mark(missing, ci=True)
    assert mark(None, ci=True).args == (False,)


# --- spellings ---


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", "1"),
        ("500m", "0.5"),
        ("1.5Gi", "1610612736"),
        ("2e3", "2000"),
        (".5", "0.5"),
        ("1k", "1000"),
        ("100n", "1E-7"),
        (3, "3"),
    ],
)
def test_quantities(text: object, number: str) -> None:
    """As Kubernetes writes amounts, decimal and binary."""
    assert names.quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1gi", "1KB", "0x10", True, None, "1e"])
def test_what_is_no_quantity(text: object) -> None:
    """Near misses of them."""
    assert names.quantity(text) is None


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (names.dns_label, ["a", "0-a", "a" * 63], ["", "A", "-a", "a.b", "a" * 64, "a\n", 1]),
        (names.dns_1035, ["a", "a-0"], ["0a", "a_b", "a-", "a" * 64]),
        (names.dns_subdomain, ["a.b-c", "0"], ["a..b", "a_b", ".", "a" * 254]),
        (names.port_name, ["http", "8080-tcp", "a"], ["HTTP", "80", "a--b", "-a", "a" * 16]),
        (names.port_number, [1, 65535], [0, 65536, "80", True]),
        (names.qualified, ["a", "x.y/A_b.c"], ["", "/a", "X/a", "a/b/c", "a/" + "b" * 64]),
        (names.label_value, ["", "A_1.b"], ["a b", "-a", "a" * 64, None]),
        (names.path_segment, ["shop:reader", "a b"], ["", ".", "a/b", "50%"]),
        (names.count_or_percent, [0, "100%"], [-1, "101%", "1", "1.5%", True]),
    ],
)
def test_spellings(check: Any, good: list[object], bad: list[object]) -> None:
    """What each kind of name takes, and near misses."""
    assert not [value for value in good if check(value)]
    assert not [value for value in bad if not check(value)]


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchLabels": {"index": "0"}}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["2", "1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "index", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors(selector: dict[str, Any], taken: bool) -> None:
    """All terms have to hold; a label whose value only the cluster knows can be any."""
    assert names.matches(selector, {"a": "1"}, frozenset({"index"})) is taken


def test_paths_are_shown_as_api_servers_do() -> None:
    """And read back, for the table of mistakes."""
    path = ("spec", "ports", 0, "a.b/c", "name")
    assert show_path(path) == 'spec.ports[0]["a.b/c"].name'
    assert tuple(keys(show_path(path))) == path
