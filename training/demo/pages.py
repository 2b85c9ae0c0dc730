"""The pages that the demo model learns, read from the Markdown files of this package.

A page is a title, an introduction and questions with their answers; other ways to put a
question stand in a comment below it. The files are ordinary pages that a person can read.
This module only parses: what is made of the text is decided in :mod:`training.demo.samples`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib import resources

_ALSO = re.compile(r"^<!-- also: (?P<list>.+) -->$")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer and the ways in which it can be asked for; the first is the heading."""

    questions: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page: ``answers`` follow one another, so that the page reads as a text too."""

    title: str
    introduction: str
    answers: tuple[Answer, ...]

    def plain_text(self, *, headings: bool) -> str:
        """The page as running text, paragraphs with blank lines between them."""
        parts = [self.title] if headings else []
        parts.append(self.introduction)
        for answer in self.answers:
            if headings:
                parts.append(answer.questions[0])
            parts.append(answer.text)
        return "\n\n".join(parts)


def parse_page(source: str) -> Page:
    """Parses one Markdown page.

    Raises:
        ValueError: with the line number, if the page does not have the expected form.
    """
    title = ""
    introduction: list[str] = []
    answers: list[Answer] = []
    questions: tuple[str, ...] = ()
    for number, raw in enumerate(source.splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        also = _ALSO.match(line)
        if line.startswith("## "):
            if questions:
                raise ValueError(f"line {number}: the question before has no answer")
            questions = (line[3:].strip(),)
        elif line.startswith("# "):
            if title:
                raise ValueError(f"line {number}: a second title")
            title = line[2:].strip()
        elif also:
            if len(questions) != 1:
                raise ValueError(f"line {number}: other questions without a heading above")
            questions += tuple(text.strip() for text in also["list"].split(" | "))
        elif questions:
            answers.append(Answer(questions, line))
            questions = ()
        elif title and not answers:
            introduction.append(line)
        else:
            raise ValueError(f"line {number}: text that belongs to no question")
    if not title or not introduction or not answers or questions:
        raise ValueError("a page needs a title, an introduction, and questions with answers")
    return Page(title, " ".join(introduction), tuple(answers))


def load_pages() -> tuple[Page, ...]:
    """The pages of this package, in the order of their file names."""
    return tuple(parse_page(source) for source in page_sources())


def page_sources() -> Sequence[str]:
    """The Markdown sources of the pages, in the order of their file names."""
    folder = resources.files(__package__) / "corpus"
    files = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".md")),
        key=lambda entry: entry.name,
    )
    return [entry.read_text(encoding="utf-8") for entry in files]
