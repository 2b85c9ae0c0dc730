"""A model's chat template, rendered to the text that the engine would tokenize.

It exists so that the router can count the tokens of a chat without asking an engine. The rules are
those of Hugging Face's ``apply_chat_template`` (transformers 5, ``utils/chat_template_utils.py``):
a sandboxed Jinja environment with trimmed blocks, loop controls, the ``generation`` tag and three
helpers. The template comes from the model's folder, never from a client.

It does not decide what a chat means: no tools, no documents, no messages continued. Whatever goes
wrong while rendering is a ``CannotRender``, and the caller asks an engine instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.errors import ModelError
from router.tokenizer_files import (
    GENERIC_TOKENIZER_CLASSES,
    NAMED_SPECIAL_TOKENS,
    read_model_json,
    special_tokens,
)

MAX_TEMPLATE_CHARS: Final = 256 * 1024
"""The longest templates in use have some 30,000 characters."""

MAX_RENDERED_CHARS: Final = 32 * 1024 * 1024
"""A rendering that grows past this is stopped; bodies are bounded well below it."""


@dataclass(frozen=True, slots=True)
class CannotRender:
    """The template refused these messages, or failed on them; an engine would answer 400."""

    reason: str


class _GenerationTag(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it is transparent.

    A call block, as in transformers: assignments inside it stay inside.
    """

    tags = {"generation"}  # noqa: RUF012  the base class declares a plain attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """One compiled template and the special tokens that it can write. Safe to share by threads."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """
        Args:
            source: the Jinja text.
            special_tokens: variables such as ``bos_token``.
            now: local time, for templates that write today's date.

        Raises:
            ModelError: the source is too long or is not a template.
        """
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"chat template longer than {MAX_TEMPLATE_CHARS} characters")
        environment = _environment(now)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"chat template cannot be compiled: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.may_read_parts = _may_read_parts(tree)
        """False only where the engine is sure to hand over each message's content as a string.

        The engine looks at the template's syntax tree: where a loop runs over the content, it
        hands over a list of parts, even for a plain string. This asks less: whether any loop
        could be one of those that it would take for one.
        """

    @classmethod
    def from_folder(
        cls, folder: Path, *, now: Callable[[], datetime] = datetime.now
    ) -> ChatTemplate:
        """The template that an engine started on this folder would use.

        Raises:
            ModelError: there is none, or it cannot be told which, or it cannot be used. The
                message says which.
        """
        config = read_model_json(folder, "tokenizer_config.json") or {}
        template = cls(_source(folder, config), special_tokens(folder, config), now=now)
        unset = template.variables.intersection(NAMED_SPECIAL_TOKENS) - config.keys()
        if unset and config.get("tokenizer_class") not in {None, *GENERIC_TOKENIZER_CLASSES}:
            # A class of its own may have defaults for them that are in no file.
            names = ", ".join(sorted(unset))
            raise ModelError(f"chat template needs {names}, which {folder} does not name")
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str | CannotRender:
        """The prompt's text, special tokens written out.

        Args:
            messages: with string content, or with lists of parts; the template decides.
            add_generation_prompt: true by default, as in the engine's chat endpoint (and unlike
                in transformers).
            variables: further variables; they win over special tokens of the same name.
        """
        context = {
            **self._special_tokens,
            **(variables or {}),
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(context):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    return CannotRender(f"longer than {MAX_RENDERED_CHARS} characters")
                pieces.append(piece)
            text = "".join(pieces)
            text.encode()  # a template can write half a surrogate pair; no tokenizer takes it
        except Exception as error:
            # A template is a program of somebody else's: it can raise anything.
            return CannotRender(f"{type(error).__name__}: {error}")
        return text


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes HTML, which would change the prompt.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _may_read_parts(tree: nodes.Template) -> bool:
    if any(macro.find(nodes.For) for macro in tree.find_all(nodes.Macro)):
        return True  # content may come in as an argument of any name
    return any(_mentions_content(loop.iter) for loop in tree.find_all(nodes.For))


def _mentions_content(expression: nodes.Node) -> bool:
    return any(
        (isinstance(node, nodes.Name) and node.name == "content")
        or (isinstance(node, nodes.Getattr) and node.attr == "content")
        or (isinstance(node, nodes.Const) and node.value == "content")
        for node in [expression, *expression.find_all((nodes.Name, nodes.Getattr, nodes.Const))]
    )


# --- the model's folder -----------------------------------------------------------------------


def _source(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with path.open(encoding="utf-8") as file:
                return file.read(MAX_TEMPLATE_CHARS + 1)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
    of_tokenizer = _default_template(config.get("chat_template"))
    # Belongs to multimodal processors, which the engine asks before the tokenizer.
    of_processor = _default_template(
        (read_model_json(folder, "chat_template.json") or {}).get("chat_template")
    )
    if of_tokenizer and of_processor and of_tokenizer != of_processor:
        raise ModelError(f"{folder} has two chat templates that differ")
    source = of_tokenizer or of_processor
    if source is None:
        raise ModelError(f"{folder} has no chat template")
    return source


def _default_template(value: Any) -> str | None:
    """A template, or the one named ``default`` of several (the others are asked for by name)."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if type(item) is dict}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None
