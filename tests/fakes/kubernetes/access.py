"""Who may do what: everything but what a test denied, asked for by deed or by a review."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.fakes.kubernetes.kinds import VERBS, Row

Json = dict[str, Any]

REVIEWS = ("selfsubjectaccessreviews", "selfsubjectrulesreviews")
NOBODY = "fake-nobody"
"""The token of somebody who is known and may do nothing: of every service account."""

REVIEW_PATH = "/apis/authorization.k8s.io/v1/"


class Access:
    """What is denied.

    Rules are by verb and resource (``plural`` or ``plural/part``; ``*`` for all of either), and
    where they have a namespace for it alone.
    """

    def __init__(self) -> None:
        self._denied: set[tuple[str, str, str]] = set()

    def deny(self, verb: str, resource: str, namespace: str = "") -> None:
        """403 from now on."""
        self._denied.add((verb, resource, namespace))

    def allow(self, verb: str, resource: str, namespace: str = "") -> None:
        """Takes a ``deny`` back."""
        self._denied.discard((verb, resource, namespace))

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether it is allowed; a namespace that is denied is not denied across all of them."""
        return not any(
            (one, of, where) in self._denied
            for one in (verb, "*")
            for of in (resource, "*")
            for where in {namespace, ""}
        )

    def review(self, plural: str, body: Json, rows: Iterable[Row]) -> Json:
        """The answer to a SelfSubjectAccessReview or a SelfSubjectRulesReview."""
        spec = body.get("spec") or {}
        if plural == REVIEWS[0]:
            wanted = spec.get("resourceAttributes")
            allowed = True
            if wanted:
                part = wanted.get("subresource")
                resource = wanted.get("resource", "") + (f"/{part}" if part else "")
                allowed = self.may(wanted.get("verb", ""), resource, wanted.get("namespace", ""))
            status: Json = {"allowed": allowed}
            kind = "SelfSubjectAccessReview"
        else:
            namespace = spec.get("namespace", "")
            rules = [rule for row in rows for rule in self._rules(row, namespace)]
            status = {"resourceRules": rules, "nonResourceRules": [], "incomplete": False}
            kind = "SelfSubjectRulesReview"
        return {
            "kind": kind,
            "apiVersion": "authorization.k8s.io/v1",
            "metadata": {},
            "spec": spec,
            "status": status,
        }

    def _rules(self, row: Row, namespace: str) -> Iterable[Json]:
        parts = (f"{row.plural}/{part}" for part in row.subresources)
        for resource in (row.plural, *parts):
            verbs = [verb for verb in VERBS if self.may(verb, resource, namespace)]
            if verbs:
                yield {"verbs": verbs, "apiGroups": [row.group], "resources": [resource]}
