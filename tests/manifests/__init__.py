"""Manifests held against everything that a cluster would hold them against, without a cluster.

``check`` takes all objects that are applied together and says what an API server, its admission
webhooks or the running cluster would refuse: unknown fields and wrong types, by the kinds' own
schemas; CEL rules of the CRDs; what LWS, Kueue and KEDA refuse in webhooks; names, labels, ports
and amounts; and whatever one object says of another that is not so.

It knows nothing of Baton: other people's manifests can be checked by it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tests.manifests import cel, crds, kinds, names, pods, references, schemas, webhooks
from tests.manifests.findings import Finding, Findings, Json, Problem, mapping, name_of, show_path
from tests.manifests.world import BY_HAND, World, namespaced

__all__ = ["BY_HAND", "Problem", "World", "check", "check_object", "crds"]

_MAX_BYTES = 1536 * 1024
_MAX_KNOWN = 20_000
_PATH_NAMES = frozenset({"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"})
_known: dict[str, tuple[Finding, ...]] = {}


def check(objects: Iterable[Json], *, by_hand: Sequence[str] = BY_HAND) -> list[Problem]:
    """All problems of a set of objects, in the objects' order.

    Args:
        objects: as they would be applied, all together.
        by_hand: what else is there, as ``Kind/name`` patterns.
    """
    given = list(objects)
    world = World(given, by_hand)
    problems: list[Problem] = []
    for found in given:
        alone = check_object(found)
        # References of an object that is broken itself would only say so again.
        among = () if alone else references.findings(found, world)
        for path, reason in (*alone, *_twice(found, world), *among):
            problems.append(Problem(name_of(found), show_path(path), reason))
    return problems


def check_object(found: Json) -> tuple[Finding, ...]:
    """What is wrong with one object, as far as it alone says so. Rendered sets have most objects
    in common, so that each is looked at once."""
    try:
        text = json.dumps(found, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        return (((), f"is not plain JSON: {error}"),)
    if text not in _known:
        if len(_known) > _MAX_KNOWN:
            _known.clear()
        plain: Json = json.loads(text)
        made = list(_alone(plain))
        if len(text.encode()) > _MAX_BYTES:
            made.append(((), f"has {len(text.encode())} bytes; {_MAX_BYTES} are taken"))
        _known[text] = tuple(dict.fromkeys(made))
    return _known[text]


def _alone(found: Json) -> Findings:
    api_version, kind = found.get("apiVersion"), found.get("kind")
    if not isinstance(api_version, str) or not isinstance(kind, str):
        yield (), "has no apiVersion or no kind"
        return
    yield from _metadata(found, api_version, kind)
    yield from _nulls(found, ())
    wrong = list(_schema(found, api_version, kind))
    if wrong:
        # Further checks rely on types.
        yield from wrong
        return
    for template in pods.templates(found):
        yield from pods.findings(template)
    for table in (kinds.KINDS, webhooks.WEBHOOKS):
        if kind in table:
            yield from table[kind](found)


def _schema(found: Json, api_version: str, kind: str) -> Findings:
    group, _, version = api_version.rpartition("/")
    crd = crds.of_group(group).get((version, kind)) if "." in group else None
    if crd is None:
        builtin = schemas.of_builtin(api_version, kind)
        if builtin is None:
            yield ("apiVersion",), f"there is no schema of {kind} in {api_version}"
        else:
            yield from schemas.findings(found, builtin)
        return
    if not crd.served:
        yield ("apiVersion",), f"{api_version} is served no longer"
    if crd.deprecated:
        yield ("apiVersion",), f"{api_version} is deprecated"
    validator = schemas.of_crd(group, version, kind)
    assert validator is not None  # the same CRD
    wrong = list(schemas.findings(found, validator))
    yield from wrong
    if not wrong:
        yield from cel.findings(schemas.with_defaults(found, crd.schema), crd.schema)


def _metadata(found: Json, api_version: str, kind: str) -> Findings:
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        yield ("metadata",), "is required"
        return
    yield from (
        (("metadata", *path), reason)
        for path, reason in schemas.findings(metadata, schemas.object_meta())
    )
    check_name = names.path_segment if kind in _PATH_NAMES else names.dns_subdomain
    if wrong := check_name(metadata.get("name")):
        yield ("metadata", "name"), wrong
    home = metadata.get("namespace")
    if home is not None and not namespaced(api_version, kind):
        yield ("metadata", "namespace"), f"{kind} has no namespace"
    if home is not None and (wrong := names.dns_label(home)):
        yield ("metadata", "namespace"), wrong
    yield from names.labels(metadata.get("labels"), ("metadata", "labels"))
    yield from names.annotated(metadata.get("annotations"), ("metadata", "annotations"))
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        if key in metadata:
            yield ("metadata", key), "is the API server's to set"
    if "status" in found:
        yield ("status",), "is a controller's to set"


def _nulls(value: object, path: tuple[str | int, ...]) -> Findings:
    if value is None:
        yield path, "is null: leave it out"
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _nulls(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _nulls(entry, (*path, index))


def _twice(found: Json, world: World) -> Findings:
    name = mapping(found.get("metadata")).get("name")
    first = world.find(str(found.get("kind")), world.home(found), name)
    if first is not None and first is not found:
        yield ("metadata", "name"), "is the name of two objects of this kind"
