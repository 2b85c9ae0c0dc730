"""Evaluates the CEL rules of CRDs (``x-kubernetes-validations``) on objects that are created.

A rule that names ``oldSelf`` compares two versions of an object; API servers skip it when the
object is new, and so does this. Everything else is evaluated, by cel-python, with the functions of
Kubernetes that rules of these CRDs call beyond the language. A rule that cannot be evaluated is a
finding, never a pass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import celpy
import lark
from celpy import celtypes
from celpy.evaluation import CELEvalError, bool_eq, bool_ne

from tests.manifests.findings import Findings, Json, Path

_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_OLD = re.compile(r"\boldSelf\b")
_LANGUAGE = frozenset(
    [
        "size",
        "has",
        "all",
        "exists",
        "exists_one",
        "map",
        "filter",
        "matches",
        "startsWith",
        "endsWith",
        "contains",
        "duration",
        "timestamp",
        "int",
        "uint",
        "double",
        "string",
        "bool",
        "bytes",
        "dyn",
        "type",
    ]
)


def is_url(value: Any) -> celtypes.BoolType:
    """Kubernetes' isURL: what Go parses as an absolute URI or an absolute path."""
    text = str(value)
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return celtypes.BoolType(False)
    absolute = bool(parts.scheme and (parts.netloc or parts.path)) or text.startswith("/")
    return celtypes.BoolType(absolute and not re.search(r"[\x00-\x20\x7f]", text))


def split(value: Any, separator: Any) -> celtypes.ListType:
    """Kubernetes' split of a text."""
    return celtypes.ListType([celtypes.StringType(part) for part in value.split(separator)])


def equal(one: Any, two: Any) -> Any:
    """``==``, which is false between a text and a number: an int-or-string can be either."""
    return celtypes.BoolType(False) if _of_two_kinds(one, two) else bool_eq(one, two)


def unequal(one: Any, two: Any) -> Any:
    """``!=``, as ``equal``."""
    return celtypes.BoolType(True) if _of_two_kinds(one, two) else bool_ne(one, two)


def _of_two_kinds(one: Any, two: Any) -> bool:
    text = celtypes.StringType
    number = (celtypes.IntType, celtypes.DoubleType)
    return any(isinstance(a, text) and isinstance(b, number) for a, b in ((one, two), (two, one)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "isURL": is_url,
    "split": split,
    "_==_": equal,
    "_!=_": unequal,
}
"""Kubernetes' own functions, as far as rules of the CRDs call them."""


def findings(value: object, schema: Json, path: Path = ()) -> Findings:
    """What the rules at every level have against an object with its defaults filled in."""
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if not needs_old(rule["rule"]):
            yield from _broken(rule, value, schema, path)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties")
        for key, entry in value.items():
            below = properties.get(key, more)
            if isinstance(below, dict):
                yield from findings(entry, below, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from findings(entry, schema.get("items", {}), (*path, index))


def rules(schema: Json) -> Iterator[str]:
    """All rules below a schema, as written."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["rule"]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from rules(schema[key])
    for below in schema.get("properties", {}).values():
        yield from rules(below)


def needs_old(rule: str) -> bool:
    """Whether it is about a change, and so not about a new object."""
    return bool(_OLD.search(rule))


def unknown_functions(rule: str) -> set[str]:
    """Functions that a rule calls and nobody here has.

    Raises:
        celpy.CELParseError: it is no CEL.
    """
    called: set[str] = set()
    for node in _environment().compile(rule).iter_subtrees():
        if node.data in ("ident_arg", "member_dot_arg", "dot_ident_arg"):
            called.update(
                str(one)
                for one in node.children
                if isinstance(one, lark.Token) and one.type == "IDENT"
            )
    return called - _LANGUAGE - FUNCTIONS.keys()


def _broken(rule: Json, value: object, schema: Json, path: Path) -> Findings:
    try:
        verdict = _program(rule["rule"]).evaluate({"self": _cel(value, schema)})
    except CELEvalError as error:
        yield path, f"the rule {rule['rule']!r} cannot be evaluated: {error.args[0]}"
        return
    if isinstance(verdict, Exception) or not verdict:
        field = tuple(part for part in rule.get("fieldPath", "").split(".") if part)
        yield (*path, *field), rule.get("message") or f"breaks the rule {rule['rule']}"


@functools.cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


@functools.cache
def _program(rule: str) -> celpy.Runner:
    cel = _environment()
    return cel.program(cel.compile(rule), functions=FUNCTIONS)


def _cel(value: object, schema: Json) -> Any:
    """A value as CEL sees it: typed by the schema, keys escaped where CEL has words of its own."""
    if value is None:
        return None
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties")
        made = celtypes.MapType()
        for key, entry in value.items():
            if key in properties:
                made[celtypes.StringType(_escaped(key))] = _cel(entry, properties[key])
            else:
                below = more if isinstance(more, dict) else {}
                made[celtypes.StringType(key)] = _cel(entry, below)
        return made
    if isinstance(value, list):
        return celtypes.ListType([_cel(entry, schema.get("items", {})) for entry in value])
    if isinstance(value, bool):
        return celtypes.BoolType(value)
    if isinstance(value, int) and schema.get("type") != "number":
        return celtypes.IntType(value)
    if isinstance(value, int | float):
        return celtypes.DoubleType(value)
    if schema.get("format") == "date-time":
        return celtypes.TimestampType(str(value))
    if schema.get("format") == "duration":
        return celtypes.DurationType(str(value))
    return celtypes.StringType(str(value))


def _escaped(key: str) -> str:
    """A property's name as an identifier, by the API conventions."""
    if key in _RESERVED:
        return f"__{key}__"
    for plain, escaped in (
        ("__", "__underscores__"),
        (".", "__dot__"),
        ("-", "__dash__"),
        ("/", "__slash__"),
    ):
        key = key.replace(plain, escaped)
    return key
