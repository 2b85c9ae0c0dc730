"""From a serving profile to the tree of one kustomize folder: base, components, one overlay a site.

It decides which parts there are and in which order overlays take them. What is in them is the
parts' own business; nothing is written and no cluster is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from baton.errors import SettingsError
from baton.types import Role
from deploy.lws import control, labels, names, pools
from deploy.lws.base import base
from deploy.lws.build import build_part
from deploy.lws.demo_model import demo_model, is_demo
from deploy.lws.disaggregated import as_set
from deploy.lws.fitting import fitted
from deploy.lws.nodes import nodes
from deploy.lws.options import CLUSTER, OPTIONS
from deploy.lws.patches import add, escaped, pool_target, replace
from deploy.lws.site import Site, builtin_sites, load_site, site_text
from deploy.lws.site_sections import HubWeights
from deploy.lws.store import redis
from deploy.lws.tree import Json, Part, Patch, Target, Tree
from profiles import ServingProfile, SourceKind, Transport, resolve_profile

_POD = "/spec/leaderWorkerTemplate/workerTemplate"

_OWN: Mapping[str, Callable[[ServingProfile, Site], Part | None]] = {
    "redis": lambda _, site: redis(site),
    "demo-model": demo_model,
    "controller": control.controller,
    "nodes": nodes,
}
"""Parts that come before the options, in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """A site, and its text as a person wrote it."""

    site: Site
    text: str


def builtin_places() -> tuple[Where, ...]:
    """The sites that come with Baton, in the order of the alphabet."""
    return tuple(place_of(name) for name in builtin_sites())


def place_of(ref: str) -> Where:
    """A built-in site by name, or one from a file.

    Raises:
        SettingsError: no such site, or the file is not a sound one.
    """
    text, _ = site_text(ref)
    return Where(load_site(ref), text)


def source_of(name: str) -> tuple[ServingProfile, str]:
    """A profile by name or file, and its text as a person wrote it, comments and all.

    Raises:
        ProfileError: no such profile, or the file is not a sound one.
    """
    found = resolve_profile(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        return found, Path(name).expanduser().read_text("utf-8")
    return found, (resources.files("profiles") / "builtin" / f"{name}.yaml").read_text("utf-8")


def render(
    profile: ServingProfile,
    *,
    sites: Sequence[Where] | None = None,
    workload: str | None = None,
    text: str | None = None,
) -> Tree:
    """The tree of a profile.

    Args:
        profile: what is rendered.
        sites: an overlay each; the built-in ones if None.
        workload: ``lws`` or ``disaggregatedset``, instead of what sites say. A profile with one
            pool has LeaderWorkerSets where only sites ask for a set.
        text: the profile as a person wrote it; made from the profile if None.

    Raises:
        SettingsError: a site cannot serve this profile, or sites disagree about the workload.
    """
    places = [_with_workload(place, workload) for place in sites or builtin_places()]
    kinds = {place.site.spec.workload for place in places}
    if len(kinds) > 1:
        raise SettingsError(
            "these sites disagree about workload (lws or disaggregatedset), and share one base; "
            "render them into folders of their own, or say --controller"
        )
    own = {place.site.name: fitted(profile, place.site) for place in places}
    parts = _shared({p.site.name: _parts(own[p.site.name], p.site) for p in places})
    components = {part.name: part for found in parts.values() for part in found}
    overlays = {
        place.site.name: _overlay(place, [part.name for part in parts[place.site.name]])
        for place in places
    }
    top = base(profile, text or pools.profile_text(profile))
    cluster = {place.site.name: _cluster(profile, place.site) for place in places}
    whole = {name: part for name, part in cluster.items() if part is not None}
    tree = Tree(profile.name, top, dict(sorted(components.items())), overlays, whole)
    # Keys need LeaderWorkerSets, which a set is made from afterwards.
    tree = dataclasses.replace(
        tree,
        overlays={
            name: _fitting(profile, own[name], _keyed(own[name], tree, overlay))
            for name, overlay in overlays.items()
        },
    )
    in_set = kinds == {"disaggregatedset"} and (workload or len(profile.spec.pools.by_role) > 1)
    return as_set(tree) if in_set else tree


def pool_key(profile: ServingProfile, role: Role, site: Site) -> str:
    """8 hex digits over all that shapes the pods of a pool on a site.

    Profiles that differ only in what routers do have the same: such a switch needs no new pool.

    Raises:
        SettingsError: the site cannot serve this profile.
    """
    found = pool_objects(profile, role, site, name=names.pool_name(role))
    return str(found[0]["metadata"]["labels"][labels.POOL])


def pool_objects(profile: ServingProfile, role: Role, site: Site, *, name: str) -> list[Json]:
    """The objects of one pool under a name: LeaderWorkerSet first, then the profile's ConfigMap,
    the PodDisruptionBudget, and what the site adds, such as an autoscaler. They are those of the
    site's overlay, but for the name; and a pool of another name always has replicas, which Git
    leaves to an autoscaler where there is one.

    Raises:
        SettingsError: the site cannot serve this profile, or the name is too long.
    """
    names.check_lws_name(name, kueue=site.spec.queue is not None)
    tree = render(profile, sites=[Where(site, "")], workload="lws")
    found = build_part(tree, tree.overlays[site.name])
    made = pools.renamed(pools.of_pool(found, role), names.pool_name(role), name)
    if name != names.pool_name(role):
        # Made once and not applied again: it has to begin with what the profile says.
        spec = made[0]["spec"]
        made[0]["spec"] = {"replicas": profile.spec.pools.by_role[role].replicas, **spec}
    return made


def _cluster(profile: ServingProfile, site: Site) -> Part | None:
    """What a site's options need of the whole cluster, as one part; None if nothing."""
    made = (option(profile, site) for option in CLUSTER.values())
    found = [part for part in made if part is not None]
    if not found:
        return None
    files = {name: objects for part in found for name, objects in part.files.items()}
    return Part(site.name, "\n".join(part.about for part in found), files)


def _with_workload(place: Where, workload: str | None) -> Where:
    """The site with another workload, and without the controller where that has none."""
    workload = workload or place.site.spec.workload
    if workload not in ("lws", "disaggregatedset"):
        raise SettingsError(f"{workload!r} is no workload; it is lws or disaggregatedset")
    changes: Json = {"workload": workload}
    if workload != "lws":
        changes["controller"] = None
    spec = place.site.spec.model_copy(update=changes)
    return Where(place.site.model_copy(update={"spec": spec}), place.text)


def _parts(profile: ServingProfile, site: Site) -> list[Part]:
    """The components of a site, in the order in which its overlay takes them."""
    _check(profile, site)
    # Options see LeaderWorkerSets: a set is made of them at the end.
    plain = _with_workload(Where(site, ""), "lws").site
    found = [make(profile, site) for make in _OWN.values()]
    found += [option(profile, plain) for option in OPTIONS.values()]
    return [part for part in found if part is not None]


def _check(profile: ServingProfile, site: Site) -> None:
    """What a site and a profile must agree on before anything is made."""
    spec = site.spec
    if profile.spec.transfer.transport is Transport.RDMA and spec.rdma is None:
        raise SettingsError(
            f"profile {profile.name!r} hands KV caches over by rdma, and site {site.name!r} has "
            "no spec.rdma that says how pods get at it"
        )
    weights = spec.weights
    if (
        isinstance(weights, HubWeights)
        and not is_demo(profile, site)
        and profile.spec.model.kind is SourceKind.FOLDER
    ):
        raise SettingsError(
            f"profile {profile.name!r} serves from the folder {profile.spec.model.source}, which "
            f"no pod has; say where it is in spec.weights of site {site.name!r}, such as a claim"
        )
    kueue = spec.queue is not None
    for role in profile.spec.pools.by_role:
        names.check_lws_name(names.pool_name(role), kueue=kueue)


def _shared(parts: Mapping[str, list[Part]]) -> dict[str, list[Part]]:
    """The parts of each site, one for all where they are the same; where sites mean different
    things by a name, each gets one with its own name at the end."""
    kinds: dict[str, list[Part]] = {}
    for own in parts.values():
        for part in own:
            known = kinds.setdefault(part.name, [])
            if part not in known:
                known.append(part)

    def named(part: Part, site: str) -> Part:
        if len(kinds[part.name]) == 1:
            return part
        first = next(name for name, own in parts.items() if part in own)
        return dataclasses.replace(part, name=f"{part.name}-{first}")

    return {site: [named(part, site) for part in own] for site, own in parts.items()}


def _overlay(place: Where, components: list[str]) -> Part:
    site = place.site
    files: dict[str, list[Json]] = {}
    abouts: dict[str, str] = {}
    if control.has_controller(site):
        files["site.yaml"] = [_site_map(place)]
        abouts["site.yaml"] = "What the controller makes pools by: this overlay's site."
    about = site.metadata.description or f"Site {site.name}."
    return Part(
        name=site.name,
        about=about,
        files=files,
        abouts=abouts,
        components=components,
        namespace=site.spec.namespace,
    )


def _fitting(profile: ServingProfile, own: ServingProfile, overlay: Part) -> Part:
    """The overlay with the profile as its site serves it, where that is another one."""
    if own is profile:
        return overlay
    about = "The profile as this site serves it: with fewer ranks, or the demo model's length."
    text = pools.profile_text(own)
    keys = {names.PROFILES: f"{profile.name}.yaml", names.START: names.START_KEY}
    patches = [
        Patch(about, Target("ConfigMap", name=name), [replace(f"/data/{key}", text)])
        for name, key in keys.items()
    ]
    return dataclasses.replace(overlay, patches=[*patches, *overlay.patches])


def _site_map(place: Where) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.SITE, "labels": labels.labels(labels.CONTROLLER)},
        "data": {names.SITE_KEY: place.text},
    }


def _keyed(profile: ServingProfile, tree: Tree, overlay: Part) -> Part:
    """The overlay with the keys of its pools, and the profiles that they start from."""
    objects = build_part(tree, overlay)
    maps: list[Json] = []
    patches: list[Patch] = []
    for role in profile.spec.pools.by_role:
        pool = pools.of_pool(objects, role)[0]
        key = pools.key_of(pool["spec"]["leaderWorkerTemplate"], profile, role)
        maps.append(pools.profile_map(profile, role, key))
        label = f"labels/{escaped(labels.POOL)}"
        patches += [
            Patch(
                about=f"Pool {role}: its key, and the profile that its engines start from.",
                target=pool_target(role),
                ops=[
                    add(f"/metadata/{label}", key),
                    add(f"{_POD}/metadata/{label}", key),
                    replace(
                        f"{_POD}/spec/volumes/0/configMap/name",
                        names.keyed_pool_name(role, key),
                    ),
                ],
            ),
            Patch(
                about="Evictions are counted pool by pool.",
                target=Target("PodDisruptionBudget", name=names.pool_name(role)),
                ops=[
                    add(f"/metadata/{label}", key),
                    add(f"/spec/selector/match{label[0].upper()}{label[1:]}", key),
                ],
            ),
        ]
    return dataclasses.replace(
        overlay,
        files={"pools.yaml": maps, **overlay.files},
        abouts={
            "pools.yaml": "The profile that the engines of each pool start from. What a name "
            "holds stays the same to engines: the digits are those of the pool's key.",
            **overlay.abouts,
        },
        patches=[*overlay.patches, *patches],
    )


__all__ = [
    "Where",
    "builtin_places",
    "place_of",
    "pool_key",
    "pool_objects",
    "render",
    "source_of",
]
