"""What a profile is rendered to: pools, their keys, overlays, and the trees in the repository."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.errors import SettingsError
from baton.types import Role
from deploy.lws import kustomize, labels, names
from deploy.lws.build import build
from deploy.lws.render import Where, place_of, pool_key, pool_objects, render, source_of
from deploy.lws.site import Site, load_site, site_from_text, site_text
from deploy.lws.tree import Json, Tree
from profiles import ServingProfile, builtin_names, parse_profile, resolve_profile

RENDERED = Path(kustomize.__file__).parent / "rendered"


def profile_with(base: str = "disaggregated", **changes: Any) -> ServingProfile:
    """A built-in profile with values changed: ``spec`` fields by dotted names, ``__`` for dots."""
    data = resolve_profile(base).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for path, value in changes.items():
        *above, last = path.split("__")
        section = data["spec"]
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return parse_profile(yaml.safe_dump(data), source="test")


def site_with(base: str, **changes: Any) -> Where:
    """A built-in site with fields of its spec changed."""
    data = yaml.safe_load(site_text(base)[0])
    data["spec"].update(changes)
    text = yaml.safe_dump(data)
    return Where(site_from_text(text, "site"), text)


def built(profile: ServingProfile, place: Where, workload: str | None = None) -> list[Json]:
    return build(render(profile, sites=[place], workload=workload), place.site.name)


def one(objects: list[Json], kind: str, name: str) -> Json:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def lws(objects: list[Json], role: str) -> Json:
    return one(objects, "LeaderWorkerSet", f"baton-{role}")


def pod_of(found: Json) -> Json:
    spec: Json = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    return spec


def env_of(found: Json) -> dict[str, Any]:
    (container,) = pod_of(found)["containers"]
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


@pytest.fixture(scope="module")
def disaggregated() -> Tree:
    return render(resolve_profile("disaggregated"))


@pytest.fixture(scope="module")
def gke(disaggregated: Tree) -> list[Json]:
    return build(disaggregated, "gke")


@pytest.mark.parametrize("name", builtin_names())
def test_what_the_repository_keeps_is_what_is_rendered(name: str) -> None:
    """The trees in deploy/lws/rendered are those of the built-in profiles. If not: render each
    anew with `baton deploy render --profile NAME --out deploy/lws/rendered/NAME`."""
    profile, text = source_of(name)
    assert kustomize.differences(render(profile, text=text), RENDERED / name) == []


def test_the_repository_keeps_no_other_trees() -> None:
    """A profile that is gone takes its tree with it."""
    assert sorted(path.name for path in RENDERED.iterdir()) == sorted(builtin_names())


def test_a_pool_is_what_the_profile_says(gke: list[Json]) -> None:
    """Role by role: accelerator, nodes, devices, image, and how many of them are evicted."""
    for role, card, image in (
        ("prefill", "nvidia-a100-80gb", "worker-gpu"),
        ("decode", "nvidia-l4", "worker-gpu"),
    ):
        found = lws(gke, role)
        pod = pod_of(found)
        (container,) = pod["containers"]
        assert found["spec"]["leaderWorkerTemplate"]["size"] == 1
        assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == card
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert f"/{image}:" in container["image"]
        assert container["command"] == ["python", "-m", role]
        budget = one(gke, "PodDisruptionBudget", f"baton-{role}")
        template = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        assert wanted <= template["metadata"]["labels"].items()


def test_a_standard_pool_runs_the_decode_module() -> None:
    """There is no module of that name: the role is told in a variable."""
    found = lws(built(resolve_profile("standard"), place_of("gke")), "standard")
    assert pod_of(found)["containers"][0]["command"] == ["python", "-m", "decode"]
    assert env_of(found)["BATON_ROLE"] == "standard"


def test_a_group_has_a_pod_per_machine() -> None:
    """Devices are counted per machine; leader and followers have one template, and are made anew
    together, while a pod that is a worker alone is left to the kubelet."""
    objects = built(resolve_profile("multi-node"), place_of("gke"))
    decode, prefill = lws(objects, "decode"), lws(objects, "prefill")
    group = decode["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    assert group["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert prefill["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "None"
    assert "leaderTemplate" not in group
    limits = pod_of(decode)["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "88Gi", "nvidia.com/gpu": "8"}
    ports = {port["name"] for port in pod_of(decode)["containers"][0]["ports"]}
    assert "group" in ports


def test_a_group_wishes_for_one_domain() -> None:
    """Its pods go where others of the same group are; nobody is kept away, and the rollout stays
    as it is. Workers of one pod have nothing to share."""
    objects = built(resolve_profile("multi-node"), place_of("gke"))
    decode, prefill = lws(objects, "decode"), lws(objects, "prefill")
    affinity = pod_of(decode)["affinity"]
    assert affinity.keys() == {"podAffinity"}
    (wish,) = affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    term = wish["podAffinityTerm"]
    assert term["topologyKey"] == "cloud.google.com/gke-nodepool"
    assert term["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/group-key"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.pool_labels("decode").items()
    assert "affinity" not in pod_of(prefill)
    assert decode["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]["maxSurge"] == 1
    assert labels.LWS_EXCLUSIVE_TOPOLOGY not in decode["metadata"]["annotations"]


def test_a_group_has_a_domain_to_itself_where_the_site_says_so() -> None:
    """LeaderWorkerSet then places it; no group more is made in a rollout, which would find no
    domain that is free."""
    place = site_with("onprem", topology_exclusive=True)
    objects = built(resolve_profile("multi-node"), place)
    decode, prefill = lws(objects, "decode"), lws(objects, "prefill")
    rollouts = [one["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
                for one in (decode, prefill)]  # fmt: skip
    assert rollouts == [
        {"maxSurge": 0, "maxUnavailable": 1},
        {"maxSurge": 1, "maxUnavailable": 0},
    ]
    topology = labels.LWS_EXCLUSIVE_TOPOLOGY
    assert decode["metadata"]["annotations"][topology] == "topology.kubernetes.io/rack"
    assert topology not in prefill["metadata"]["annotations"]
    assert "affinity" not in pod_of(decode)


def test_exclusive_placement_needs_a_domain() -> None:
    """Of what else would a group have one to itself."""
    with pytest.raises(SettingsError, match="topology_key: is required with topology_exclusive"):
        site_with("kind-cpu", topology_exclusive=True)


def test_routers_stay_in_the_service() -> None:
    """Without workers as well, and for as long as the site says while they end."""
    profile = profile_with(limits__drain_s=45.5)
    for place, seconds in (
        (place_of("gke"), 5),
        (site_with("gke", routers={"endpoints_s": 40}), 40),
    ):
        pod = one(built(profile, place), "Deployment", "baton-router")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz?workers=0"
        assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": seconds}}
        assert pod["terminationGracePeriodSeconds"] == seconds + 46 + 10


def test_grace_is_longer_than_the_drain() -> None:
    """The kubelet waits for the drain (a prefill worker's with its lease), and for the engine."""
    profile = profile_with(limits__drain_s=45.5, transfer__lease_s=20)
    objects = built(profile, place_of("kind-cpu"))
    for role, drain in (("prefill", 65.5), ("decode", 45.5)):
        pod = pod_of(lws(objects, role))
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "baton.worker.drain", "--limit", f"{drain:g}"]
        assert pod["terminationGracePeriodSeconds"] >= drain + 15
    spec = one(objects, "Deployment", "baton-router")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > 45.5


def test_the_grace_of_roles_is_theirs() -> None:
    """What the roles reckon for themselves is what pods are given."""
    import decode
    import prefill
    from deploy.lws.worker_pod import drain_limit_s

    profile = profile_with(limits__drain_s=12, transfer__lease_s=34)
    assert drain_limit_s(profile, Role.PREFILL) == prefill.drain_limit_s(profile)
    assert drain_limit_s(profile, Role.DECODE) == decode.drain_limit_s(profile)
    assert drain_limit_s(profile, Role.STANDARD) == decode.drain_limit_s(profile)


def test_ports_are_those_of_workers() -> None:
    """What pods open is what workers listen on by themselves."""
    from baton.worker.group import GROUP_PORT, HEALTH_PORT

    assert (names.HEALTH_PORT, names.GROUP_PORT) == (HEALTH_PORT, GROUP_PORT)


def test_start_up_may_take_as_long_as_the_site_says() -> None:
    """The probe's period times its failures covers the limit, and no more than a period above."""
    found = lws(built(profile_with(), site_with("kind-cpu", startup_limit_s=95)), "decode")
    probe = pod_of(found)["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 100


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def test_worker_variables_are_known_to_workers() -> None:
    """Every BATON_ variable in a pod is read by the code that it starts."""
    top = RENDERED.parents[2]
    code = "\n".join(
        path.read_text("utf-8")
        for package in ("baton", "decode", "router")
        for path in (top / package).rglob("*.py")
    )
    tree = render(resolve_profile("multi-node"))
    for overlay in tree.overlays:
        for found in build(tree, overlay):
            for text in _strings(found):
                if re.fullmatch(r"BATON_[A-Z_]+", text):
                    assert f'"{text}"' in code, text


def test_nothing_secret_and_nothing_unpinned(disaggregated: Tree) -> None:
    """A tree holds no Secret, and no image that would be another one tomorrow."""
    for overlay in disaggregated.overlays:
        objects = build(disaggregated, overlay)
        assert not [found for found in objects if found["kind"] == "Secret"]
        for found in objects:
            for text in _images(found):
                assert re.search(r":[0-9][\w.-]*$", text), text


def _images(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "image" and isinstance(inner, str):
                yield inner
            yield from _images(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _images(inner)


def test_only_routers_reach_workers(gke: list[Json]) -> None:
    """Everything is denied; routers have the engine's port, and workers each other's all."""
    deny = one(gke, "NetworkPolicy", "baton-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress"]}
    from_routers, from_workers, from_prometheus = one(gke, "NetworkPolicy", "baton-workers")[
        "spec"
    ]["ingress"]
    (peer,) = from_routers["from"]
    assert peer["podSelector"]["matchLabels"][labels.COMPONENT] == "router"
    assert from_routers["ports"] == [{"port": "http"}]
    (peer,) = from_workers["from"]
    assert peer["podSelector"]["matchExpressions"][0]["key"] == labels.ROLE
    assert "ports" not in from_workers
    assert {"namespaceSelector"} == {key for peer in from_prometheus["from"] for key in peer}


def test_exact_prefixes_let_routers_hear_events() -> None:
    """Where engines publish their caches, routers reach the ports that they do it on."""
    objects = built(profile_with(routing__prefix="exact"), place_of("kind-cpu"))
    ports = pod_of(lws(objects, "decode"))["containers"][0]["ports"]
    assert {"name": "kv-events", "containerPort": 5700} in ports
    rules = one(objects, "NetworkPolicy", "baton-workers")["spec"]["ingress"]
    assert [{"port": "kv-events"}, {"port": "kv-replay"}] in [r.get("ports") for r in rules]


def test_workers_get_no_token_of_the_cluster(gke: list[Json]) -> None:
    """They have no business with the Kubernetes API; routers read one ConfigMap."""
    assert pod_of(lws(gke, "decode"))["automountServiceAccountToken"] is False
    assert one(gke, "ServiceAccount", "baton-worker")["automountServiceAccountToken"] is False
    roles = [o["metadata"]["name"] for o in gke if o["kind"] == "Role"]
    assert sorted(roles) == ["baton-controller", "baton-router"]
    assert not [found for found in gke if found["kind"].startswith("ClusterRole")]


def test_routers_follow_what_the_controller_says() -> None:
    """With a controller they start from what serves; without one, from what operators edit."""
    for place, name in (
        (site_with("kind-cpu"), names.PROFILES),
        (site_with("kind-cpu", controller={}), names.ACTIVE),
    ):
        objects = built(profile_with(), place)
        router = one(objects, "Deployment", "baton-router")
        env = router["spec"]["template"]["spec"]["containers"][0]["env"]
        assert {"name": "BATON_PROFILES", "value": f"configmap:{name}"} in env
        role = one(objects, "Role", "baton-router")
        assert [rule.get("resourceNames") for rule in role["rules"]] == [
            [name],
            [f"{name}-status"],
            None,
        ]
        assert ("baton-site" in {o["metadata"]["name"] for o in objects}) is (name == names.ACTIVE)


def test_the_controller_gets_the_site_as_it_is_written() -> None:
    """Comments and all: what an operator sees in the cluster is what is in Git."""
    place = place_of("gke")
    text = one(built(profile_with(), place), "ConfigMap", "baton-site")["data"]["site.yaml"]
    assert text == place.text
    assert site_from_text(text, "configmap") == place.site


def test_a_store_of_the_sites_own() -> None:
    """A URL stands in the variables; one with a password comes from a Secret. No Redis is made."""
    url = {"kind": "url", "url": "rediss://redis.shared:6380/1"}
    secret = {"kind": "url", "url_secret": "store"}
    reference = {"secretKeyRef": {"name": "store", "key": "url"}}
    for store, value in ((url, "rediss://redis.shared:6380/1"), (secret, reference)):
        objects = built(profile_with(), site_with("kind-cpu", store=store))
        assert env_of(lws(objects, "decode"))["BATON_REGISTRY"] == value
        router = one(objects, "Deployment", "baton-router")["spec"]["template"]["spec"]
        found = {
            v["name"]: v.get("value", v.get("valueFrom")) for v in router["containers"][0]["env"]
        }
        assert found["BATON_STORE"] == value
        assert "baton-store" not in {o["metadata"]["name"] for o in objects}


def test_the_demo_model_is_made_once() -> None:
    """One pod makes it, all workers fetch that one; a profile of another model has no such pod,
    unless the site wants the demo model whatever the profile says."""
    real = profile_with(model__source="owner/name")
    for profile, place, made in (
        (profile_with(), "gke", True),
        (real, "gke", False),
        (real, "kind-cpu", True),
    ):
        objects = built(profile, place_of(place))
        there = "baton-demo-model" in {o["metadata"]["name"] for o in objects}
        assert there is made
        pod = pod_of(lws(objects, "decode"))
        assert ("initContainers" in pod) is made
        env = env_of(lws(objects, "decode"))
        assert env.get("BATON_MODEL") == ("/models/demo" if made else None)
        if made:
            assert env["BATON_SERVED_NAME"] == profile.served_name


def test_a_small_site_has_smaller_workers() -> None:
    """On a cluster for trying, a worker of many ranks has one per machine, in the workers' profile
    and in the routers'; elsewhere the profile is as it is written."""
    profile, text = source_of("multi-node")
    tree = render(profile, text=text)
    for overlay, ranks, length in (("kind-cpu", 2, None), ("gke", 16, 32_768)):
        objects = build(tree, overlay)
        data = one(objects, "ConfigMap", "baton-profiles")["data"]
        seen = parse_profile(data["multi-node.yaml"], source="seen")
        assert seen.spec.pools.by_role[Role.DECODE].tensor_parallel == ranks
        assert seen.spec.pools.by_role[Role.DECODE].nodes == 2
        assert seen.spec.model.max_model_len == length
        assert (data["multi-node.yaml"] == text) is (overlay == "gke")
        key = lws(objects, "decode")["metadata"]["labels"][labels.POOL]
        engine = one(objects, "ConfigMap", f"baton-decode-{key}")["data"]["profile.yaml"]
        assert parse_profile(engine, source="engine").version == seen.version


def key(profile: ServingProfile, role: Role = Role.DECODE, site: Site | None = None) -> str:
    return pool_key(profile, role, site or load_site("gke"))


@pytest.mark.parametrize(
    "changes",
    [
        {"classify__threshold_tokens": 7},
        {"pools__decode__replicas": 9},
        {"pools__decode__price_per_hour": 3.5},
        {"pools__decode__takes": []},
        {"slo__ttft_s": 1},
        {"routing__picker": "power_of_two"},
        {"switch__hold_s": 5},
        {"pools__prefill__max_num_seqs": 3},
    ],
)
def test_what_routers_decide_leaves_the_pool_alone(changes: dict[str, Any]) -> None:
    """Profiles that differ in what engines never see share their pods: nothing restarts."""
    other = profile_with(**changes)
    assert other.version != profile_with().version
    assert key(other) == key(profile_with())


@pytest.mark.parametrize(
    "changes",
    [
        {"pools__decode__max_num_seqs": 3},
        {"pools__decode__engine_args": {"seed": 1}},
        {"pools__decode__accelerator": "cpu"},
        {"pools__decode__tensor_parallel": 2},
        {"model__max_model_len": 4096},
        {"transfer__block_size": 128},
        {"routing__prefix": "exact"},
        {"limits__drain_s": 31},
    ],
)
def test_what_engines_see_makes_another_pool(changes: dict[str, Any]) -> None:
    """Another engine setting means other pods, and so another key."""
    assert key(profile_with(**changes)) != key(profile_with())


def test_a_key_depends_on_the_site_and_the_role() -> None:
    """Another image is another pool; what concerns routers alone is not."""
    profile, base = profile_with(), load_site("gke")
    images = yaml.safe_load(site_text("gke")[0])["spec"]["images"]
    newer = {**images, "worker_gpu": "registry.example/baton/worker-gpu:9"}
    assert key(profile, site=site_with("gke", images=newer).site) != key(profile, site=base)
    newer = {**images, "router": "registry.example/baton/router:9"}
    assert key(profile, site=site_with("gke", images=newer).site) == key(profile, site=base)
    assert key(profile, Role.PREFILL) != key(profile)
    assert re.fullmatch(r"[a-f][0-9a-f]{7}", key(profile))


@pytest.mark.parametrize("site", ["gke", "onprem", "kind-cpu"])
def test_the_controller_makes_what_git_holds(site: str) -> None:
    """A pool's objects are those of the overlay, so that either side can take over the other's."""
    profile, place = profile_with(), place_of(site)
    objects = built(profile, place)
    for role in profile.spec.pools.by_role:
        made = pool_objects(profile, role, place.site, name=f"baton-{role}")
        assert made[0] == lws(objects, role.value)
        assert all(found in objects for found in made)
        kinds = [found["kind"] for found in made]
        scaled = [] if site == "kind-cpu" else ["HorizontalPodAutoscaler"]
        assert kinds == ["LeaderWorkerSet", "ConfigMap", "PodDisruptionBudget", *scaled]


def test_a_pool_under_another_name() -> None:
    """Its objects are called by it and name each other by it; nothing else about them differs."""
    profile, site = profile_with(), site_with("gke", dra=True).site
    name = "baton-decode-0123abcd"
    plain = pool_objects(profile, Role.DECODE, site, name="baton-decode")
    other = pool_objects(profile, Role.DECODE, site, name=name)
    by_kind = {found["kind"]: found for found in other}
    assert by_kind["LeaderWorkerSet"]["metadata"]["name"] == name
    assert by_kind["LeaderWorkerSet"]["spec"]["replicas"] == 2
    assert "replicas" not in plain[0]["spec"]
    assert by_kind["PodDisruptionBudget"]["metadata"]["name"] == name
    assert by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    claims = by_kind["ResourceClaimTemplate"]["metadata"]["name"]
    assert claims.startswith(f"{name}-")
    pod = pod_of(by_kind["LeaderWorkerSet"])
    assert pod["resourceClaims"][0]["resourceClaimTemplateName"] == claims
    config = by_kind["ConfigMap"]["metadata"]["name"]
    assert pod["volumes"][0]["configMap"]["name"] == config
    assert config in {found["metadata"]["name"] for found in plain}
    keys = [found[0]["metadata"]["labels"][labels.POOL] for found in (plain, other)]
    assert keys[0] == keys[1]


def test_a_name_that_is_too_long_is_refused() -> None:
    """LeaderWorkerSet makes longer names from it, Kueue still longer ones."""
    site = load_site("kind-cpu")
    with pytest.raises(SettingsError, match=r"has 52 characters.* may have 51"):
        pool_objects(profile_with(), Role.DECODE, site, name="b" * 52)
    queued = site_with("kind-cpu", queue={"local_queue": "q"}).site
    with pytest.raises(SettingsError, match="may have 39, because Kueue"):
        pool_objects(profile_with(), Role.DECODE, queued, name="b" * 40)


def test_one_disaggregated_set() -> None:
    """Its roles are the pools with everything that the site makes of them, and no
    LeaderWorkerSet is left; nor a controller, which would make the pools a second time."""
    profile = profile_with()
    plain = built(profile, site_with("gke", controller=None))
    objects = built(profile, place_of("gke"), "disaggregatedset")
    assert not [found for found in objects if found["kind"] == "LeaderWorkerSet"]
    roles = one(objects, "DisaggregatedSet", "baton")["spec"]["roles"]
    assert [role["name"] for role in roles] == ["prefill", "decode"]
    for role in roles:
        pool = copy.deepcopy(lws(plain, role["name"]))
        assert role["spec"] == pool["spec"]
        assert role["metadata"]["labels"] == pool["metadata"]["labels"]
    rest = {(o["kind"], o["metadata"]["name"]) for o in plain if o["kind"] != "LeaderWorkerSet"}
    assert {(o["kind"], o["metadata"]["name"]) for o in objects} - {
        ("DisaggregatedSet", "baton")
    } == rest


def test_a_set_has_two_roles_or_more() -> None:
    """A profile with one pool cannot be a set; asked for by a site it gets what it can have."""
    profile = resolve_profile("standard")
    with pytest.raises(SettingsError, match="--controller lws"):
        render(profile, workload="disaggregatedset")
    objects = built(profile, site_with("gke", workload="disaggregatedset"))
    assert lws(objects, "standard")


def test_sites_that_disagree_share_no_tree() -> None:
    """One base holds one kind of pools."""
    places = [place_of("gke"), site_with("onprem", workload="disaggregatedset")]
    with pytest.raises(SettingsError, match="folders of their own"):
        render(profile_with(), sites=places)
    with pytest.raises(SettingsError, match="is no workload"):
        render(profile_with(), workload="deployment")


def test_what_a_site_cannot_serve_is_refused() -> None:
    """RDMA without a network, a folder that no pod has, an accelerator that is not there."""
    with pytest.raises(SettingsError, match=r"no spec\.rdma"):
        built(profile_with(transfer__transport="rdma"), place_of("gke"))
    with pytest.raises(SettingsError, match=r"spec\.weights of site 'gke'"):
        built(profile_with(model__source="/data/model"), place_of("gke"))
    with pytest.raises(SettingsError, match="it knows cpu"):
        built(profile_with(pools__decode__accelerator="tpu-v9"), place_of("onprem"))


def test_components_are_shared_where_they_are_the_same(disaggregated: Tree) -> None:
    """One folder for all sites that mean the same; names of their own where they do not."""
    assert "redis" in disaggregated.components
    assert {"nodes-gke", "nodes-onprem", "nodes-kind-cpu"} <= set(disaggregated.components)
    assert {"hpa-gke", "hpa-onprem"} <= set(disaggregated.components)
    for overlay in disaggregated.overlays.values():
        assert set(overlay.components) <= set(disaggregated.components)
    taken = {name for part in disaggregated.overlays.values() for name in part.components}
    assert taken == set(disaggregated.components)


def test_another_namespace_reaches_everything() -> None:
    """Objects, bindings and queues are in the site's namespace, and nothing in another."""
    objects = built(profile_with(), site_with("gke", namespace="serving"))
    for found in objects:
        if found["kind"] != "Namespace":
            assert found["metadata"]["namespace"] == "serving"
        for subject in found.get("subjects", []):
            assert subject["namespace"] == "serving"
