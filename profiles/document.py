"""YAML text to plain data, with the line of every key and value.

Profiles and workloads are written by people and arrive through ConfigMaps, so this reader takes
a small and safe part of YAML: one document of mappings, lists, text, numbers, true, false and
null. Scalars follow YAML 1.2 (``no`` and ``1:00`` are text, ``010`` is ten), because a file that
means something else than it says is worse than one that is refused. Tags, aliases and duplicate
keys are refused; depth, size and number of values are bounded, so that no text can hold the
reader up. It does not know what the data are about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

FieldPath = tuple[str | int, ...]
"""Keys and list indexes from the top of a document to a value."""

MAX_BYTES = 1024 * 1024
"""Of a whole file; a profile is a few thousand."""

_MAX_DEPTH = 16
_MAX_VALUES = 5_000
_MAX_SHOWN = 60
_MAX_WORDS = 200

_NULL = re.compile(r"(?:~|null|Null|NULL)?")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
# Longer runs of digits stay text: no field takes them, and converting them costs time.
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,59}")
_OPEN = re.compile(r"quoted scalar|flow|simple key")
"""Contexts of the parser's whose beginning says more than the place where it gave up."""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``line`` counts from 1 and is None for a whole file."""

    line: int | None
    path: FieldPath
    sentence: str

    def render(self, source: str) -> str:
        """``source:line: path: sentence``, on one line whatever the text held."""
        place = source if self.line is None else f"{source}:{self.line}"
        where = f"{show_path(self.path)}: " if self.path else ""
        return f"{place}: {where}{self.sentence}"


@dataclass(slots=True)
class Document:
    """What a text says, and where.

    Attributes:
        value: plain data; None stands in for what could not be read.
        problems: what is wrong with the text as YAML.
        unread: paths whose value was refused, so that nobody complains about the stand-in.
        key_lines, value_lines: line of each key, and of each value's start, by path.
    """

    value: object = None
    problems: list[Problem] = field(default_factory=list)
    unread: set[FieldPath] = field(default_factory=set)
    key_lines: dict[FieldPath, int] = field(default_factory=dict)
    value_lines: dict[FieldPath, int] = field(default_factory=dict)

    def line_of(self, path: FieldPath) -> int:
        """Line of the value at a path; of its key where the value is a mapping or a list; of the
        nearest enclosing mapping or list where the path is not in the text."""
        for length in range(len(path), -1, -1):
            known = path[:length]
            line = self.value_lines.get(known, self.key_lines.get(known))
            if line is not None:
                return line
        return 1


class UnreadableError(Exception):
    """The text's structure cannot be told; holds the one problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.sentence)
        self.problem = problem


def show(value: object) -> str:
    """A value for a message: short, on one line, harmless to a terminal."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        text = json.dumps(value[: _MAX_SHOWN + 1], ensure_ascii=False)
        text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
        return text if len(value) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN + 1]}..."
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def show_path(path: FieldPath) -> str:
    """``spec.pools.decode``; keys that could be misread stand in quotes, list indexes in []."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.fullmatch(part) else show(part)
            text += f".{key}" if text else key
    return text


def _line(event: yaml.Event) -> int:
    # The parser sets a mark on every event; only its type says otherwise.
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def read_document(text: str, *, noun: str = "profile", number_keys: bool = False) -> Document:
    """Reads one document; messages call it ``noun``. With ``number_keys`` a key may be a whole
    number, and is its digits.

    Raises:
        UnreadableError: not YAML, empty, too deep or too large; reading stopped there.
    """
    if len(text) > MAX_BYTES:
        raise UnreadableError(Problem(None, (), f"is larger than {MAX_BYTES} bytes"))
    try:
        return _Reader(text, noun, number_keys).read()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character U+{error.character:04X} is not allowed"
        raise UnreadableError(Problem(line, (), f"not valid YAML: {what}")) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "malformed"
        what = what[:_MAX_WORDS]
        if "\\t" in what:
            what += "; indent with spaces, not with tabs"
        line = mark.line + 1 if mark else 1
        raise UnreadableError(
            Problem(line, (), f"not valid YAML: {what}{_near(text, line, error)}")
        ) from error
    except (ValueError, OverflowError) as error:
        # The parser lets Python's own errors out for escapes beyond Unicode and the like.
        what = "a number or character escape in it is out of range"
        raise UnreadableError(Problem(None, (), f"not valid YAML: {what}")) from error


def _near(text: str, line: int, error: yaml.MarkedYAMLError) -> str:
    """Which word to look at: of an open quote or bracket and a lost colon the parser complains
    lines later, where nothing is wrong."""
    begun = error.context_mark
    if begun is not None and _OPEN.search(error.context or ""):
        word = _first_word(text, begun.line)
        return f"; look at {word} on line {begun.line + 1}" if word else ""
    word = _first_word(text, line - 1)
    return f"; near {word}" if word else ""


def _first_word(text: str, index: int) -> str:
    lines = text.split("\n", index + 1)
    found = _WORD.search(lines[index]) if index < len(lines) else None
    return show(found[0]) if found else ""


class _Reader:
    """Builds a Document from the parser's events, stopping at the first one out of bounds."""

    def __init__(self, text: str, noun: str, number_keys: bool) -> None:
        self._noun = noun
        self._number_keys = number_keys
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._document = Document()
        self._count = 0

    def read(self) -> Document:
        event = self._next()
        while not isinstance(event, yaml.DocumentStartEvent):
            if isinstance(event, yaml.StreamEndEvent):
                what = f"is empty; a {self._noun} is a YAML mapping"
                raise UnreadableError(Problem(1, (), what))
            event = self._next()
        self._document.value = self._value(self._next(), ())
        self._next()  # the end of the document
        event = self._next()
        if isinstance(event, yaml.DocumentStartEvent):
            what = f"a second document starts here; a {self._noun} is one document"
            self._note(event, (), what)
        return self._document

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _note(self, event: yaml.Event, path: FieldPath, sentence: str) -> None:
        self._document.problems.append(Problem(_line(event), path, sentence))

    def _value(self, event: yaml.Event, path: FieldPath) -> object:
        self._bound(event, path)
        document = self._document
        document.value_lines[path] = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._note(event, path, "YAML aliases are not allowed; write the value out")
            document.unread.add(path)
            return None
        tag: str | None = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            shown = show(tag.replace("tag:yaml.org,2002:", "!!", 1))
            self._note(event, path, f"YAML tags are not allowed (got {shown})")
            document.unread.add(path)
            self._skip(event)
            return None
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style is None and tag is None
            return _plain_value(event.value) if plain else event.value
        if path:
            # A mapping is best found by its key: its own start is its first field.
            document.value_lines[path] = document.key_lines.get(path, document.value_lines[path])
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: FieldPath) -> list[object]:
        values: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _mapping(self, path: FieldPath) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key is None:
                self._skip(self._next())
                continue
            at = (*path, key)
            if key in values:
                first = self._document.key_lines[at]
                self._note(event, at, f"is given twice; it stands on line {first} already")
                self._skip(self._next())
                continue
            self._document.key_lines[at] = _line(event)
            values[key] = self._value(self._next(), at)
        return values

    def _key(self, event: yaml.Event, path: FieldPath) -> str | None:
        """The key, or None after noting why it is none."""
        self._bound(event, path)
        if isinstance(event, yaml.ScalarEvent) and event.tag in (None, "!"):
            key = _plain_value(event.value) if event.style is None else event.value
            if isinstance(key, str):
                return key
            if self._number_keys and isinstance(key, int) and not isinstance(key, bool):
                return str(key)
            self._note(event, path, f"keys must be text (got {show(key)}); put it in quotes")
            return None
        self._note(event, path, "keys must be plain text, without tags, aliases or structure")
        self._skip(event)
        return None

    def _skip(self, event: yaml.Event) -> None:
        """Reads to the end of the value that starts with an event."""
        depth = 0
        while True:
            self._bound(event, ())
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth == 0:
                return
            event = self._next()

    def _bound(self, event: yaml.Event, path: FieldPath) -> None:
        self._count += 1
        line = _line(event)
        if self._count > _MAX_VALUES:
            raise UnreadableError(Problem(line, (), f"holds more than {_MAX_VALUES} values"))
        if len(path) > _MAX_DEPTH:
            raise UnreadableError(Problem(line, (), f"is nested more than {_MAX_DEPTH} deep"))


def _plain_value(text: str) -> object:
    """An unquoted scalar by the core schema of YAML 1.2, without octal and hexadecimal."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        # Python spells infinity and NaN without YAML's dot.
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
