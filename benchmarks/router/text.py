"""What the benchmark's requests say, and how many tokens that is.

Every request has a prompt of its own: routers remember prompts, and one that was seen before would
be routed by its cache. The prompts are made of plain words, each of which is one token of the
benchmark's own tokenizer, so that the mock worker can say a prompt's exact length by counting
blanks: a router that counts for itself compares, and a mock that tokenized would be slower than
the routers. Other texts (a router's own probes) are tokenized.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.workloads.words import WORDS

MODEL = "bench"
"""The name of the only model."""

_MARK = " zebra zebra"
"""How every prompt of ours begins, so that it is known to be made of words alone."""
_TAILS = 64
_BLANKS = 128
_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(*, long_token: bool = False) -> Tokenizer:
    """Byte-level BPE in which " word" is one token for each of ``WORDS``, all else is bytes.

    Args:
        long_token: with a token of 128 blanks as well, as Llama 3's vocabulary has. A router then
            cannot tell from a prompt's bytes alone that it is long, and has to tokenize.
    """
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = "\u0120"  # what stands for a blank in byte-level vocabularies
    names += [blank + word for word in WORDS]
    if long_token:
        names.append(blank * _BLANKS)
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_tokenizer(folder: Path, *, long_token: bool = False) -> Path:
    """Writes those files of a model's folder that have to do with tokens; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(long_token=long_token).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


class TokenCounter:
    """Counts as ``make_tokenizer`` does; texts of ``Prompts`` without tokenizing."""

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        # The words between begin with a blank and end in a letter, so the frame's tokens are the
        # same around any of them.
        self._frame = len(self.ids(chat_text([("user", _MARK)]))) - _MARK.count(" ")

    def ids(self, text: str) -> list[int]:
        """The tokens of any text."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(self, text: str) -> int:
        """Tokens of a completion's prompt."""
        return text.count(" ") if text.startswith(_MARK) else len(self.ids(text))

    def chat(self, messages: Sequence[tuple[str, str]]) -> int:
        """Tokens of a chat, as the template writes it with a generation prompt."""
        if len(messages) == 1:
            role, content = messages[0]
            if role == "user" and content.startswith(_MARK):
                return self._frame + content.count(" ")
        return len(self.ids(chat_text(messages)))


def chat_text(messages: Sequence[tuple[str, str]]) -> str:
    """What the chat template writes for (role, content)s, with a generation prompt."""
    return "".join(f"<{role}>{content}\n" for role, content in messages) + "<assistant>"


class Prompts:
    """Bodies of chat completions whose prompts are all different.

    Args:
        prompt_bytes: length of a prompt, within a word or two.
        seed: prompts of equal seeds are equal.
    """

    def __init__(self, prompt_bytes: int, seed: int = 0) -> None:
        rng = random.Random(seed)  # noqa: S311 (text, not secrets)
        self._tails = tuple(self._tail(rng, prompt_bytes) for _ in range(_TAILS))

    @staticmethod
    def _tail(rng: random.Random, prompt_bytes: int) -> str:
        # The mark and the three words that number the prompt take some thirty bytes.
        words, left = [], prompt_bytes - len(_MARK) - 18
        while left > 0:
            words.append(rng.choice(WORDS))
            left -= len(words[-1]) + 1
        return "".join(f" {word}" for word in words)

    def text(self, number: int) -> str:
        """Prompt ``number``; three words make the first 2**30 differ near their beginning."""
        head = " ".join(WORDS[(number >> shift) & 1023] for shift in (0, 10, 20))
        return f"{_MARK} {head}{self._tails[number % _TAILS]}"

    def body(self, number: int, *, answer_tokens: int, stream: bool = False) -> bytes:
        """A request for ``answer_tokens`` tokens, greedy, in the fields that clients send."""
        return (
            f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"{self.text(number)}"}}],'
            f'"max_tokens":{answer_tokens},"temperature":0,"stream":{str(stream).lower()}}}'
        ).encode()
