"""Any valid profile on any sound site renders to what a cluster would take: each choice of a site
alone, and a hundred random profiles on random sites."""

from __future__ import annotations

import random
from typing import Any

import pytest

from deploy.lws.options import OPTIONS, chosen
from deploy.lws.render import Where, render
from deploy.lws.site import SiteSpec
from profiles import Mode, ServingProfile, SourceKind, Transport, resolve_profile
from tests.manifests import BY_HAND, check
from tests.manifests.needs import needs_crds
from tests.manifests.random_profiles import valid_profiles
from tests.manifests.random_sites import CHOICES, FIXED, each_choice, place_with, random_place
from tests.manifests.rendered import applied

pytestmark = needs_crds

COUNT, SEED = 100, 20261129
CHUNK = 10
EACH = each_choice()
PROFILES = [*map(resolve_profile, ("disaggregated", "multi-node", "standard"))]


def over_rdma() -> ServingProfile:
    """A built-in profile that names the transport, which none of them does."""
    data = resolve_profile("disaggregated").model_dump(mode="json", by_alias=True)
    data["spec"]["transfer"]["transport"] = "rdma"
    return ServingProfile.model_validate(data)


def problems(profile: ServingProfile, place: Where) -> list[str]:
    """What a cluster would refuse of a profile on a site; what the site says is there, is there."""
    tree = render(profile, sites=[place])
    queue = place.site.spec.queue
    there = list(BY_HAND)
    if queue is not None and queue.cluster_queue is None:
        there.append(f"LocalQueue/{queue.local_queue}")
    return [str(one) for one in check(applied(tree, place.site.name), by_hand=there)]


def place_for(profile: ServingProfile, rng: random.Random) -> Where:
    """A random site that can serve a profile."""
    always: dict[str, Any] = {}
    if profile.spec.transfer.transport is Transport.RDMA:
        always["rdma"] = rng.choice(CHOICES["rdma"])
    if profile.spec.model.kind is SourceKind.FOLDER:
        # Only a volume has the folder.
        has = [one for one in CHOICES["weights"] if "folder" in one or "reference" in one]
        always["weights"] = rng.choice(has)
    if profile.spec.mode is Mode.STANDARD:
        always["workload"] = "lws"
    return random_place(rng, **always)


@pytest.mark.parametrize(
    ("name", "base", "value"), EACH, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(EACH)]
)
def test_each_choice_of_a_site_alone_would_be_taken(name: str, base: str, value: Any) -> None:
    """On a site that is otherwise as it comes with Baton."""
    place = place_with(base, **{name: value})
    for profile in [over_rdma()] if name == "rdma" else PROFILES:
        if not (profile.spec.mode is Mode.STANDARD and place.site.spec.workload != "lws"):
            assert problems(profile, place) == [], (base, profile.name)


@pytest.mark.parametrize("start", range(0, COUNT, CHUNK))
def test_random_profiles_on_random_sites_would_be_taken(start: int) -> None:
    """Each of them is valid, renders, and has nothing that a cluster would refuse."""
    for number, profile in enumerate(valid_profiles(COUNT, SEED)[start : start + CHUNK], start):
        place = place_for(profile, random.Random(f"{SEED}-{number}"))
        assert problems(profile, place) == [], f"{profile.name} on\n{place.text}"


def test_the_random_profiles_are_of_all_kinds() -> None:
    """A hundred different ones, of both modes, with groups, RDMA, and every source of a model."""
    profiles = valid_profiles(COUNT, SEED)
    pools = [pool for one in profiles for pool in one.spec.pools.by_role.values()]
    assert len({one.version for one in profiles}) == COUNT
    assert {one.spec.mode for one in profiles} == set(Mode)
    assert {one.spec.transfer.transport for one in profiles} == set(Transport)
    assert {one.spec.model.kind for one in profiles} == set(SourceKind)
    assert {pool.nodes for pool in pools} >= {1, 2, 4}
    assert any(pool.pipeline_parallel > 1 for pool in pools)
    assert any(pool.engine_args for pool in pools)


def test_every_option_is_tried() -> None:
    """Each of them alone is some choice of the sites above, with one of the profiles."""
    sites = [place_with(base, **{name: value}).site for name, base, value in EACH]
    profiles = (*PROFILES, over_rdma())
    tried = {option for site in sites for profile in profiles for option in chosen(profile, site)}
    assert tried == OPTIONS.keys()


def test_every_field_of_a_site_is_tried() -> None:
    """A new field has to be given values here, or a reason why it needs none."""
    assert set(SiteSpec.model_fields) == CHOICES.keys() | FIXED
