"""What is rendered from the built-in profiles would be taken by a cluster, on every built-in site,
and is what kubectl makes of the files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.types import Role
from deploy.lws.build import build
from deploy.lws.kustomize import write
from deploy.lws.render import builtin_places, pool_objects, render
from deploy.lws.tree import Part, Patch, Target, Tree
from profiles import Mode, ServingProfile, builtin_names, resolve_profile
from tests.manifests import BY_HAND, check
from tests.manifests.needs import needs_crds
from tests.manifests.random_sites import place_with
from tests.manifests.rendered import applied, whole_cluster

PROFILES = {name: resolve_profile(name) for name in builtin_names()}
TREES = [
    *((name, "lws") for name in PROFILES),
    # A DisaggregatedSet has two roles or more.
    *(
        (name, "disaggregatedset")
        for name, profile in PROFILES.items()
        if profile.spec.mode is Mode.DISAGGREGATED
    ),
]
QUEUE = {
    "local_queue": "serving",
    "cluster_queue": "serving",
    "cohort": "all",
    "topology": ["example.com/rack", "kubernetes.io/hostname"],
}
ROUTE = {"gateway_class": "example", "hostname": "llm.shop.example", "tls_secret": "llm-tls"}
ALL_OPTIONS: list[dict[str, Any]] = [
    {
        "queue": QUEUE,
        "dra": True,
        "controller": {},
        "gateway": {"kind": "httproute", **ROUTE},
        "autoscaling": {"kind": "hpa"},
        "monitoring": ["podmonitor", "prometheusrule", "podmonitoring"],
        "weights": {"kind": "gcsfuse", "bucket": "shop-models", "folder": "8b"},
        "image_nodes": {"cloud.google.com/gke-image-streaming": "true"},
    },
    {
        "queue": QUEUE,
        "workload": "disaggregatedset",
        "gateway": {"kind": "inferencepool", **ROUTE},
        "autoscaling": {"kind": "keda", "prometheus_url": "http://prometheus:9090"},
        "weights": {"kind": "nfs", "server": "nas.example", "path": "/models", "folder": "8b"},
        "store": {"kind": "url", "url_secret": "store-url"},
    },
]
KUBECTL = shutil.which("kubectl")


def tree_of(name: str, workload: str) -> Tree:
    return render(PROFILES[name], workload=workload)


@needs_crds
@pytest.mark.parametrize(("name", "workload"), TREES)
def test_every_object_of_every_overlay_would_be_taken(name: str, workload: str) -> None:
    """Schemas, CEL rules, webhooks and references: nothing to complain of."""
    tree = tree_of(name, workload)
    assert set(tree.overlays) == {place.site.name for place in builtin_places()}
    found = {overlay: check(applied(tree, overlay)) for overlay in tree.overlays}
    assert not [f"{overlay}: {one}" for overlay, problems in found.items() for one in problems]


@needs_crds
@pytest.mark.parametrize("name", PROFILES)
def test_the_objects_of_a_pool_of_the_controller_would_be_taken(name: str) -> None:
    """What the controller makes for a pool needs nothing of the tree but what a site has anyway."""
    profile = PROFILES[name]
    there = (*BY_HAND, "Namespace/baton", "ServiceAccount/baton-worker")
    for place in builtin_places():
        for role in profile.spec.pools.by_role:
            made = pool_objects(profile, role, place.site, name=controller_name(role))
            if any(one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for one in made):
                # Such a pool is created once, with replicas to begin with, and not applied again.
                assert made[0]["spec"].pop("replicas") == profile.spec.pools.by_role[role].replicas
            problems = [str(one) for one in check(made, by_hand=there)]
            assert not problems, (place.site.name, role)


def controller_name(role: Role) -> str:
    return f"baton-{role}-01234567"


NOBODY_NAMES = {
    *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "PodMonitoring"),
    *("RoleBinding", "ConfigMap/baton-profiles", "ConfigMap/baton-site", "Service/baton-router"),
    *("Service/baton-router-admin", "Deployment/baton-controller"),
}
"""Kinds and objects that no other object has to name, so that one may be missing unseen."""


@needs_crds
def test_a_missing_object_is_noticed() -> None:
    """Whatever others rely on: without it something refers to nothing."""
    objects = build(tree_of("disaggregated", "lws"), "gke")
    unseen = {
        (str(one["kind"]), f"{one['kind']}/{one['metadata']['name']}")
        for one in objects
        if not check(other for other in objects if other is not one)
    }
    assert not {name for kind, name in unseen if not {kind, name} & NOBODY_NAMES}


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH")
@pytest.mark.parametrize(("name", "workload"), TREES)
def test_kubectl_builds_the_same_from_the_files(name: str, workload: str, tmp_path: Path) -> None:
    """The renderer's own building and kustomize's agree on every object, field by field."""
    tree = tree_of(name, workload)
    write(tree, tmp_path / "tree")
    for overlay in tree.overlays:
        theirs = by_name(kustomized(tmp_path / "tree" / "overlays" / overlay))
        ours = by_name(build(tree, overlay))
        assert theirs.keys() == ours.keys(), overlay
        assert theirs == ours, overlay


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH")
def test_kubectl_builds_every_option_as_we_do(tmp_path: Path) -> None:
    """Also what no built-in site asks for: two sites that have all options between them."""
    profile = resolve_profile("multi-node")
    for number, changes in enumerate(ALL_OPTIONS):
        place = place_with("onprem", **changes)
        tree = render(profile, sites=[place])
        write(tree, tmp_path / str(number))
        for folder, ours in (
            ("overlays", build(tree, "onprem")),
            ("cluster", whole_cluster(tree, "onprem")),
        ):
            theirs = by_name(kustomized(tmp_path / str(number) / folder / "onprem"))
            assert theirs == by_name(ours), (number, folder)


TEXTS = (
    *(
        "04416038",
        "12345678",
        "1234e567",
        "1e3",
        ".5",
        "+1",
        "-7",
        "0x1f",
        "0o17",
        "1_000",
        "12:30",
    ),
    *("~", "null", "true", "False", "y", "N", "on", "Off", "yes", "2026-11-29", ".inf"),
    *(
        "",
        " a",
        "a ",
        "a: b",
        "a #b",
        "- a",
        "[a",
        "{a",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "%a",
        "@a",
        "`a",
    ),
    *("'", '"', "a\nb\n", "a\nb", "\ta", "ä", "\u2028", "0" * 8, "9" * 20, "1.2.3", "0b1"),
)
"""What one reader of YAML or another takes for something else than the text that it is."""


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH")
def test_kubectl_reads_text_as_text(tmp_path: Path) -> None:
    """Keys of pools are hexadecimal digits, and some of those look like numbers."""
    found = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "texts", "labels": {"key": "04416038", "other": "1234e567"}},
        "data": {f"t{number}": text for number, text in enumerate(TEXTS)},
    }
    base = Part(name="base", about="", files={"texts.yaml": [found]})
    overlay = Part(
        name="site",
        about="",
        patches=[
            Patch(
                "As a patch.",
                Target("ConfigMap"),
                [{"op": "add", "path": "/data/last", "value": "0123e4"}],
            )
        ],
    )
    tree = Tree(profile="any", base=base, components={}, overlays={"site": overlay})
    write(tree, tmp_path / "tree")
    assert kustomized(tmp_path / "tree" / "overlays" / "site") == build(tree, "site")


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """What kubectl makes of a folder; it says nothing on the side, such as of old fields."""
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", str(folder)], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return named


def test_profiles_of_both_modes_are_among_them() -> None:
    """Else the tests above would prove less than they say."""
    modes: set[ServingProfile | Mode] = {profile.spec.mode for profile in PROFILES.values()}
    assert modes == set(Mode)
    assert any(
        pool.nodes > 1 for one in PROFILES.values() for pool in one.spec.pools.by_role.values()
    )
