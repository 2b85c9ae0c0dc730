"""The kinds of patch: merge (RFC 7386), JSON (RFC 6902), and the strategic one, which merges lists
by their keys. Of the strategic one's directives only ``$patch: delete`` is known."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch

from tests.fakes.kubernetes.errors import Refused, bad_request
from tests.fakes.kubernetes.fields import Path, entry_step, list_keys

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


def patched(before: Json, patch: Any, content_type: str, *, custom: bool) -> Json:
    """What a patch makes of an object.

    Raises:
        Refused: 415 for a kind of patch that is not taken, 400 for one that cannot be read, 422 for
            one that does not fit.
    """
    taken = [JSON, MERGE, APPLY] if custom else [JSON, MERGE, STRATEGIC, APPLY]
    if content_type not in taken:
        raise Refused(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: "
            + ", ".join(taken),
        )
    if content_type == JSON:
        return _json_patched(before, patch)
    if not isinstance(patch, dict):
        raise bad_request("a merge patch is an object")
    result = _merged(before, patch, strategic=content_type == STRATEGIC)
    assert isinstance(result, dict)
    return result


def _json_patched(before: Json, patch: Any) -> Json:
    try:
        operations = jsonpatch.JsonPatch(patch)
    except (jsonpatch.InvalidJsonPatch, TypeError) as error:
        raise bad_request(f"error decoding patch: {error}") from error
    try:
        result = operations.apply(copy.deepcopy(before))
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        message = f"the server rejected our request due to an error in our request: {error}"
        raise Refused(422, "Invalid", message) from error
    if not isinstance(result, dict):
        raise bad_request("the patch leaves no object")
    return result


def _merged(before: Any, patch: Any, path: Path = (), *, strategic: bool) -> Any:
    if isinstance(patch, list) and isinstance(before, list) and strategic and path:
        return _merged_list(before, patch, path)
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            step = (*path, f"f:{key}")
            result[key] = _merged(result.get(key), value, step, strategic=strategic)
    return result


def _merged_list(before: list[Any], patch: list[Any], path: Path) -> list[Any]:
    keys = list_keys(path)
    if not keys or not all(entry_step(keys, entry) for entry in [*before, *patch]):
        return copy.deepcopy(patch)
    result = {entry_step(keys, entry): entry for entry in before}
    for entry in patch:
        step = entry_step(keys, entry)
        if entry.get("$patch") == "delete":
            result.pop(step, None)
        else:
            result[step] = _merged(result.get(step), entry, (*path, step), strategic=True)
    return list(result.values())
