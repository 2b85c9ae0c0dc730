"""YAML that people read: keys in the order in which they were put, text of several lines as a
block, comments above what they explain.

It writes plain data only, and reads nothing back but what it wrote itself, to find where a comment
belongs.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

WIDTH = 100
Notes = Mapping[str, Mapping[str, str]]
"""By kind: the end of a dotted path, without list indexes, to a comment for its first place."""


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STR = "tag:yaml.org,2002:str"
_DOUBTFUL = re.compile(r"[yYnN]|[-+.]?[0-9][0-9a-fA-FxXoO_.:+-]*")
"""Text that some reader takes for a number or a truth value: 04416038 is text to Python's and a
number to Go's, 12e4 the other way round."""
_SHORT = 64
"""Characters of a list that stands on one line."""


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key, and equal values are written out each time."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """See ``yaml.emitter``: never without indentation."""
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Nobody reads anchors with pleasure."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    if style is None and (_DOUBTFUL.fullmatch(value) or _reads_as(dumper, value) != _STR):
        style = '"'
    return dumper.represent_scalar(_STR, value, style=style)


def _reads_as(dumper: yaml.SafeDumper, value: str) -> str:
    """The tag that the text would have without quotes."""
    tag: str = dumper.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
    return tag


def _list(dumper: yaml.SafeDumper, value: Sequence[Any]) -> yaml.SequenceNode:
    """Short lists of words on one line."""
    words = all(isinstance(item, str | int | float) for item in value)
    short = words and sum(len(str(item)) + 2 for item in value) <= _SHORT
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short or None)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def dump(data: Any) -> str:
    """One document. The last ones are remembered: trees of many profiles have most in common."""
    return _dumped(json.dumps(data))


@functools.lru_cache(maxsize=1024)
def _dumped(data: str) -> str:
    text: str = yaml.dump(
        json.loads(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000
    )
    return text


def comment(text: str, indent: int = 0) -> str:
    """The text as lines of comment; its own line ends are kept, long lines are broken."""
    width = WIDTH - indent - 2
    lines = [part for line in text.split("\n") for part in _wrapped(line, width)]
    return "".join(f"{' ' * indent}# {line}".rstrip() + "\n" for line in lines)


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_on_hyphens=False, break_long_words=False) or [""]


def document(found: Mapping[str, Any], notes: Notes | None = None) -> str:
    """An object of Kubernetes, with the comments that its kind has."""
    wanted = (notes or {}).get(str(found.get("kind")))
    text = dump(found)
    return _noted(text, tuple(wanted.items())) if wanted else text


@functools.lru_cache(maxsize=512)
def _noted(text: str, notes: tuple[tuple[str, str], ...]) -> str:
    """A document with comments above what they explain."""
    wanted = dict(notes)
    above: dict[int, tuple[int, str]] = {}
    for path, line, column in _places(yaml.compose(text, Loader=_Loader), ""):
        for end in [end for end in wanted if f".{path}".endswith(f".{end}")]:
            above[line] = (column, wanted.pop(end))
    lines = text.splitlines(keepends=True)
    for line, (column, said) in sorted(above.items(), reverse=True):
        lines.insert(line, comment(said, column))
    return "".join(lines)


def stream(objects: Sequence[Mapping[str, Any]], notes: Notes | None = None) -> str:
    """Several objects with lines of dashes between them."""
    return "---\n".join(document(found, notes) for found in objects)


def _places(node: Any, path: str) -> Iterator[tuple[str, int, int]]:
    """Every key of a document: dotted path, line and column, in the order of the text. The first
    key of a list's entry is left out: a comment above it would stand before the dash."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = f"{path}.{key.value}" if path else str(key.value)
            yield below, key.start_mark.line, key.start_mark.column
            yield from _places(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _places(value, path)
