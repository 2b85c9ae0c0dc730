"""The mock workers' book: what of a handoff was done right and wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from benchmarks.router import book as module
from benchmarks.router.book import Book, Counts

ASK = b'{"do_remote_decode":true,"do_remote_prefill":false}'


def offer(book: Book, tokens: int = 40) -> dict[str, Any]:
    """Parameters as prefill gives them."""
    given = book.answer("prefill", b"e-1", ASK, tokens, 1)
    params: dict[str, Any] = msgspec.json.decode(given)
    return params


def decode(book: Book, params: dict[str, Any] | None) -> None:
    given = b"" if params is None else msgspec.json.encode(params)
    assert book.answer("decode", b"e-2", given, 40, 16) == b"null"


def test_prefill_offers_what_the_connector_offers() -> None:
    """All fields, a block for each sixteen tokens, and the worker's own engine."""
    book = Book()
    params = offer(book)
    assert params["remote_block_ids"] == [[1, 2, 3]]
    assert params["remote_engine_id"] == "e-1"
    assert params["remote_num_tokens"] == 40
    assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
    assert offer(book)["remote_request_id"] != params["remote_request_id"]
    assert book.counts == Counts(offered=2)


def test_an_offer_is_pulled_once() -> None:
    """In whatever order a router writes the fields; a second use is counted."""
    book = Book()
    params = offer(book)
    decode(book, dict(reversed(params.items())))
    assert book.counts == Counts(offered=1, pulled=1)
    decode(book, params)
    assert book.counts == Counts(offered=1, pulled=1, unknown=1)


def test_what_was_changed_or_never_given_is_counted() -> None:
    """Each under its own name."""
    book = Book()
    decode(book, offer(book) | {"remote_host": "10.0.0.1"})
    decode(book, {"do_remote_prefill": True, "remote_request_id": "made-up"})
    assert book.counts == Counts(offered=1, changed=1, unknown=1)


@pytest.mark.parametrize("given", [b"", b"null", b"{}"])
def test_legs_without_a_handoff_are_counted_by_role(given: bytes) -> None:
    """So a router that runs both legs without parameters is told from one that runs one leg."""
    book = Book()
    for role in ("prefill", "decode", "standard"):
        assert book.answer(role, b"e", given, 40, 16) == b"null"
    assert book.counts == Counts(whole_on_prefill=1, whole=2)


def test_a_prefill_of_more_than_one_token_is_counted() -> None:
    """It would corrupt the answer of a real engine."""
    book = Book()
    book.answer("prefill", b"e", ASK, 40, 2)
    assert book.counts.long_prefills == 1


def test_offers_that_nobody_pulls_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, so the book stays bounded."""
    monkeypatch.setattr(module, "_MOST_OFFERS", 2)
    book = Book()
    first, second, third = offer(book), offer(book), offer(book)
    for params in (first, second, third):
        decode(book, params)
    assert (book.counts.pulled, book.counts.unknown) == (2, 1)


def test_counts_are_subtracted_field_by_field() -> None:
    """A block's counts are a difference."""
    assert Counts(offered=5, whole=3).minus(Counts(offered=2)) == Counts(offered=3, whole=3)
