"""A profile with single values replaced, for flags such as ``--model``.

Only values that depend on the place where a profile is used have an override; whatever else
should differ is another profile. The result is checked like a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from baton.errors import ProfileError
from baton.types import Role
from profiles.document import Document, Problem
from profiles.problems import explain
from profiles.schema import ServingProfile


def with_overrides(
    profile: ServingProfile,
    *,
    model_source: str | None = None,
    served_name: str | None = None,
    max_model_len: int | None = None,
    threshold_tokens: int | None = None,
    replicas: Mapping[Role, int] | None = None,
) -> ServingProfile:
    """The profile with some values replaced; None leaves one as it is. Checked like a file.

    A new model source drops the profile's served name unless a new one is given with it: a name
    must not outlive the weights that it was given to.

    Raises:
        ProfileError: the result is not sound, or a value has no place in the profile's mode.
    """
    data: dict[str, Any] = profile.model_dump(mode="json", by_alias=True)
    spec = data["spec"]
    if model_source is not None:
        spec["model"].update(source=model_source, served_name=None)
    if served_name is not None:
        spec["model"]["served_name"] = served_name
    if max_model_len is not None:
        spec["model"]["max_model_len"] = max_model_len
    if threshold_tokens is not None:
        spec["classify"] = {"threshold_tokens": threshold_tokens}
    problems: list[Problem] = []
    for role, count in (replicas or {}).items():
        pool = spec["pools"].get(role.value)
        if pool is None:
            sentence = f"profile {profile.name} has no such pool"
            problems.append(Problem(None, ("spec", "pools", role.value), sentence))
        else:
            pool["replicas"] = count
    try:
        changed = ServingProfile.model_validate(data)
    except ValidationError as error:
        found = explain(error, Document(value=data))
        problems.extend(Problem(None, problem.path, problem.sentence) for problem in found)
        raise ProfileError([problem.render("override") for problem in problems]) from error
    if problems:
        raise ProfileError([problem.render("override") for problem in problems])
    return changed
