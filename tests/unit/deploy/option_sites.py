"""Sites and profiles for tests of options: a built-in one with some fields replaced."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from deploy.lws.site import Site, load_site, site_from_text
from deploy.lws.tree import Json, Part
from profiles import ServingProfile, resolve_profile


@cache
def profile(name: str, **spec: Any) -> ServingProfile:
    """A built-in profile; keywords replace fields of ``spec.transfer`` or ``spec.model``."""
    found = resolve_profile(name)
    if not spec:
        return found
    data = found.model_dump(mode="json", by_alias=True)
    for key, value in spec.items():
        section, _, field = key.partition("__")
        data["spec"][section][field] = value
    return ServingProfile.model_validate(data)


@cache
def _builtin(name: str) -> Json:
    found: Json = load_site(name).spec.model_dump(mode="json", exclude_defaults=True)
    return found


def site(name: str = "onprem", **fields: Any) -> Site:
    """A built-in site with fields of its spec replaced."""
    data = {
        "apiVersion": "baton/v1",
        "kind": "Site",
        "metadata": {"name": name},
        "spec": {**_builtin(name), **fields},
    }
    return site_from_text(yaml.safe_dump(data), "test")


def found(part: Part, kind: str, name: str) -> Json:
    """The one object of a part with this kind and name."""
    (one,) = (
        found
        for objects in part.files.values()
        for found in objects
        if (found["kind"], found["metadata"]["name"]) == (kind, name)
    )
    return one
