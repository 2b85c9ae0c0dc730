"""Text of prompts: exact lengths, salts, shared pieces, and the same words on every machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from baton.errors import TargetError
from benchmarks.plan import Piece
from benchmarks.workloads import PromptWriter
from benchmarks.workloads.words import WORDS
from training.chat_tokenizer import save_tokenizer, train_bpe

CORPUS = [" ".join(WORDS), " ".join(reversed(WORDS))]


def bytes_tokenizer() -> Tokenizer:
    """One token a byte."""
    return train_bpe([], vocab_size=262)


def bpe_tokenizer() -> Tokenizer:
    """Most words one or two tokens."""
    return train_bpe(CORPUS, vocab_size=1500)


def joining_tokenizer() -> Tokenizer:
    """Merges across spaces, so that lengths of parts do not add up."""
    tokenizer = Tokenizer(models.BPE(unk_token="<u>"))
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<u>"], show_progress=False, min_frequency=1
    )
    tokenizer.normalizer = normalizers.Replace(" ", "_")
    tokenizer.train_from_iterator([text[:3000] for text in CORPUS], trainer=trainer)
    return tokenizer


def wordpiece_tokenizer() -> Tokenizer:
    """Words and ##ends, whitespace is nothing."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer=trainer)
    return tokenizer


Both = tuple[Tokenizer, PromptWriter]


@pytest.fixture(
    scope="module",
    params=[bytes_tokenizer, bpe_tokenizer, joining_tokenizer, wordpiece_tokenizer],
    ids=["bytes", "bpe", "joining", "wordpiece"],
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    make: Callable[[], Tokenizer] = request.param
    tokenizer = make()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return tokenizer, PromptWriter("salt", tokenizer=file)


def tokens_of(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_lengths_are_exact(both: Both) -> None:
    """The whole prompt has just the tokens asked for, whatever its pieces are."""
    tokenizer, writer = both
    for n in (*range(5, 40), 100, 513):
        assert tokens_of(tokenizer, writer.write([Piece(f"k{n}", n)])) == n
        pieces = [Piece("system", 31), Piece("block/7", 64), Piece(f"q{n}", n)]
        assert tokens_of(tokenizer, writer.write(pieces)) == n + 95


@pytest.fixture(scope="module")
def byte_writer(tmp_path_factory: pytest.TempPathFactory) -> PromptWriter:
    folder = tmp_path_factory.mktemp("bytes")
    save_tokenizer(bytes_tokenizer(), folder, max_len=64)
    return PromptWriter("salt", tokenizer=folder)


@given(pieces=st.lists(st.tuples(st.text(max_size=8), st.integers(1, 200)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_lengths_are_exact_for_any_pieces(
    byte_writer: PromptWriter, pieces: list[tuple[str, int]]
) -> None:
    """Any keys and any lengths, one token a byte."""
    text = byte_writer.write([Piece(key, tokens) for key, tokens in pieces])
    assert len(text) == sum(tokens for _, tokens in pieces)


def test_short_pieces_are_filled(byte_writer: PromptWriter) -> None:
    """Where a token is a byte, even one or two are met; nothing is nothing."""
    for n in range(1, 12):
        text = byte_writer.write([Piece("k", n)])
        assert len(text) == n
        assert not text.startswith(" ")
        assert len(byte_writer.write([Piece("p", 20), Piece("k", n)])) == 20 + n
    assert byte_writer.write([]) == byte_writer.write([Piece("k", 0)]) == ""


def test_another_salt_is_other_text_from_the_start(both: Both) -> None:
    """Prompts of two salts share no first block, nor do those of two keys."""
    _, writer = both
    texts = [writer.write([Piece(f"k{n}", 200)]) for n in range(60)]
    other = PromptWriter("salt2", tokens_per_word=1.0)
    mine = PromptWriter("salt", tokens_per_word=1.0)
    texts += [w.write([Piece(f"x{n}", 200)]) for n in range(60) for w in (mine, other)]
    starts = {" ".join(text.split()[:4]) for text in texts}
    assert len(starts) == len(texts)


def test_equal_keys_are_equal_text(both: Both) -> None:
    """A shared piece is the same in front of every prompt, and a shorter one is its front."""
    _, writer = both
    one = writer.write([Piece("system", 64), Piece("a", 40)])
    two = writer.write([Piece("system", 64), Piece("b", 40)])
    shared = writer.write([Piece("system", 64)])
    assert one[: len(shared) - 8] == two[: len(shared) - 8] == shared[:-8]
    assert one != two
    longer = writer.write([Piece("system", 128)])
    assert longer.startswith(shared[:-12])


def test_a_prompt_does_not_depend_on_what_was_written_before(both: Both, tmp_path: Path) -> None:
    """Neither on the cache nor on the writer."""
    tokenizer, writer = both
    pieces = [Piece("system", 64), Piece("q", 50)]
    first = writer.write(pieces)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fresh = PromptWriter("salt", tokenizer=tmp_path)
    fresh.write([Piece("other", 9)])
    assert fresh.write(pieces) == first == writer.write(pieces)


def test_lengths_without_a_tokenizer_are_words() -> None:
    """Tokens by tokens_per_word, rounded, and a word at least; 1.0 if it is not known."""
    pieces = [Piece("a", 130), Piece("b", 1)]
    assert len(PromptWriter("s", tokens_per_word=1.3).write(pieces).split(" ")) == 101
    assert len(PromptWriter("s").write(pieces).split(" ")) == 131
    with pytest.raises(ValueError, match="tokens_per_word is out of range"):
        PromptWriter("s", tokens_per_word=0.0)


def test_words_are_the_same_in_every_process() -> None:
    """No hash of the interpreter's is in it, and the text of an old run can be made again."""
    code = (
        "from benchmarks.workloads.text import PromptWriter; from benchmarks.plan import Piece; "
        "print(PromptWriter('s').write([Piece('k', 6)]), end='')"
    )
    here = PromptWriter("s").write([Piece("k", 6)])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == here == PINNED


PINNED = "diary meal fruit button heart guess"


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes first, and a text beyond the bound is still written."""
    monkeypatch.setattr("benchmarks.workloads.text._CACHE_CHARS", 2000)
    writer = PromptWriter("s")
    texts = {n: writer.write([Piece(f"k{n}", 50)]) for n in range(50)}
    assert writer._cached_chars <= 2000
    assert writer._cached_chars == sum(len(text) for text in writer._cache.values())
    assert len(writer.write([Piece("k", 9000)])) > 2000
    assert all(writer.write([Piece(f"k{n}", 50)]) == text for n, text in texts.items())


def test_several_threads_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that share a writer and its small cache get the right text each."""
    monkeypatch.setattr("benchmarks.workloads.text._CACHE_CHARS", 500)
    writer = PromptWriter("s")
    expected = {n: PromptWriter("s").write([Piece(f"k{n}", 20)]) for n in range(20)}
    wrong: list[int] = []

    def work() -> None:
        for n in [*range(20)] * 40:
            if writer.write([Piece(f"k{n}", 20)]) != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert writer._cached_chars == sum(len(text) for text in writer._cache.values())


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    """Missing and broken files are refused by name."""
    with pytest.raises(TargetError, match="no such file; a tokenizer is"):
        PromptWriter("s", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TargetError, match="is not a tokenizer"):
        PromptWriter("s", tokenizer=tmp_path)


def test_a_tokenizers_own_limits_do_not_hide_lengths(tmp_path: Path) -> None:
    """Truncation and padding that a file asks for are not applied."""
    tokenizer = bytes_tokenizer()
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(PromptWriter("s", tokenizer=tmp_path).write([Piece("k", 50)])) == 50


def test_the_words_are_plain_and_different() -> None:
    """Ten bits choose one of 1024 lower-case words."""
    assert len(set(WORDS)) == len(WORDS) == 1024
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
