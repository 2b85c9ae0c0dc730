"""Where the CRDs' files are, and what is in them.

They are data of other projects, too large to keep here: ``BATON_CRDS`` names their folder, by
default ``shared/crds`` beside the checkout. Files are read when an object of their group turns up.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from tests.manifests.findings import Json

VARIABLE = "BATON_CRDS"
_BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "crds"


@dataclass(frozen=True, slots=True)
class Crd:
    """One version of one custom kind.

    Attributes:
        group: such as ``leaderworkerset.x-k8s.io``.
        version: such as ``v1``.
        kind: such as ``LeaderWorkerSet``.
        namespaced: whether its objects live in namespaces.
        served: whether API servers know this version.
        deprecated: whether they warn of it.
        schema: openAPIV3Schema.
    """

    group: str
    version: str
    kind: str
    namespaced: bool
    served: bool
    deprecated: bool
    schema: Json


def folder() -> pathlib.Path:
    """The folder, whether it is there or not."""
    return pathlib.Path(os.environ.get(VARIABLE) or _BESIDE)


def missing() -> str | None:
    """Why no CRD can be read, with what to do; None if they are there."""
    if any(folder().glob("*/*.yaml")):
        return None
    return f"no CRDs in {folder()}: set {VARIABLE} to a folder that holds <project>/<crd>.yaml"


@functools.cache
def of_group(group: str) -> Mapping[tuple[str, str], Crd]:
    """All versions and kinds of a group, by ``(version, kind)``."""
    return {
        (crd.version, crd.kind): crd for crd in _read(sorted(folder().glob(f"*/{group}_*.yaml")))
    }


def every() -> Iterator[Crd]:
    """All of all groups; takes a second."""
    for group in sorted({path.name.partition("_")[0] for path in folder().glob("*/*.yaml")}):
        yield from of_group(group).values()


def _read(paths: list[pathlib.Path]) -> Iterator[Crd]:
    for path in paths:
        with path.open("rb") as file:
            # CSafeLoader: the LeaderWorkerSet alone has 1.3 MB.
            spec = yaml.load(file, yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            yield Crd(
                group=spec["group"],
                version=version["name"],
                kind=spec["names"]["kind"],
                namespaced=spec["scope"] == "Namespaced",
                served=version["served"],
                deprecated=version.get("deprecated", False),
                schema=version["schema"]["openAPIV3Schema"],
            )
