"""Training rows for the demo model: chats about the pages, alone and after other text.

It exists so that answers stay readable when a question comes after a thousand tokens of
something else: questions are asked alone, after pages, after shuffled sentences and words, and
after plain noise. Everything is drawn from one injected random source; nothing here imports
torch.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

from training.chat_tokenizer import ASSISTANT, BEGIN, END, SYSTEM, USER
from training.demo.pages import Answer, Page

Encode = Callable[[str], list[int]]
"""Text (special tokens included) to ids, with nothing added."""

_SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are the demo model of Baton. Answer briefly.",
    "Answer the question in plain English.",
)

_LEADS: tuple[str, ...] = ("", "", "", "Question: ", "My question: ")
"""What may stand between a long text and the question."""

_NONSENSE = "abcdefghijklmnopqrstuvwxyz0123456789"

_SHORTEST_FILLER = 5


@dataclasses.dataclass(slots=True)
class Row:
    """Token ids, and for each how much it counts when the model is to write it (0: not)."""

    ids: list[int] = dataclasses.field(default_factory=list)
    weights: list[float] = dataclasses.field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Appends ``ids``, all with the same weight."""
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))

    def cut(self, length: int) -> Row:
        """The first ``length`` tokens."""
        return Row(self.ids[:length], self.weights[:length])


class RowMaker:
    """Draws training rows; what a user writes has weight 0, answers and their end count."""

    def __init__(
        self,
        pages: Sequence[Page],
        encode: Encode,
        rng: random.Random,
        *,
        opening: int,
        opening_weight: float,
    ) -> None:
        self._encode = encode
        self._rng = rng
        self._opening = opening
        self._opening_weight = opening_weight
        self._texts = [page.plain_text(headings=flag) for page in pages for flag in (True, False)]
        self._answers: list[Answer] = [answer for page in pages for answer in page.answers]
        self._deck: list[Answer] = []
        self._sentences = [
            part.rstrip(".") + "." for answer in self._answers for part in answer.text.split(". ")
        ]
        self._words = sorted({word for text in self._sentences for word in text.split()})

    def chat(self, *, turns: int, longest_filler: int, longest_row: int) -> Row:
        """A chat of one to ``turns`` questions, cut after ``longest_row`` tokens.

        Six questions in ten stand after a filler, whose length is drawn so that each doubling
        is as likely as the next; none does if ``longest_filler`` is below 5.
        """
        row = Row()
        row.add(self._encode(BEGIN), 0.0)
        if self._rng.random() < 0.15:
            text = self._rng.choice(_SYSTEM_PROMPTS)
            row.add(self._encode(SYSTEM + text + END), 0.0)
        for _ in range(self._rng.randint(1, turns)):
            before = ""
            if longest_filler >= _SHORTEST_FILLER and self._rng.random() < 0.6:
                span = math.log(longest_filler / _SHORTEST_FILLER)
                tokens = int(_SHORTEST_FILLER * math.exp(span * self._rng.random()))
                before = self._filler(tokens)
            self._add_turn(row, before)
        return row.cut(longest_row)

    def page(self, length: int) -> Row:
        """Up to ``length`` tokens of a page, as plain text to be continued."""
        ids = self._encode(BEGIN + self._rng.choice(self._texts) + END)
        start = self._rng.randrange(len(ids) - length) if len(ids) > length else 0
        row = Row()
        row.add(ids[start : start + length], 1.0)
        return row

    def _add_turn(self, row: Row, before: str) -> None:
        answer = self._next_answer()
        question = self._ask(answer)
        row.add(self._encode(USER + before + question + END + ASSISTANT), 0.0)
        ids = self._encode(answer.text + END)
        row.add(ids[: self._opening], self._opening_weight)
        row.add(ids[self._opening :], 1.0)

    def _next_answer(self) -> Answer:
        """Every answer once before any comes again."""
        if not self._deck:
            self._deck = list(self._answers)
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    def _ask(self, answer: Answer) -> str:
        """One of the ways to ask, sometimes written carelessly."""
        question = self._rng.choice(answer.questions)
        style = self._rng.random()
        if style < 0.20:
            question = question.lower()
        if 0.10 < style < 0.30:
            question = question.rstrip("?.!")
        return question

    def _filler(self, tokens: int) -> str:
        """About ``tokens`` tokens of text of one of four kinds, and what leads to a question."""
        kind = self._rng.random()
        if kind < 0.40:
            text = self._gather(tokens, lambda: self._rng.choice(self._texts), "\n\n")
        elif kind < 0.65:
            text = self._gather(tokens, lambda: self._rng.choice(self._sentences), " ")
        elif kind < 0.82:
            text = self._gather(tokens, lambda: self._rng.choice(self._words), " ")
        else:
            text = self._gather(tokens, self._nonsense, " ")
        gap = self._rng.choice(("\n\n", "\n\n", "\n", " "))
        return text + gap + self._rng.choice(_LEADS)

    def _gather(self, tokens: int, draw: Callable[[], str], gap: str) -> str:
        """Joins pieces up to ``tokens`` tokens, and cuts by the average length of a token."""
        pieces: list[str] = []
        size = 0
        while size < tokens:  # each piece has at least one token
            pieces.append(draw())
            size += len(self._encode(pieces[-1]))
        text = gap.join(pieces)
        length = len(text) * tokens // size
        start = self._rng.randrange(len(text) - length + 1)
        return text[start : start + length]

    def _nonsense(self) -> str:
        return "".join(self._rng.choices(_NONSENSE, k=self._rng.randint(1, 9)))
