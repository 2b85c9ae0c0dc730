"""One DisaggregatedSet instead of a LeaderWorkerSet per pool.

The same tree, rewritten: each pool becomes a role of the set, and patches of pools become patches
of roles, so that components need not know which of the two a site has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from baton.errors import SettingsError
from deploy.lws import labels, names
from deploy.lws.build import matches
from deploy.lws.options import of_set
from deploy.lws.tree import Json, Part, Patch, Target, Tree

FILE = "workers.yaml"
_KIND = "LeaderWorkerSet"


def as_set(tree: Tree) -> Tree:
    """The tree with the base's pools in one DisaggregatedSet.

    Raises:
        SettingsError: the profile has one pool only; a set has two roles or more.
    """
    pools = [o for found in tree.base.files.values() for o in found if o["kind"] == _KIND]
    if len(pools) < 2:
        raise SettingsError(
            f"profile {tree.profile!r} has one pool, and a DisaggregatedSet has two roles or more; "
            "take --controller lws"
        )
    files: dict[str, list[Json]] = {}
    others: list[Json] = []
    for name, objects in tree.base.files.items():
        if any(found["kind"] == _KIND for found in objects):
            others += [found for found in objects if found["kind"] != _KIND]
        else:
            files[name] = list(objects)
    files[FILE] = [_set(pools), *others]
    abouts = {name: about for name, about in tree.base.abouts.items() if name in files}
    abouts[FILE] = (
        "The pools, as roles of one set: they roll out together, and keep their proportion while "
        "they do."
    )
    base = dataclasses.replace(tree.base, files=files, abouts=abouts)
    roles = [pool["metadata"]["labels"][labels.ROLE] for pool in pools]
    return dataclasses.replace(
        tree,
        base=_rewritten(base, pools),
        components={
            name: _rewritten(of_set(part, roles), pools) for name, part in tree.components.items()
        },
        overlays={name: _rewritten(part, pools) for name, part in tree.overlays.items()},
    )


def _set(pools: Sequence[Json]) -> Json:
    return {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSet",
        "metadata": {
            "name": names.DISAGGREGATED_SET,
            "labels": labels.shared(),
            "annotations": dict(pools[0]["metadata"]["annotations"]),
        },
        "spec": {
            "roles": [
                {
                    "name": pool["metadata"]["labels"][labels.ROLE],
                    "metadata": {
                        key: pool["metadata"][key]
                        for key in ("labels", "annotations")
                        if pool["metadata"].get(key)
                    },
                    "spec": pool["spec"],
                }
                for pool in pools
            ]
        },
    }


def _rewritten(part: Part, pools: Sequence[Json]) -> Part:
    patches = [new for patch in part.patches for new in _of_roles(patch, pools)]
    return dataclasses.replace(part, patches=patches)


def _of_roles(patch: Patch, pools: Sequence[Json]) -> Iterator[Patch]:
    """The patch as it is, or for each role whose pool it was for."""
    if patch.target.kind != _KIND:
        yield patch
        return
    for index, pool in enumerate(pools):
        if matches(patch.target, pool):
            ops = [_below(op, f"/spec/roles/{index}") for op in patch.ops]
            yield Patch(patch.about, Target("DisaggregatedSet", names.DISAGGREGATED_SET), ops)


def _below(op: Mapping[str, object], top: str) -> Json:
    return {key: f"{top}{value}" if key in ("path", "from") else value for key, value in op.items()}
