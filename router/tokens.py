"""How many tokens a prompt has, counted in the router: the length decides the path.

It exists because asking an engine costs 5 to 23 ms and a connection, and most prompts are far on
one side of the threshold: there the length in bytes is enough. Between, the model's own tokenizer
runs here. It loads ``tokenizer.json`` with the ``tokenizers`` library, without transformers, and
therefore knows for which folders an engine does the same.

It refuses to guess. Where it cannot be sure that the engine would read the same text (tools,
images, templates of the client's, tokenizers that do not follow ``tokenizer.json``) the answer is
None, and the caller asks a worker's ``/tokenize``. It assumes an engine that was started without
``--chat-template``, ``--chat-template-content-format``, ``--default-chat-template-kwargs`` and
``--tokenizer-mode``. The rules are those of vLLM 0.32.0 (``vllm/renderers/``).

Cost, on one core: rendering a chat 0.02 ms and 2 ms per MB; tokenizing 0.2 to 0.4 ms per KB of
text, up to 0.6 ms per KB around 1 MB, where the tokenizer's cache of words no longer helps. The
tokenizer releases the interpreter lock, so ``count`` and ``classify`` may run in a thread; nothing
here is changed after it is made.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from baton.errors import ModelError
from router.api import Endpoint, GenerateRequest, as_chat
from router.chat_template import ChatTemplate
from router.plain_chats import PlainChats
from router.policy import TokenBounds
from router.tokenizer_files import (
    add_missing_specials,
    architectures,
    longest_token_bytes,
    read_model_json,
    text_doubt,
)

_WRITTEN_AS_CHATS: Final = (Endpoint.RESPONSES, Endpoint.MESSAGES)
"""Endpoints that the engine itself turns into chats."""


@dataclass(frozen=True, slots=True)
class _Text:
    """Text that the engine would tokenize, and whether it adds special tokens around it."""

    text: str
    add_special_tokens: bool


class PromptCounter:
    """Counts for one model. Made once, by ``from_folder``; safe to share by threads.

    Attributes:
        text_doubt: why text is not counted, or None. Token ids are counted always.
        chat_doubt: why chats are not counted, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        longest_token_bytes: int | None,
        needs_nfc: bool,
        template: ChatTemplate | None,
        text_doubt: str | None,
        chat_doubt: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._longest = longest_token_bytes
        self._needs_nfc = needs_nfc
        self._template = template
        self._specials = tokenizer.num_special_tokens_to_add(False)
        self.text_doubt = text_doubt
        self.chat_doubt = chat_doubt or text_doubt
        known = template is not None and self.chat_doubt is None
        self._plain = PlainChats.of(template) if known and template is not None else None

    @classmethod
    def from_folder(
        cls, path: str | Path, *, now: Callable[[], datetime] = datetime.now
    ) -> PromptCounter:
        """Reads ``tokenizer.json``, ``tokenizer_config.json``, ``config.json`` and the template.

        Args:
            path: the model's folder, the one that the engine is started on.
            now: local time, for templates that write today's date.

        Raises:
            ModelError: no usable ``tokenizer.json``, or a file that is no JSON object. A missing
                or unusable chat template is a doubt, not an error.
        """
        folder = Path(path)
        pipeline = read_model_json(folder, "tokenizer.json")
        if pipeline is None:
            raise ModelError(f"{folder} has no tokenizer.json")
        settings = read_model_json(folder, "tokenizer_config.json") or {}
        model = read_model_json(folder, "config.json") or {}
        try:
            tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            add_missing_specials(tokenizer, folder, settings)
        except Exception as error:  # the library raises Exception itself
            raise ModelError(f"{folder}/tokenizer.json cannot be used: {error}") from error
        tokenizer.encode_special_tokens = settings.get("split_special_tokens") is True
        doubt = text_doubt(folder, pipeline, settings, model)
        template, chat_doubt = None, None
        try:
            template = ChatTemplate.from_folder(folder, now=now)
        except ModelError as error:
            chat_doubt = error.message
        if chat_doubt is None and "GptOssForCausalLM" in architectures(model):
            chat_doubt = "chats of this model are not written by a template"
        return cls(
            tokenizer,
            None if doubt else longest_token_bytes(tokenizer, pipeline),
            needs_nfc=pipeline.get("normalizer") is not None,
            template=template,
            text_doubt=doubt,
            chat_doubt=chat_doubt,
        )

    def bounds(self, request: GenerateRequest) -> TokenBounds | None:
        """Bounds from the length in bytes; exact for token ids. Costs a rendering, no tokenizing.

        A byte-level tokenizer without normalizer covers every byte of the text exactly once, so a
        token is at least one byte and at most the longest token of the vocabulary. NFC leaves text
        alone that is in NFC already, and does nothing else to lengths that could be bounded well.
        None for every other tokenizer or text.
        """
        prompt = self._prompt(request)
        return TokenBounds(prompt, prompt) if isinstance(prompt, int) else self._bounds(prompt)

    def count(self, request: GenerateRequest) -> int | None:
        """The prompt's tokens, exactly as the engine would see them; None where that is not known.

        None also for several prompts in one request: each is a sequence of its own.
        """
        prompt = self._prompt(request)
        return prompt if isinstance(prompt, int) else self._count(prompt)

    def token_ids(self, request: GenerateRequest) -> Sequence[int] | None:
        """The prompt as the engine will see it; None where that is not known, as in ``count``."""
        prompt = self._prompt(request)
        if isinstance(prompt, int):
            ids: Sequence[int] = request.body["prompt"]
            # One prompt in a list of its own is one prompt.
            return ids if len(ids) == prompt else None
        encoding = self._encode(prompt)
        return None if encoding is None else encoding.ids

    def classify(self, request: GenerateRequest, threshold: int) -> TokenBounds | None:
        """Bounds that decide on which side of ``threshold`` (in tokens) the prompt is.

        The tokenizer runs only if the length in bytes does not say. None: ask an engine.
        """
        bounds = self._plain_bounds(request)
        if bounds is not None and bounds.decides(threshold):
            return bounds
        prompt = self._prompt(request)
        if isinstance(prompt, int):
            return TokenBounds(prompt, prompt)
        bounds = self._bounds(prompt)
        if bounds is not None and bounds.decides(threshold):
            return bounds
        tokens = self._count(prompt)
        return None if tokens is None else TokenBounds(tokens, tokens)

    def _plain_bounds(self, request: GenerateRequest) -> TokenBounds | None:
        """Of a chat that its messages alone shape, without a rendering; else None."""
        plain, body = self._plain, request.body
        if plain is None or self._longest is None or request.endpoint is not Endpoint.CHAT:
            return None
        if not _SHAPES_CHAT.isdisjoint(body):
            return None
        size = plain.text_bytes(body)
        if size is None:
            return None
        # A normalizer leaves the length alone of what is normal already, as ASCII is.
        if self._needs_nfc and not all(m["content"].isascii() for m in body["messages"]):
            return None
        return TokenBounds(max(1, -(-size[0] // self._longest)), size[1] + self._specials)

    def _bounds(self, prompt: _Text | None) -> TokenBounds | None:
        if prompt is None or self._longest is None:
            return None
        if self._needs_nfc and not unicodedata.is_normalized("NFC", prompt.text):
            return None
        size = len(prompt.text.encode())
        specials = self._specials if prompt.add_special_tokens else 0
        return TokenBounds(-(-size // self._longest) + specials, size + specials)

    def _count(self, prompt: _Text | None) -> int | None:
        encoding = self._encode(prompt)
        return None if encoding is None else len(encoding)

    def _encode(self, prompt: _Text | None) -> Any:
        if prompt is None:
            return None
        # Of the library's methods this one computes no offsets and releases the interpreter lock.
        (encoding,) = self._tokenizer.encode_batch_fast(
            [prompt.text], add_special_tokens=prompt.add_special_tokens
        )
        return encoding

    def _prompt(self, request: GenerateRequest) -> int | _Text | None:
        """A number of token ids, a text, or None where neither is known."""
        if request.endpoint in _WRITTEN_AS_CHATS:
            chat_request = as_chat(request)
            if chat_request is None:
                return None
            request = chat_request
        body = request.body
        if any(body.get(field) is not None for field in _PROMPT_CHANGERS):
            return None
        chat = request.endpoint is Endpoint.CHAT
        add_special_tokens = body.get("add_special_tokens", not chat)
        if not isinstance(add_special_tokens, bool):
            return None
        text: str | None
        if chat:
            text = None if self.chat_doubt else self._chat_text(body)
        else:
            prompt = body.get("prompt")
            if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
                (prompt,) = prompt
            if isinstance(prompt, list):
                return len(prompt) if isinstance(prompt[0], int) else None
            text = None if self.text_doubt else prompt
        return None if text is None else _Text(text, add_special_tokens)

    def _chat_text(self, body: Mapping[str, Any]) -> str | None:
        template = self._template
        if template is None or _changes_chat(body):
            return None
        add_generation_prompt = body.get("add_generation_prompt", True)
        variables = _template_variables(body.get("chat_template_kwargs"), template.variables)
        messages = _messages(body["messages"])
        if variables is None or messages is None or not isinstance(add_generation_prompt, bool):
            return None
        text = template.render(
            [message.as_text() for message in messages],
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        if template.may_read_parts:
            # The engine may hand over lists of parts. Sound templates write both the same.
            from_parts = template.render(
                [message.as_parts() for message in messages],
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            )
            if from_parts != text:
                return None
        return text if isinstance(text, str) else None


# --- chats ------------------------------------------------------------------------------------

# Any value but null: the prompt is cut, extended, or not text.
_PROMPT_CHANGERS: Final = (
    "truncate_prompt_tokens",
    "prompt_embeds",
    "suffix",
    "media_io_kwargs",
    "mm_processor_kwargs",
)
# Any value but null: the template gets, or is, something that this counter does not model.
_CHAT_CHANGERS: Final = ("tools", "documents", "chat_template", "reasoning_effort")
# Fields with which a chat is more than its messages, whatever they hold.
_SHAPES_CHAT: Final = frozenset(
    (
        *_PROMPT_CHANGERS,
        *_CHAT_CHANGERS,
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template_kwargs",
        "continue_final_message",
        "tool_choice",
    )
)
# Arguments of apply_chat_template: as template variables they would be something else.
_NOT_VARIABLES: Final = frozenset(
    {
        "conversation",
        "conversations",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "self",
    }
)
_ROLES: Final = frozenset({"system", "user", "assistant"})
# The engine drops this line from system messages (``renderers/chat_utils.py``).
_DROPPED_SYSTEM_LINE: Final = "x-anthropic-billing-header"


def _changes_chat(body: Mapping[str, Any]) -> bool:
    return (
        any(body.get(field) is not None for field in _CHAT_CHANGERS)
        or body.get("continue_final_message") not in (None, False)
        or body.get("tool_choice") not in (None, "none")
    )


@dataclass(frozen=True, slots=True)
class _Message:
    """One message in the two forms in which an engine may hand it to a template."""

    role: str
    name: str | None
    texts: list[str]

    def as_text(self) -> dict[str, Any]:
        # Empty parts are dropped before they are joined, not after.
        return self._with("\n".join(text for text in self.texts if text))

    def as_parts(self) -> dict[str, Any]:
        return self._with([{"type": "text", "text": text} for text in self.texts])

    def _with(self, content: Any) -> dict[str, Any]:
        message = {"role": self.role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


def _messages(raw: list[dict[str, Any]]) -> list[_Message] | None:
    messages: list[_Message] = []
    for item in raw:
        role, name = item["role"], item.get("name")
        texts = _texts(item.get("content"))
        others = [item[key] for key in item if key not in ("role", "content", "name")]
        # Clients send answers back with their empty fields: tool_calls [], refusal null.
        if role not in _ROLES or texts is None or any(v not in (None, []) for v in others):
            return None
        if not isinstance(name, str | None):
            return None
        if role == "system" and any(text.startswith(_DROPPED_SYSTEM_LINE) for text in texts):
            return None
        messages.append(_Message(role, name, texts))
    return messages


def _texts(content: Any) -> list[str] | None:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.keys() != {"type", "text"}:
            return None
        if part["type"] != "text" or not isinstance(part["text"], str):
            return None
        texts.append(part["text"])
    return texts


def _template_variables(raw: Any, known: Set[str]) -> dict[str, Any] | None:
    """Plain values go to the template as they are, if it reads them; null and "auto" the engine
    takes for unset."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not _NOT_VARIABLES.isdisjoint(raw):
        return None
    if not all(isinstance(value, str | int | float | None) for value in raw.values()):
        return None
    return {k: v for k, v in raw.items() if k in known and v not in (None, "auto")}
