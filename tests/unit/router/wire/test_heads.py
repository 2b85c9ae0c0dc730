"""Heads as bytes: what may not get into them."""

from __future__ import annotations

import json

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import heads


@pytest.mark.parametrize("bad", ["a\r\nb", "a\nb", "a\rb", "a\0b", "\r\n", "a\r\n", "\N{SNOWMAN}"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_no_header_adds_another(bad: str, at: int) -> None:
    """CR, LF, NUL or what latin-1 lacks, in any name or value, is refused."""
    texts = ["x-a", "one", "x-b", "two"]
    texts[at] = bad
    with pytest.raises(ValueError, match=r"CR, LF|latin-1"):
        heads.header_lines([(texts[0], texts[1]), (texts[2], texts[3])])


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4))
def test_as_many_lines_as_headers(headers: list[tuple[str, str]]) -> None:
    """Whatever the headers are, they are refused or take one line each."""
    try:
        lines = heads.header_lines(headers)
    except ValueError:
        return
    assert lines.count(b"\r\n") == lines.count(b"\r") == lines.count(b"\n") == len(headers)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "CONNECTION"])
def test_framing_is_the_wire_s(name: str) -> None:
    """Nobody else says how a body is framed."""
    with pytest.raises(ValueError, match="set by the wire"):
        heads.header_lines([("x-a", "b"), (name, "1")])


def test_status_lines() -> None:
    """Known and unknown statuses."""
    assert heads.status_line(404) == b"HTTP/1.1 404 Not Found\r\n"
    assert heads.status_line(499).startswith(b"HTTP/1.1 499 ")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (heads.NOT_HTTP, 400),
        (heads.HEAD_TOO_SLOW, 408),
        (heads.HEAD_TOO_LARGE, 431),
        (heads.FULL, 503),
        (heads.VERSION, 505),
    ],
)
def test_refusals(refusal: bytes, status: int) -> None:
    """Each is a whole answer with an OpenAI error object, and closes the connection."""
    body = b""
    whole = False

    class Seen:
        def on_body(self, part: bytes) -> None:
            nonlocal body
            body += part

        def on_message_complete(self) -> None:
            nonlocal whole
            whole = True
            assert not parser.should_keep_alive()

    parser = httptools.HttpResponseParser(Seen())
    parser.feed_data(refusal)
    assert whole
    assert parser.get_status_code() == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
