"""Valid profiles in numbers, drawn by a seed from the profile's own JSON Schema.

Every field has its turn. Values are drawn from the schema alone; what then breaks a rule between
fields is taken out again, as the reader's messages name it, so that no rule has to be told here.
"""

from __future__ import annotations

import copy
import functools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import yaml

from baton.errors import BatonError, ProfileError
from profiles import Mode, ServingProfile, parse_profile
from tests.fakes.broken_profiles import Field, schema_fields
from tests.manifests.examples import keys

Data = dict[str, Any]
Read = TypeVar("Read")

ACCELERATORS = ("nvidia-a100-80gb", "nvidia-l4", "cpu")
"""Labels that every built-in site knows."""

_ROLES = {Mode.DISAGGREGATED: ("prefill", "decode"), Mode.STANDARD: ("standard",)}
_ROLE = "<role>"
_TRIES = 12
_FLAGS: dict[str, list[object]] = {
    "seed": [1, 7],
    "swap-space": [0, 4.5],
    "enable-prefix-caching": [True, False],
    "max-loras": [4],
    "hf-overrides.rope_theta": [10000.0],
    "quantization": ["awq"],
    "kv-cache-dtype": ["auto", "fp8"],
}
_SOURCES = ("demo", "/models/shop", "example/shop-8b", "example/shop-70b.instruct")


@functools.cache
def valid_profiles(count: int, seed: int) -> tuple[ServingProfile, ...]:
    """So many different profiles, called ``random-<n>``; the same for the same seed and schema."""
    rng = random.Random(seed)
    fields = list(schema_fields())
    return tuple(_profile(f"random-{number}", fields, rng) for number in range(count))


def settled(data: Data, read: Callable[[str], Read], error: type[BatonError]) -> tuple[Read, str]:
    """What ``read`` makes of the data as YAML, after everything that it complains of is gone.

    Raises:
        AssertionError: it complains of something that is not there to take out.
    """
    for _ in range(_TRIES):
        text = yaml.safe_dump(data, sort_keys=False)
        try:
            return read(text), text
        except error as refused:
            _take_out(data, str(refused))
    raise AssertionError(f"still refused after {_TRIES} tries:\n{yaml.safe_dump(data)}")


_INSTEAD = {"spec.classify.threshold_tokens": "spec.model.max_model_len"}
"""What is taken out for a required field that two fields fight about."""


def _take_out(data: Data, message: str) -> None:
    """Removes the fields that a message of a YAML reader names; for one that is not there, because
    its default is what is wrong, the section that it would stand in."""
    found = re.findall(r":[0-9]+: ([\w.\[\]\"/-]+): ", message)
    assert found, message
    for path in found:
        parts = list(keys(_INSTEAD.get(path, path)))
        place: Any = data
        for depth, part in enumerate(parts):
            below = place.get(part) if isinstance(place, dict) else None
            if below is None and not _holds(place, part):
                break
            # Of a list the whole goes: its other entries may be the wrong ones.
            last = depth == len(parts) - 1
            if (last or not _holds(below, parts[depth + 1])) and not _needed(parts[: depth + 1]):
                del place[part]
                break
            place = below


def _needed(parts: list[str | int]) -> bool:
    """Whether there is no profile or site without this section."""
    return parts[-1] in ("spec", "model", "pools") or (len(parts) == 3 and parts[1] == "pools")


def _holds(place: object, part: str | int) -> bool:
    return isinstance(place, dict) and part in place


def _profile(name: str, fields: list[Field], rng: random.Random) -> ServingProfile:
    mode = rng.choice(list(Mode))
    data: Data = {
        "apiVersion": "baton/v1",
        "kind": "ServingProfile",
        "metadata": {"name": name},
        "spec": {"mode": mode.value, "model": {"source": rng.choice(_SOURCES)}, "pools": {}},
    }
    if mode is Mode.DISAGGREGATED:
        data["spec"]["classify"] = {"threshold_tokens": rng.choice([64, 512, 4096])}
    share = rng.choice([0.05, 0.3, 0.7])
    common = _flags(rng) if rng.random() < 0.4 else {}
    for role in _ROLES[mode]:
        pool = _pool(rng)
        if common:
            pool["engine_args"] = dict(common)
        data["spec"]["pools"][role] = pool
    for field in fields:
        for path in _places(field, mode):
            if rng.random() < share:
                _put(data, path, _value(field, rng))
    return settled(data, lambda text: parse_profile(text, source=f"{name}.yaml"), ProfileError)[0]


def _pool(rng: random.Random) -> Data:
    """The fields of a pool that decide which objects are made, in likely proportions."""
    nodes = rng.choice([1, 1, 1, 2, 4])
    return {
        "accelerator": rng.choice(ACCELERATORS),
        "replicas": rng.choice([1, 2, 3, 11, 1000]),
        "nodes": nodes,
        "tensor_parallel": nodes * rng.choice([1, 1, 2, 4]),
        "pipeline_parallel": rng.choice([1, 1, 1, 2]),
    }


def _flags(rng: random.Random) -> Data:
    names = rng.sample(sorted(_FLAGS), rng.randint(1, 3))
    return {name: rng.choice(_FLAGS[name]) for name in names}


_DRAWN = {"name", "source", "mode", "accelerator", "replicas", "nodes", "apiVersion", "kind"} | {
    *("tensor_parallel", "pipeline_parallel", "engine_args", "threshold_tokens")
}


def _places(field: Field, mode: Mode) -> Iterator[tuple[str, ...]]:
    """Where a field goes in a profile of this mode; nowhere if it was drawn with its pool."""
    path = tuple(str(part) for part in field.path)
    if path[-1] in _DRAWN or "section" in field.schema:
        return
    if mode is Mode.STANDARD and {"classify", "degrade"} & set(path):
        return
    if _ROLE not in path:
        yield path
        return
    for role in _ROLES[mode]:
        yield tuple(role if part == _ROLE else part for part in path)


def _put(data: Data, path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = copy.deepcopy(value)


def _value(field: Field, rng: random.Random) -> object:
    """Some value that a field's own schema takes."""
    schema = field.schema
    if schema["nullable"] and rng.random() < 0.1:
        return None
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "boolean":
            return rng.random() < 0.5
        case "integer":
            return int(_number(schema, rng))
        case "number":
            return round(_number(schema, rng), 3)
        case "array":
            choices = schema["choices"]
            return rng.sample(choices, rng.randint(0, min(len(choices), schema["maxItems"])))
        case _:
            return rng.choice(["shop", "Shop-8B.v2", "shop/large:latest", "a" * 39])


def _number(schema: Data, rng: random.Random) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 0.001)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1e6) - 0.001)
    # The bounds, and more often the small numbers that people write.
    return float(
        rng.choice([low, high, min(high, low + 1), rng.uniform(low, min(high, low + 600))])
    )
