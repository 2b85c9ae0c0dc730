"""Broken profiles in numbers: the built-in ones with one mistake each, chosen by a seed.

Each is broken by construction, from the profile's own JSON Schema and a table of its rules, and
nothing is asked whether it is: a mistake that the reader lets pass is to be seen by the test that
uses these. Fields are taken in turn, so that two hundred of them visit all.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from profiles import Mode, builtin_names, parse_profile, profile_schema
from profiles.document import FieldPath, read_document, show_path
from tests.fakes.broken_rules import RULES, Data

Schema = dict[str, Any]

_ROLES = {Mode.DISAGGREGATED: ("prefill", "decode"), Mode.STANDARD: ("standard",)}
_ROLE = "<role>"
_SECTIONS_OF_ONE_MODE = ("classify", "degrade")
_KEY_LINE = re.compile(r"^( *)([A-Za-z_]+):(?: (\S.*))?$")


@dataclass(frozen=True, slots=True)
class BrokenProfile:
    """A profile with one mistake.

    Attributes:
        text: the file.
        path: what a message about it has to name: a field as messages write it, or, where the
            text is no YAML any more, the key at which it breaks.
        kind: what was done to it.
    """

    text: str
    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Base:
    """A sound profile to break."""

    text: str
    data: Data
    mode: Mode


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the schema; pools are there once, under ``<role>``."""

    path: FieldPath
    schema: Schema
    required: bool


def broken_profiles(count: int, seed: int) -> list[BrokenProfile]:
    """So many different ones; the same for the same seed and built-in profiles."""
    rng = random.Random(seed)
    bases = _bases()
    fields = list(schema_fields())
    made: dict[str, BrokenProfile] = {}
    fields_in_turn = _in_turn(fields, rng)
    rules_in_turn = _in_turn(RULES, rng)
    texts_in_turn = _in_turn(_TEXT_BREAKERS, rng)
    turns = _in_turn(("field",) * 14 + ("rule",) * 3 + ("text",) * 3, rng)
    while len(made) < count:
        match next(turns):
            case "field":
                broken = _break_field(next(fields_in_turn), bases, rng)
            case "rule":
                rule = next(rules_in_turn)
                base = rng.choice([base for base in bases if base.mode is rule.mode])
                data = copy.deepcopy(base.data)
                path = rule.apply(data, rng)
                broken = BrokenProfile(_dump(data), show_path(path), f"rule: {rule.name}")
            case _:
                name, breaker = next(texts_in_turn)
                broken = _break_text(name, breaker, rng.choice(bases), rng)
        made.setdefault(broken.text, broken)
    return list(made.values())


def schema_fields() -> Iterator[Field]:
    """Every field and section of the JSON Schema, from the top."""
    schema = profile_schema()
    definitions = schema["$defs"]

    def walk(section: Schema, at: FieldPath) -> Iterator[Field]:
        for name, definition in section["properties"].items():
            if at == ("spec", "pools"):
                if name != "prefill":
                    continue
                path: FieldPath = (*at, _ROLE)
            else:
                path = (*at, name)
            below = _section(definition, definitions)
            resolved = {**definition, "section": below} if below else _plain(definition, schema)
            yield Field(path, resolved, name in section.get("required", ()))
            if below:
                yield from walk(below, path)

    yield from walk(schema, ())


def _section(definition: Schema, definitions: dict[str, Schema]) -> Schema | None:
    for option in (definition, *definition.get("anyOf", ())):
        target = definitions.get(str(option.get("$ref", "")).rpartition("/")[2], {})
        if target.get("type") == "object":
            return target
    return None


def _plain(definition: Schema, schema: Schema) -> Schema:
    """A field's own schema: without null, with choices looked up."""
    options = [one for one in definition.get("anyOf", [definition]) if one.get("type") != "null"]
    resolved = (
        {**definition, **options[0], "nullable": len(options) < len(definition["anyOf"])}
        if "anyOf" in definition
        else {**definition, "nullable": False}
    )
    if "$ref" in resolved:
        target = schema["$defs"][resolved["$ref"].rpartition("/")[2]]
        resolved = {**resolved, "enum": target["enum"], "type": target["type"]}
    items = resolved.get("items", {})
    if "$ref" in items:
        resolved["choices"] = schema["$defs"][items["$ref"].rpartition("/")[2]]["enum"]
    if "const" in resolved:
        resolved["enum"] = [resolved["const"]]
    return resolved


def _bases() -> tuple[Base, ...]:
    made = []
    for name in builtin_names():
        text = (resources.files("profiles") / "builtin" / f"{name}.yaml").read_text("utf-8")
        mode = parse_profile(text, source=name).spec.mode
        made.append(Base(text, yaml.safe_load(text), mode))
    return tuple(made)


def _in_turn(items: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """All of them in some order, then all in another, without end."""
    while True:
        yield from rng.sample(list(items), len(items))


# --- one field ---


def _break_field(field: Field, bases: Sequence[Base], rng: random.Random) -> BrokenProfile:
    only = [
        base
        for base in bases
        if base.mode is Mode.DISAGGREGATED or not set(field.path) & set(_SECTIONS_OF_ONE_MODE)
    ]
    base = rng.choice(only)
    role = rng.choice(_ROLES[base.mode])
    path = tuple(role if part == _ROLE else part for part in field.path)
    data = copy.deepcopy(base.data)
    options: list[Callable[[], tuple[str, FieldPath]]] = [
        lambda: _replaced(data, path, *rng.choice(_wrong_values(field, rng)), rng),
        lambda: _misspelt_key(data, path, rng),
    ]
    if field.required:
        options.append(lambda: _removed(data, path))
    # A wrong value is what most fields have most to say about.
    kind, at = rng.choice([options[0], options[0], *options])()
    return BrokenProfile(_dump(data), show_path(at), kind)


def _wrong_values(field: Field, rng: random.Random) -> list[tuple[str, object]]:
    """Kinds of mistakes and a value for each. A tuple stands for a list of which the first entry
    is wrong, not the list."""
    schema = field.schema
    wrong: list[tuple[str, object]] = []
    if "section" in schema:
        return [
            ("scalar for a section", 8),
            ("list for a section", ["a"]),
            ("text for a section", "none"),
        ]
    if not schema["nullable"]:
        wrong.append(("null", None))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        wrong += [("text for a number", "8Mi"), ("quoted number", "8"), ("true for a number", True)]
        wrong += [("list for a number", [1]), ("mapping for a number", {"value": 1})]
        wrong += [("not finite", rng.choice([float("inf"), float("-inf"), float("nan")]))]
        wrong += _out_of_range(schema, rng)
    if kind == "integer":
        wrong.append(("fraction", 1.5))
    if "enum" in schema:
        wrong.append(("misspelt choice", _misspelt(schema["enum"], rng)))
    elif kind == "string":
        wrong += [("number for text", 8), ("true for text", True), ("list for text", ["a"])]
        if "maxLength" in schema:
            wrong.append(("too long", "x" * (schema["maxLength"] + rng.randint(1, 50))))
        if "pattern" in schema:
            wrong += [("forbidden letters", rng.choice(["-dash", "two words", "ümlaut", "a!"]))]
    if kind == "boolean":
        wrong += [("text for a truth value", "yes"), ("number for a truth value", 1)]
    if kind == "array":
        wrong += [("text for a list", "local"), ("mapping for a list", {"a": 1})]
        wrong += [("misspelt entry", (_misspelt(schema["choices"], rng),))]
        wrong += [("too many", [schema["choices"][0]] * (schema["maxItems"] + 1))]
    if kind == "object":
        wrong += [("list for a mapping", ["seed"]), ("number for a mapping", 4)]
        wrong += [("too many", {f"flag-{n}": n for n in range(schema["maxProperties"] + 1)})]
    return wrong


def _out_of_range(schema: Schema, rng: random.Random) -> list[tuple[str, object]]:
    wrong: list[tuple[str, object]] = []
    by = rng.choice([1, 10, 1000])
    if "minimum" in schema:
        wrong.append(("too small", schema["minimum"] - by))
    if "exclusiveMinimum" in schema:
        wrong.append(("too small", schema["exclusiveMinimum"] - rng.choice([0, by])))
    if "maximum" in schema:
        wrong.append(("too large", schema["maximum"] + by))
    if "exclusiveMaximum" in schema:
        wrong.append(("too large", schema["exclusiveMaximum"] + rng.choice([0, by])))
    return wrong


def _misspelt(choices: Sequence[object], rng: random.Random) -> object:
    choice = rng.choice(list(choices))
    if isinstance(choice, int):
        return choice + rng.randint(1, 7)
    word = str(choice)
    place = rng.randrange(len(word))
    return rng.choice([word[:place] + "%" + word[place + 1 :], word + "x", word.upper() + "S"])


def _replaced(
    data: Data, path: FieldPath, kind: str, value: object, rng: random.Random
) -> tuple[str, FieldPath]:
    if isinstance(value, tuple):
        _section_at(data, path[:-1])[path[-1]] = list(value)
        return kind, (*path, 0)
    _section_at(data, path[:-1])[path[-1]] = value
    return kind, path


def _removed(data: Data, path: FieldPath) -> tuple[str, FieldPath]:
    _section_at(data, path[:-1]).pop(path[-1], None)
    return "required key missing", path


def _misspelt_key(data: Data, path: FieldPath, rng: random.Random) -> tuple[str, FieldPath]:
    """A key beside the right one's place that no section has."""
    section, name = _section_at(data, path[:-1]), str(path[-1])
    first, _, rest = name.partition("_")
    spellings = (name + "z", name[1:] + "q", first + rest.title() + "X", name.upper())
    wrong = rng.choice(spellings)
    section[wrong] = section.get(name, 1)
    return "unknown key", (*path[:-1], wrong)


def _section_at(data: Data, path: FieldPath) -> Data:
    for part in path:
        data = data.setdefault(part, {})
    return data


def _dump(data: Data) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


# --- the text ---

Breaker = Callable[[str, random.Random], tuple[str, bool]]
"""From a line with a key and a plain value to one line or more; and whether the text is YAML
afterwards, so that messages know the field's path."""


def _repeated(line: str, rng: random.Random) -> tuple[str, bool]:
    return f"{line}\n{line}", True


def _tab(line: str, rng: random.Random) -> tuple[str, bool]:
    return "\t" + line.lstrip(), False


def _indented_more(line: str, rng: random.Random) -> tuple[str, bool]:
    return " " * rng.randint(1, 3) + line, False


def _indented_less(line: str, rng: random.Random) -> tuple[str, bool]:
    return line[1:], False


def _open_bracket(line: str, rng: random.Random) -> tuple[str, bool]:
    key, _, value = line.partition(": ")
    return f"{key}: {rng.choice('[{')}{value}", False


def _open_quote(line: str, rng: random.Random) -> tuple[str, bool]:
    key, _, value = line.partition(": ")
    return f'{key}: "{value}', False


def _no_colon(line: str, rng: random.Random) -> tuple[str, bool]:
    return line.replace(":", "", 1), False


def _two_colons(line: str, rng: random.Random) -> tuple[str, bool]:
    return f"{line}: 2", False


def _alias(line: str, rng: random.Random) -> tuple[str, bool]:
    return f"{line.partition(': ')[0]}: *other", True


def _tag(line: str, rng: random.Random) -> tuple[str, bool]:
    key, _, value = line.partition(": ")
    return f"{key}: {rng.choice(['!!str', '!own', '!!python/name:os.system'])} {value}", True


_TEXT_BREAKERS: tuple[tuple[str, Breaker], ...] = (
    ("duplicate key", _repeated),
    ("indented with a tab", _tab),
    ("indented too much", _indented_more),
    ("indented too little", _indented_less),
    ("quote left open", _open_quote),
    ("bracket left open", _open_bracket),
    ("colon left out", _no_colon),
    ("two values", _two_colons),
    ("alias", _alias),
    ("tag", _tag),
)


def _break_text(name: str, breaker: Breaker, base: Base, rng: random.Random) -> BrokenProfile:
    lines = base.text.splitlines()
    paths = {line: path for path, line in read_document(base.text).key_lines.items()}
    index = rng.choice(_later_siblings(lines))
    path = paths[index + 1]
    # No quote in a later comment may end the one that is left open.
    lines[index + 1 :] = [line.replace('"', "") for line in lines[index + 1 :]]
    lines[index], is_yaml = breaker(lines[index], rng)
    return BrokenProfile(
        "\n".join(lines) + "\n", show_path(path) if is_yaml else str(path[-1]), name
    )


def _later_siblings(lines: Sequence[str]) -> list[int]:
    """Indented lines with a key and a plain value, after such a line of the same mapping: there,
    each breaker breaks, and the parser is sure to see it."""
    found, before = [], None
    for index, line in enumerate(lines):
        match = _KEY_LINE.match(line)
        if match is None:
            continue
        plain = bool(match[3]) and match[3][0] not in "[{\"'"
        if plain and match[1] and before == match[1]:
            found.append(index)
        before = match[1] if plain else None
    return found
