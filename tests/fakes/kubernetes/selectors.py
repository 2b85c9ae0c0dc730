"""Label and field selectors, as lists, watches and deletions of collections take them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.kubernetes.errors import bad_request

Json = dict[str, Any]

_SET = re.compile(r"^\s*(\S+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([^\s=!]+)\s*(==|=|!=)\s*([^\s=!,]*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([A-Za-z0-9][-A-Za-z0-9_./]*)\s*$")
_COMMA = re.compile(r",(?![^(]*\))")

EVERYWHERE = frozenset({"metadata.name", "metadata.namespace"})
"""Fields that all kinds can be selected by; custom kinds by no others."""

MORE_FIELDS: dict[str, frozenset[str]] = {
    "pods": frozenset({"spec.nodeName", "status.phase", "spec.restartPolicy", "status.podIP"}),
    "events": frozenset(
        {
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "reason",
            "type",
            "reportingComponent",
            "source",
        }
    ),
    "nodes": frozenset({"spec.unschedulable"}),
    "namespaces": frozenset({"status.phase"}),
    "secrets": frozenset({"type"}),
}


@dataclass(frozen=True)
class Term:
    """One condition: a key that is (or with ``negated`` is not) one of ``values``; without
    values, one that is there."""

    key: str
    values: frozenset[str] | None
    negated: bool = False

    def fits(self, found: str | None) -> bool:
        """Whether what was found under the key, None for nothing, meets it."""
        inside = found is not None if self.values is None else found in self.values
        return inside is not self.negated


@dataclass(frozen=True)
class Selection:
    """What of a kind is meant."""

    fields: tuple[Term, ...] = ()
    labels: tuple[Term, ...] = ()

    def fits(self, found: Json) -> bool:
        """Whether an object is."""
        labels: Mapping[str, str] = found["metadata"].get("labels") or {}
        return all(term.fits(labels.get(term.key)) for term in self.labels) and all(
            term.fits(_field(found, term.key)) for term in self.fields
        )


def selection(plural: str, query: Mapping[str, str]) -> Selection:
    """Of a request.

    Raises:
        Refused: 400, a selector cannot be read or selects by a field that the kind has not.
    """
    fields = []
    for term in _terms(query.get("fieldSelector", "")):
        if term.values is None or len(term.values) != 1:
            raise bad_request(f"invalid selector: {query['fieldSelector']!r}")
        if term.key not in EVERYWHERE | MORE_FIELDS.get(plural, frozenset()):
            raise bad_request(f"field label not supported: {term.key}")
        fields.append(term)
    return Selection(tuple(fields), tuple(_terms(query.get("labelSelector", ""))))


def _terms(text: str) -> list[Term]:
    return [_term(part) for part in _COMMA.split(text) if part.strip()]


def _term(part: str) -> Term:
    if match := _SET.match(part):
        key, how, values = match.groups()
        chosen = frozenset(value.strip() for value in values.split(","))
        return Term(key, chosen, negated=how == "notin")
    if match := _EQUAL.match(part):
        key, how, value = match.groups()
        return Term(key, frozenset({value}), negated=how == "!=")
    if match := _EXISTS.match(part):
        return Term(match.group(2), None, negated=bool(match.group(1)))
    raise bad_request(f"unable to parse requirement: {part!r}")


def _field(found: Json, path: str) -> str:
    value: Any = found
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)
