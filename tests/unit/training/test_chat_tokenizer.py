"""The token format that the models made here share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.chat_tokenizer import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    SPECIAL_TOKENS,
    save_tokenizer,
    token_id,
    train_bpe,
)

BYTES = train_bpe([], vocab_size=262)
PAIRS = train_bpe(["prefill and decode, prefill and decode"] * 2, vocab_size=300)


def render(messages: list[dict[str, Any]], *, prompt: bool = False) -> str:
    """The chat template, as an engine fills it in."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE).render(
        messages=messages,
        bos_token=BEGIN,
        eos_token=END,
        add_generation_prompt=prompt,
        raise_exception=refuse,
    )


@given(st.text())
def test_one_token_for_each_byte(text: str) -> None:
    """Without merges a text has as many tokens as bytes, and comes back as it was."""
    for special in SPECIAL_TOKENS:
        text = text.replace(special, "")
    ids = BYTES.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.encode())
    assert BYTES.decode(ids) == text


@given(st.text())
def test_never_more_tokens_than_bytes(text: str) -> None:
    """With merges there are at most as many; a prompt has the begin token on top."""
    ids = PAIRS.encode(text, add_special_tokens=False).ids
    assert len(ids) <= len(text.encode())
    assert PAIRS.encode(text).ids == [token_id(PAIRS, BEGIN), *ids]


def test_merges_are_learned() -> None:
    """A text that was seen takes far fewer tokens than bytes."""
    assert PAIRS.get_vocab_size() > 262
    assert len(PAIRS.encode("prefill and decode").ids) < 8


def test_the_special_tokens_come_first() -> None:
    """Their ids are the same in every model."""
    for tokenizer in (BYTES, PAIRS):
        assert [token_id(tokenizer, token) for token in SPECIAL_TOKENS] == list(range(6))
    with pytest.raises(KeyError):
        token_id(BYTES, "<|none|>")


def test_the_chat_template() -> None:
    """Begin, then role, text and end of each message, and the role that is to answer."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": None},
    ]
    assert render(messages) == "<|begin|><|system|>S<|end|><|user|> a\n<|end|><|assistant|><|end|>"
    assert render(messages[1:2], prompt=True).endswith("<|end|><|assistant|>")
    with pytest.raises(jinja2.TemplateError, match="unknown role: judge"):
        render([{"role": "judge", "content": ""}])


def test_what_is_saved(tmp_path: Path) -> None:
    """An engine finds the tokens, their roles and the template."""
    save_tokenizer(BYTES, tmp_path, max_len=77)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE
    assert (config["bos_token"], config["eos_token"]) == (BEGIN, END)
    assert config["model_max_length"] == 77
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [token["content"] for token in tokens["added_tokens"]] == list(SPECIAL_TOKENS)
    assert tokens["normalizer"] is None
