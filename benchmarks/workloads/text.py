"""The text of prompts: what the keys of a plan stand for in one run.

Words are chosen by a hash of the run's salt and the piece's key, so the same plan with another
salt is other text from its first word on and never meets a warm prefix cache; with the same salt
it is the same text on every machine. Nothing here is meant to be read or answered well.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.errors import TargetError
from benchmarks.plan import Piece
from benchmarks.workloads.words import WORDS

_CACHE_CHARS = 16 * 1024 * 1024
_MAX_TRIES = 64
_NEIGHBOUR = "stone"
# Words alone cannot fill every gap where a token is a byte.
_FILLERS = ("a", "I")
_MARKS = (".", ",", "!")

_Words = npt.NDArray[np.intp]


class PromptWriter:
    """Writes prompts of a wanted length; may be called from several threads.

    Args:
        salt: of the run. Another salt gives other text.
        tokenizer: ``tokenizer.json`` or a folder with one. Lengths are then exact, counted on the
            whole prompt without special tokens; a tokenizer that gives no text of just that
            length gets the nearest that was found.
        tokens_per_word: without a tokenizer: how many tokens a word is on average. None is 1.0,
            for the sample from which that number is measured.

    Raises:
        TargetError: there is no such tokenizer, or it cannot be read.
    """

    def __init__(
        self, salt: str, *, tokenizer: Path | None = None, tokens_per_word: float | None = None
    ) -> None:
        if tokens_per_word is not None and not 0.01 <= tokens_per_word <= 1000:
            raise ValueError(f"tokens_per_word is out of range: {tokens_per_word}")
        self._salt = salt
        self._tokens_per_word = tokens_per_word or 1.0
        self._ruler = _Ruler(_counter(tokenizer)) if tokenizer is not None else None
        self._cache: OrderedDict[tuple[str, int, bool], str] = OrderedDict()
        self._cached_chars = 0
        self._lock = threading.Lock()

    def write(self, pieces: Sequence[Piece]) -> str:
        """The prompt: words with single spaces between them. Equal keys give equal text, or the
        front of it where a piece is shorter, but for a word or two at a piece's end that make its
        length exact. A piece of no tokens gives no text."""
        pieces = [piece for piece in pieces if piece.tokens > 0]
        if not pieces:
            return ""
        texts = [self._piece(piece.key, piece.tokens, n == 0) for n, piece in enumerate(pieces)]
        text = "".join(texts)
        if self._ruler is None or len(pieces) == 1:
            return text
        wanted = sum(piece.tokens for piece in pieces)
        if self._ruler.count(text) == wanted:
            return text
        # Some tokenizers join what stands on both sides of a boundary.
        front = "".join(texts[:-1])
        return front + self._ruler.fit(front, self._drawing(pieces[-1].key), wanted)

    def _piece(self, key: str, tokens: int, first: bool) -> str:
        place = (key, tokens, first)
        with self._lock:
            text = self._cache.get(place)
            if text is not None:
                self._cache.move_to_end(place)
                return text
        text = self._compose(key, tokens, first)
        with self._lock:
            if place not in self._cache:
                self._cache[place] = text
                self._cached_chars += len(text)
            while self._cached_chars > _CACHE_CHARS and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_chars -= len(old)
        return text

    def _compose(self, key: str, tokens: int, first: bool) -> str:
        if self._ruler is not None:
            front = "" if first else _NEIGHBOUR
            wanted = tokens + (0 if first else self._ruler.neighbour)
            return self._ruler.fit(front, self._drawing(key), wanted)
        chosen = self._words(key, max(1, round(tokens / self._tokens_per_word)))
        text = " ".join([WORDS[index] for index in chosen])
        return text if first else f" {text}"

    def _drawing(self, key: str) -> Callable[[int], _Words]:
        return lambda count: self._words(key, count)

    def _words(self, key: str, count: int) -> _Words:
        """The first ``count`` words that a key stands for, as indexes; more begin alike."""
        seed = f"{len(self._salt)}:{self._salt}{key}".encode()
        digest = hashlib.shake_256(seed).digest(2 * count)
        return (np.frombuffer(digest, dtype="<u2") % len(WORDS)).astype(np.intp)


class _Ruler:
    """Rows of words of an exact number of tokens: guessed from the length of each word alone, and
    then counted."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count = count
        self.neighbour = count(_NEIGHBOUR)
        words = (*WORDS, *_FILLERS)
        firsts = [max(1, count(word)) for word in words]
        after = [max(1, count(f"{_NEIGHBOUR} {word}") - self.neighbour) for word in words]
        marks = [mark for mark in _MARKS if count(_NEIGHBOUR + mark) == self.neighbour + 1]
        self._mark = marks[0] if marks else ""
        self._lengths = {
            True: np.array(firsts[: len(WORDS)]),
            False: np.array(after[: len(WORDS)]),
        }
        self._shortest = int(self._lengths[False].min())
        self._by_length = {True: _grouped(words, firsts), False: _grouped(words, after)}

    def fit(self, front: str, draw: Callable[[int], _Words], wanted: int) -> str:
        """Words from ``draw`` with which ``front`` becomes ``wanted`` tokens long, or as near to
        it as was found; they begin with a space unless there is nothing in front."""
        guess = wanted - (self.count(front) if front else 0)
        best, best_off = "", wanted
        for attempt in range(_MAX_TRIES):
            text = self._compose(draw, max(1, guess), not front, attempt)
            off = wanted - self.count(front + text)
            if abs(off) < best_off or not best:
                best, best_off = text, abs(off)
            if off == 0:
                break
            guess += off
        return best

    def _compose(
        self, draw: Callable[[int], _Words], tokens: int, first: bool, attempt: int
    ) -> str:
        """Words whose lengths add up to ``tokens``; each attempt ends in other words."""
        chosen = draw(tokens // self._shortest + 2)
        lengths = self._lengths[False][chosen]
        if first:
            lengths[0] = self._lengths[True][chosen[0]]
        ends = np.cumsum(lengths)
        count = max(0, int(np.searchsorted(ends, tokens, side="right")) - attempt % 4)
        left = tokens - (int(ends[count - 1]) if count else 0)
        parts = [WORDS[index] for index in chosen[:count]]
        # The word that did not fit chooses what does.
        fill = self._fill(left, int(chosen[count]), first and not parts, attempt)
        if not parts:
            return fill
        return f"{'' if first else ' '}{' '.join(parts)}{fill}"

    def _fill(self, left: int, choice: int, first: bool, attempt: int) -> str:
        """Words, then marks, of ``left`` tokens, or as near as these come."""
        text = ""
        while left > 0:
            groups = self._by_length[first and not text]
            lengths = sorted((length for length in groups if length <= left), reverse=True)
            if not lengths:
                return text + self._mark * left
            # The longest first; later attempts in every other way, or they would go in circles.
            length = lengths[(attempt // 4) % len(lengths)]
            word = groups[length][(choice + attempt) % len(groups[length])]
            text += word if first and not text else f" {word}"
            left -= length
        return text


def _grouped(words: Sequence[str], lengths: Sequence[int]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for word, length in zip(words, lengths, strict=True):
        groups.setdefault(length, []).append(word)
    return groups


def _counter(path: Path) -> Callable[[str], int]:
    """Counts tokens of a text, without special ones, with a tokenizer from a file or folder."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TargetError(
            "prompts of exact length need the package tokenizers; install Baton with its extra "
            "benchmarks, or leave the tokenizer out"
        ) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise TargetError(f"{file}: no such file; a tokenizer is a tokenizer.json or its folder")
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise TargetError(f"{file}: is not a tokenizer: {str(error)[:300]}") from error
    # A file may ask for these; they would hide the length of what is longer.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count
