"""Who reaches whom under network policies, over the small set written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.manifests import World
from tests.manifests.examples import sound
from tests.manifests.findings import Json
from tests.manifests.reach import Outsider, Source, reaches
from tests.manifests.world import Pods

STRANGER = Outsider("elsewhere")


def world(change: Callable[[Json], object] = lambda spec: None) -> World:
    objects = sound()
    (policy,) = (one for one in objects if one["kind"] == "NetworkPolicy")
    change(policy["spec"])
    return World(objects)


def pods(given: World, app: str) -> Pods:
    return next(one for one in given.pods if one.template.labels.get("app") == app)


@pytest.mark.parametrize(
    ("source", "target", "port", "taken"),
    [
        ("web", "group", 8100, True),  # by its name
        ("web", "group", 5601, True),  # within a range
        ("web", "group", 5602, False),
        ("pair", "group", 8100, False),  # no rule names it
        (None, "group", 8100, False),
        ("pair", "web", 8000, True),  # no policy selects web
        (None, "web", 8000, True),
        ("group", "web", 8000, False),  # its own policy lets it out to addresses only
    ],
)
def test_policies_decide_by_source_target_and_port(
    source: str | None, target: str, port: int, taken: bool
) -> None:
    """Both ends count: who is let in, and who is let out."""
    given = world()
    other: Source = pods(given, source) if source else STRANGER
    assert reaches(given, other, pods(given, target), port) is taken


def test_a_namespace_is_let_in_by_its_name() -> None:
    """And with a pod selector beside it, those of its pods only."""
    peer: Json = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}
    }
    given = world(lambda spec: spec["ingress"][0].update({"from": [peer]}))
    assert reaches(given, STRANGER, pods(given, "group"), 8100)
    assert not reaches(given, Outsider("nowhere"), pods(given, "group"), 8100)
    peer["podSelector"] = {"matchLabels": {"app": "collector"}}
    given = world(lambda spec: spec["ingress"][0].update({"from": [peer]}))
    assert not reaches(given, STRANGER, pods(given, "group"), 8100)


def test_a_rule_without_peers_or_ports_lets_everybody_in() -> None:
    """An empty list of rules, nobody."""
    given = world(lambda spec: spec.update(ingress=[{}]))
    assert reaches(given, STRANGER, pods(given, "group"), 1)
    given = world(lambda spec: spec.update(ingress=[]))
    assert not reaches(given, pods(given, "web"), pods(given, "group"), 8100)
