"""What a validator found, in plain sentences with lines: for any model that a YAML file describes.

The validator's own messages speak to programmers and name no line. Each kind of finding has one
sentence here; what is missing falls back to the validator's words, which is ugly and not wrong.
Nothing here knows what the models are about.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from profiles.document import Document, FieldPath, Problem, show, show_path

Finding = tuple[FieldPath, str]
"""A path and a plain sentence about it."""

VALUE_ERROR = "baton_value"
RULES_ERROR = "baton_rules"
MAX_PROBLEMS = 50
"""More than this nobody reads; the last line says how many were left out."""

_TAG = "kind"
"""The field by which every union of models is told apart."""

NUMBER_TAG = "number"
"""Tag of a union's member that is no model but a plain number, and so has no kind."""

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "list_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
}


def wrong_value(sentence: str) -> PydanticCustomError:
    """For validators of one field: what is wrong with its value, as a reader should see it."""
    # Braces would be read as placeholders of the template.
    return PydanticCustomError(VALUE_ERROR, "{sentence}", {"sentence": sentence})


def broken_rules(found: Sequence[Finding]) -> PydanticCustomError:
    """For validators of a whole section: what does not fit together; paths start at the section."""
    text = "; ".join(f"{'.'.join(map(str, path))} {sentence}" for path, sentence in found)
    return PydanticCustomError(RULES_ERROR, "{text}", {"text": text, "findings": list(found)})


class Explainer:
    """Turns what pydantic found in one kind of file into problems with lines.

    Args:
        model: what the whole file is validated as.
        patterns: a sentence for each regular expression that its fields use.
        stand_ins: how the name of a section is written where a path is only an example, for
            sections that stand under several names.
    """

    def __init__(
        self,
        model: type[BaseModel],
        *,
        patterns: Mapping[str, str],
        stand_ins: Mapping[type[BaseModel], str] | None = None,
    ) -> None:
        self._model = model
        self._patterns = patterns
        self._stand_ins = stand_ins or {}

    def explain(self, error: ValidationError, document: Document) -> list[Problem]:
        """One problem per mistake."""
        return located(self.findings(error), document)

    def findings(self, error: ValidationError) -> Iterator[Finding]:
        """Every mistake of fields, then those between fields."""
        items = error.errors(include_url=False)
        for item in items:
            if item["type"] != RULES_ERROR:
                yield self._finding(
                    item["type"], item["loc"], item["input"], item.get("ctx", {}), item["msg"]
                )
        for item in items:
            if item["type"] == RULES_ERROR:
                base, _ = self._follow(item["loc"])
                for path, sentence in item["ctx"]["findings"]:
                    yield (*base, *path), sentence

    def _finding(
        self, kind: str, loc: FieldPath, got: object, context: Mapping[str, Any], fallback: str
    ) -> Finding:
        if loc and loc[-1] == "[key]":
            loc = loc[:-1]
        path, field = self._follow(loc)
        if kind == "union_tag_not_found" and isinstance(got, dict):
            return (*path, _TAG), "is required"
        if kind == "union_tag_not_found":
            return path, f"must be a number or a mapping with {_TAG} (got {show(got)})"
        if kind == "union_tag_invalid":
            tag = got.get(_TAG) if isinstance(got, dict) else got
            expected = str(context["expected_tags"]).replace(f"'{NUMBER_TAG}', ", "")
            return (*path, _TAG), _choice(tag, expected)
        if kind == "extra_forbidden":
            return path, self._unknown_field(loc, path)
        return path, self._sentence(kind, got, context, field, fallback)

    def _sentence(
        self,
        kind: str,
        got: object,
        context: Mapping[str, Any],
        field: FieldInfo | None,
        fallback: str,
    ) -> str:
        if kind == "missing":
            return "is required"
        if kind == VALUE_ERROR:
            return str(context["sentence"])
        if kind in ("literal_error", "enum"):
            return _choice(got, str(context["expected"]))
        if kind == "string_too_short" or (kind == "too_short" and context["min_length"] == 1):
            return "must not be empty"
        if kind == "string_pattern_mismatch" and context["pattern"] in self._patterns:
            return f"{self._patterns[context['pattern']]} (got {show(got)})"
        if kind in _KINDS:
            bounds = {name: _number(value) for name, value in context.items()}
            return f"{_KINDS[kind].format(**bounds)} (got {show(got)}{_hint(kind, got, field)})"
        return f"{fallback} (got {show(got)})"

    def _unknown_field(self, loc: FieldPath, path: FieldPath) -> str:
        name = str(path[-1])
        section = self._section_at(loc[:-1])
        known = list(_fields(section)) if section is not None else []
        near = closest(name, known)
        if near is not None and near != name:
            return f"is not a known field; did you mean {near}?"
        elsewhere = [place for place in self._places if place[-1] == name]
        if elsewhere:
            # A stand-in is no key that would need quotes.
            place = re.sub(r'"(<\w+>)"', r"\1", show_path(elsewhere[0]))
            return f"is not a known field here; it belongs at {place}"
        return f"is not a known field (known here: {', '.join(known)})"

    def _follow(self, loc: FieldPath) -> tuple[FieldPath, FieldInfo | None]:
        """The path in the file for a place in the model, without the tags of unions; and the
        field that it ends at, if it is one."""
        path: list[str | int] = []
        kind: Any = self._model
        field: FieldInfo | None = None
        for part in loc:
            tagged = _tagged(kind, part)
            if tagged is not None:
                kind = tagged
                continue
            path.append(part)
            kind, field = _step(kind, part)
        return tuple(path), field

    def _section_at(self, loc: FieldPath) -> type[BaseModel] | None:
        kind: Any = self._model
        for part in loc:
            tagged = _tagged(kind, part)
            kind = tagged if tagged is not None else _step(kind, part)[0]
        return _section_of(kind)

    @functools.cached_property
    def _places(self) -> tuple[FieldPath, ...]:
        """The path of every field; sections that stand under several names are there once."""
        found: dict[FieldPath, None] = {}

        def walk(section: type[BaseModel], at: FieldPath) -> None:
            for name, info in _fields(section).items():
                found[(*at, name)] = None
                for option in _options(info.annotation):
                    below, parts = _section_of(option), [name]
                    if below is None and issubclass(_class_of(option), Mapping):
                        below, parts = _section_of(get_args(option)[1]), [name, "<name>"]
                    if below is not None:
                        stand_in = self._stand_ins.get(below)
                        walk(below, (*at, *([stand_in] if stand_in else parts)))

        walk(self._model, ())
        return tuple(found)


def located(found: Iterator[Finding], document: Document) -> list[Problem]:
    """Findings with their lines; one for each place, and none where the text was unreadable."""
    problems: list[Problem] = []
    taken: set[FieldPath] = set()
    for path, sentence in found:
        # Of two findings about one place the first says enough: a flag that is refused needs no
        # remark on its value.
        if path not in taken and not _unread(path, document):
            taken.add(path)
            problems.append(Problem(document.line_of(path), path, sentence))
    return problems


def in_order(problems: list[Problem]) -> list[Problem]:
    """Sorted by line, cut at ``MAX_PROBLEMS``."""
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    rest = len(ordered) - MAX_PROBLEMS
    if rest > 0:
        last = ordered[MAX_PROBLEMS]
        more = Problem(last.line, (), f"and {rest} more problems from here on")
        ordered = [*ordered[:MAX_PROBLEMS], more]
    return ordered


def closest(word: str, choices: list[str]) -> str | None:
    """The choice that a word was probably meant to be: case, dashes and underscores aside."""
    if len(word) > 100:
        return None
    plain = {re.sub(r"[-_]", "", choice).lower(): choice for choice in choices}
    near = difflib.get_close_matches(re.sub(r"[-_]", "", word).lower(), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _unread(path: FieldPath, document: Document) -> bool:
    return any(path[:length] in document.unread for length in range(len(path) + 1))


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(kind: str, got: object, field: FieldInfo | None) -> str:
    if got is None:
        optional = field is not None and not field.is_required()
        return "; leave the field out for its default" if optional else ""
    if kind in ("int_type", "float_type") and isinstance(got, str):
        return "; write the number without quotes" if re.fullmatch(r"-?[0-9.]+", got) else ""
    if kind == "string_type" and isinstance(got, bool | int | float):
        return "; put it in quotes"
    return ""


def _choice(got: object, expected: str) -> str:
    quoted = re.findall(r"'([^']*)'", expected)
    choices = quoted or re.findall(r"[0-9]+", expected)
    *head, last = choices
    allowed = f"one of {', '.join(head)} or {last}" if head else last
    hint = ""
    if isinstance(got, str) and got in choices:
        hint = "; write the number without quotes"
    elif isinstance(got, str) and head and (near := closest(got, choices)):
        hint = f"; did you mean {near}?"
    return f"must be {allowed} (got {show(got)}{hint})"


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's fields under the names that files use."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def _class_of(kind: Any) -> type:
    """The class behind a type expression, ``object`` for what is none."""
    plain = get_origin(kind) or kind
    return plain if isinstance(plain, type) else object


def _options(kind: Any) -> list[Any]:
    """The members of a union without None, without what is annotated on them."""
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if not _is_union(kind):
        return [kind]
    members = [member for member in get_args(kind) if member is not type(None)]
    return [option for member in members for option in _options(member)]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _section_of(kind: Any) -> type[BaseModel] | None:
    """The model that a type expression holds, if it is only one."""
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _tagged(kind: Any, part: str | int) -> Any:
    """The member of a union of several that ``part`` is the tag of, or None."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if not _is_union(kind):
        return None
    members = [member for member in get_args(kind) if member is not type(None)]
    if len(members) == 1:
        return _tagged(members[0], part)
    for member in members:
        if part in _tags(member):
            return member
    return None


def _tags(member: Any) -> tuple[object, ...]:
    if get_origin(member) is Annotated:
        tags = tuple(extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag))
        return tags or _tags(get_args(member)[0])
    if isinstance(member, type) and issubclass(member, BaseModel):
        info = member.model_fields.get(_TAG)
        if info is not None and get_origin(info.annotation) is Literal:
            return get_args(info.annotation)
    return ()


def _step(kind: Any, part: str | int) -> tuple[Any, FieldInfo | None]:
    """What stands below a place of a model under a name, and the field if it is one."""
    for option in _options(kind):
        below = _section_of(option)
        if below is not None:
            info = _fields(below).get(str(part))
            if info is not None:
                return info.annotation, info
        elif issubclass(_class_of(option), Mapping):
            return get_args(option)[1], None
    return None, None
