"""Prompts of the router benchmark, and how their tokens are counted without tokenizing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from benchmarks.router.text import Prompts, TokenCounter, chat_text, make_tokenizer, write_tokenizer

SEEN = [0, 1, 63, 64, 1023, 1024, 123_456, 2**30 - 1]


@pytest.mark.parametrize("number", SEEN)
def test_counting_blanks_gives_what_the_tokenizer_gives(number: int) -> None:
    """For every prompt of ours, as a chat and as a completion."""
    counter, text = TokenCounter(), Prompts(1500).text(number)
    assert counter.chat([("user", text)]) == len(counter.ids(chat_text([("user", text)])))
    assert counter.text(text) == len(counter.ids(text))


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "How long is this?")],
        [("system", "Be brief.\n"), ("user", " A question? "), ("assistant", "An answer.")],
        [("user", "Überlegung 🙂")],
        [("system", " zebra zebra about"), ("user", " zebra zebra about")],
    ],
)
def test_other_chats_are_tokenized(messages: list[tuple[str, str]]) -> None:
    """A router's own probes are counted right as well."""
    tokenizer = make_tokenizer()
    wanted = len(tokenizer.encode(chat_text(messages), add_special_tokens=False).ids)
    assert TokenCounter().chat(messages) == wanted


def test_the_folder_holds_the_same_tokenizer(tmp_path: Path) -> None:
    """What a router reads from the folder counts as the mock does."""
    read = Tokenizer.from_file(str(write_tokenizer(tmp_path / "m") / "tokenizer.json"))
    text = Prompts(2000).text(7)
    assert len(read.encode(text, add_special_tokens=False).ids) == TokenCounter().text(text)


def test_prompts_differ_early_and_have_the_asked_length() -> None:
    """A prefix cache finds nothing, and the size is what was asked for."""
    prompts = Prompts(1500)
    texts = [prompts.text(number) for number in range(3000)]
    assert len({text[:64] for text in texts}) == len(texts)
    assert all(abs(len(text) - 1500) < 30 for text in texts)


def test_a_body_is_a_chat_request() -> None:
    """With the fields that clients send, and as JSON."""
    body = msgspec.json.decode(Prompts(1500).body(5, answer_tokens=3, stream=True))
    assert body["messages"] == [{"role": "user", "content": Prompts(1500).text(5)}]
    assert (body["max_tokens"], body["stream"]) == (3, True)


def test_the_long_token_changes_no_count() -> None:
    """It is there to widen a router's bounds and stands in no prompt."""
    text = Prompts(1500).text(9)
    long = make_tokenizer(long_token=True)
    assert len(long.encode(text, add_special_tokens=False).ids) == TokenCounter().text(text)
    longest = max(len(token) for token in make_tokenizer().get_vocab())
    assert longest <= 16
    assert max(len(token) for token in long.get_vocab()) == 128
