"""Network policies as rendered: only routers reach workers, only workers reach side channels."""

from __future__ import annotations

import functools

import pytest

from deploy.lws.build import build
from deploy.lws.render import builtin_places, render
from profiles import Mode, resolve_profile
from tests.manifests import World
from tests.manifests.needs import needs_crds
from tests.manifests.reach import Outsider, Source, reaches
from tests.manifests.world import Pods

pytestmark = needs_crds

ROUTER, ADMIN, HTTP, HEALTH, SIDE, GROUP, STORE = 8000, 8001, 8100, 8180, 5600, 29500, 6379
STRANGER = Outsider("somewhere")
CASES = [
    (profile, place.site.name, workload)
    for profile, workload in (
        ("disaggregated", "lws"),
        ("disaggregated", "disaggregatedset"),
        ("multi-node", "lws"),
        ("standard", "lws"),
    )
    for place in builtin_places()
]


@functools.cache
def rendered(profile: str, site: str, workload: str) -> World:
    tree = render(resolve_profile(profile), workload=workload)
    return World(build(tree, site))


def of(world: World, component: str) -> list[Pods]:
    label = "app.kubernetes.io/component"
    return [one for one in world.pods if one.template.labels.get(label) == component]


def workers(world: World) -> list[Pods]:
    found = [one for one in world.pods if "baton.serving/role" in one.template.labels]
    assert found
    return found


def let_through(world: World, sources: list[Pods], targets: list[Pods], port: int) -> set[bool]:
    return {reaches(world, source, target, port) for source in sources for target in targets}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_routers_reach_workers_by_http_and_nobody_else_does(case: tuple[str, str, str]) -> None:
    """Not the store, not pods of other namespaces; and routers reach nothing else of a worker."""
    world = rendered(*case)
    routers, all_workers = of(world, "router"), workers(world)
    assert let_through(world, routers, all_workers, HTTP) == {True}
    for port in (SIDE, GROUP):
        assert let_through(world, routers, all_workers, port) == {False}
    others: list[Source] = [STRANGER, *of(world, "store")]
    for source in others:
        for port in (HTTP, HEALTH, SIDE, GROUP):
            assert not any(reaches(world, source, worker, port) for worker in all_workers)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_workers_reach_each_others_side_channels_and_groups(case: tuple[str, str, str]) -> None:
    """Handoffs go from any worker to any other, and ranks of a group meet."""
    world = rendered(*case)
    for port in (SIDE, GROUP):
        assert let_through(world, workers(world), workers(world), port) == {True}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_clients_reach_routers_and_not_their_admin_port(case: tuple[str, str, str]) -> None:
    """Anybody may ask; only the controller, where there is one, may switch."""
    world = rendered(*case)
    routers = of(world, "router")
    assert routers
    assert all(reaches(world, STRANGER, router, ROUTER) for router in routers)
    assert not any(reaches(world, STRANGER, router, ADMIN) for router in routers)
    assert let_through(world, workers(world), routers, ADMIN) == {False}
    assert let_through(world, of(world, "controller"), routers, ADMIN) <= {True}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_only_batons_own_pods_reach_the_store(case: tuple[str, str, str]) -> None:
    """Workers register there, and routers read it."""
    world = rendered(*case)
    stores = of(world, "store")
    assert stores
    assert let_through(world, [*workers(world), *of(world, "router")], stores, STORE) == {True}
    assert not any(reaches(world, STRANGER, store, STORE) for store in stores)


def test_collectors_read_metrics_where_a_site_says_so() -> None:
    """Prometheus of a namespace that the site names, and no port beside that of metrics."""
    world = rendered("disaggregated", "onprem", "lws")
    collector = Outsider("monitoring")
    assert all(reaches(world, collector, worker, HTTP) for worker in workers(world))
    assert not any(reaches(world, collector, worker, SIDE) for worker in workers(world))


def test_the_cases_are_of_both_modes() -> None:
    """Else less would be shown than it seems."""
    assert {resolve_profile(profile).spec.mode for profile, _, _ in CASES} == set(Mode)
