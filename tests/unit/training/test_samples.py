"""Training rows of the demo model."""

from __future__ import annotations

import random

from training.chat_tokenizer import ASSISTANT, BEGIN, END, USER
from training.demo.pages import load_pages
from training.demo.samples import Row, RowMaker

PAGES = load_pages()
ANSWERS = {answer.text: answer for page in PAGES for answer in page.answers}


def encode(text: str) -> list[int]:
    """One id for each character."""
    return [ord(letter) for letter in text]


def decode(ids: list[int]) -> str:
    """And back."""
    return "".join(map(chr, ids))


def maker(seed: int = 0) -> RowMaker:
    """Rows of our pages, the first two characters of an answer weighing 5."""
    return RowMaker(PAGES, encode, random.Random(seed), opening=2, opening_weight=5.0)


def learned(row: Row) -> str:
    """What has a weight."""
    return decode([one for one, weight in zip(row.ids, row.weights, strict=True) if weight])


def test_a_chat_asks_and_answers() -> None:
    """What is learned is one answer of the pages and the end, and the question belongs to it."""
    rows = maker()
    for _ in range(100):
        row = rows.chat(turns=1, longest_filler=0, longest_row=10_000)
        text = decode(row.ids)
        assert text.startswith(BEGIN)
        assert text.endswith(END)
        answer = ANSWERS[learned(row).removesuffix(END)]
        question = text.split(USER)[1].split(END)[0]
        assert question.lower().rstrip("?.!") in {
            known.lower().rstrip("?.!") for known in answer.questions
        }


def test_the_opening_weighs_more() -> None:
    """The first tokens of an answer decide which one it will be."""
    row = maker().chat(turns=1, longest_filler=0, longest_row=10_000)
    weights = [weight for weight in row.weights if weight]
    assert weights[:2] == [5.0, 5.0]
    assert set(weights[2:]) == {1.0}


def test_every_answer_comes_before_any_comes_again() -> None:
    """None is left out by chance."""
    rows = maker()
    said = [learned(rows.chat(turns=1, longest_filler=0, longest_row=10_000)) for _ in ANSWERS]
    assert len(set(said)) == len(ANSWERS)


def test_fillers_stand_before_the_question() -> None:
    """Some are long, some are missing, and they are never learned."""
    rows = maker()
    lengths = []
    for _ in range(200):
        row = rows.chat(turns=1, longest_filler=1500, longest_row=10_000)
        user = decode(row.ids).split(USER)[1].split(END + ASSISTANT)[0]
        lengths.append(len(user))
        assert learned(row).removesuffix(END) in ANSWERS
    assert min(lengths) < 60
    assert 1000 < max(lengths) < 1700


def test_further_turns() -> None:
    """A chat has one to the given number of answers."""
    rows = maker()
    counts = {
        decode(rows.chat(turns=3, longest_filler=0, longest_row=10_000).ids).count(ASSISTANT)
        for _ in range(50)
    }
    assert counts == {1, 2, 3}


def test_rows_are_bounded() -> None:
    """Chats and pages are cut, ids and weights alike."""
    rows = maker()
    for _ in range(20):
        row = rows.chat(turns=3, longest_filler=500, longest_row=100)
        page = rows.page(80)
        assert len(row.ids) == len(row.weights) == 100
        assert len(page.ids) == len(page.weights) == 80
        assert set(page.weights) == {1.0}


def test_a_seed_repeats_the_rows() -> None:
    """And another seed gives other rows."""

    def draw(seed: int) -> list[list[int]]:
        rows = maker(seed)
        return [rows.chat(turns=2, longest_filler=50, longest_row=999).ids for _ in range(5)]

    assert draw(1) == draw(1) != draw(2)
