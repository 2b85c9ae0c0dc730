"""A tokenizer so small that tests can count by hand, as a model folder and as functions.

One token per byte, but for a few words that are one token each. The folder is one that the router
trusts (``tokenizer.json``, a generic class, a chat template); the functions are what a fake engine
uses, so that both count alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = ("the", "baton", "handoff")
"""Each is one token, wherever it stands."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE whose only merges spell ``WORDS``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for right in word[1:]:
            if left + right not in vocabulary:
                merges.append((left, right))
                vocabulary[left + right] = len(vocabulary)
            left += right
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_folder(folder: Path) -> Path:
    """Writes the files of a model folder that have to do with tokens; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What ``CHAT_TEMPLATE`` writes with a generation prompt."""
    return "".join(f"<{m['role']}>{_content(m)}\n" for m in messages) + "<assistant>"


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""
