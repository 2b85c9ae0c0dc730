"""The pages that the demo model learns."""

from __future__ import annotations

import pytest

from training.demo.pages import load_pages, page_sources, parse_page

PAGE = """# Title

Intro one.
Intro two.

## What is it?
<!-- also: Explain it. | It? -->

It is.

## Why?

Because.
"""


def test_a_page() -> None:
    """Title, introduction, and each answer with all the ways to ask for it."""
    page = parse_page(PAGE)
    assert (page.title, page.introduction) == ("Title", "Intro one. Intro two.")
    assert [answer.text for answer in page.answers] == ["It is.", "Because."]
    assert page.answers[0].questions == ("What is it?", "Explain it.", "It?")
    assert page.answers[1].questions == ("Why?",)


def test_a_page_as_text() -> None:
    """With its headings it reads like the page, without them like an essay."""
    page = parse_page(PAGE)
    assert page.plain_text(headings=False) == "Intro one. Intro two.\n\nIt is.\n\nBecause."
    assert page.plain_text(headings=True).startswith("Title\n\nIntro one.")
    assert "Why?\n\nBecause." in page.plain_text(headings=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "needs a title"),
        ("# T\n\nI\n", "needs a title"),
        ("# T\n\n## Q\n\nA\n", "needs a title"),
        ("text\n", "line 1: text that belongs to no question"),
        ("# T\n# T\n", "line 2: a second title"),
        ("# T\nI\n## Q\n## Q\n", "line 4: the question before has no answer"),
        ("# T\nI\n<!-- also: x -->\n", "line 3: other questions without a heading"),
        ("# T\nI\n## Q\nA\nB\n", "line 5: text that belongs to no question"),
        ("# T\nI\n## Q\nA\n## Q\n", "needs a title"),
    ],
)
def test_what_is_not_a_page(source: str, message: str) -> None:
    """The message says where."""
    with pytest.raises(ValueError, match=message):
        parse_page(source)


def test_our_pages() -> None:
    """All parse, are plain ASCII, and no question is asked twice: the model could not know which
    answer is meant."""
    pages = load_pages()
    assert len(pages) == len(page_sources()) >= 10
    assert all(source.isascii() for source in page_sources())
    asked = [
        question.lower().rstrip("?.!")
        for page in pages
        for answer in page.answers
        for question in answer.questions
    ]
    assert len(asked) > 250
    assert len(set(asked)) == len(asked)


def test_the_answers_are_short() -> None:
    """None is longer than what a demo asks for."""
    for page in load_pages():
        for answer in page.answers:
            assert 80 < len(answer.text) < 420, answer.questions[0]
