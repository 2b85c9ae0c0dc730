"""Streams that break: tried again before the first content, an error event after it."""

from __future__ import annotations

import itertools

import pytest

from baton.types import Load
from tests.fakes.engine import Leg, Trouble
from tests.fakes.engine_kv import words
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    LONG,
    SHORT,
    Stopwatch,
    cluster,
    right_chat,
    right_text,
    tokens_of,
)

FIRST_CONTENT_S = 0.4
QUICK = (
    (
        "connect_s: 0.5, prefill_s: 1, first_token_s: 1,",
        f"connect_s: 0.3, prefill_s: 1, first_token_s: {FIRST_CONTENT_S},",
    ),
)


# --- before the first content -------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["local", "handoff"])
@pytest.mark.parametrize(
    "trouble",
    [Trouble.HANG_BEFORE_HEADERS, Trouble.HANG, Trouble.SILENT_END, Trouble.NOT_JSON],
)
async def test_no_first_content(prompt: str, trouble: Trouble) -> None:
    """Silence, an early end or nonsense instead of the first content: another worker takes over."""
    async with cluster(decodes=2, replace=QUICK) as c:
        leg = Leg.DECODE if prompt == LONG else Leg.LOCAL
        c.d.inject(trouble, leg)
        await c.register(c.decodes[1], load=Load(running=5))
        watch = Stopwatch()
        answer = await c.complete(prompt, stream=True)
        assert answer.text == right_text(prompt)
        assert answer.path == "local"
        assert watch.s < FIRST_CONTENT_S + 1
        first = c.d.requests()[0]
        assert first.leg is leg
        if trouble in (Trouble.HANG_BEFORE_HEADERS, Trouble.HANG):
            await until(lambda: first.aborted)


async def test_a_hung_decode_worker_is_not_tried_again() -> None:
    """When decode hangs in a handoff the retry goes to another worker, however busy, and to the
    same one if it is the only one."""
    async with cluster(decodes=2, replace=QUICK) as c:
        c.d.inject(Trouble.HANG, Leg.DECODE)
        c.d.inject(Trouble.HANG, Leg.LOCAL)
        await c.register(c.decodes[1], load=Load(running=5))
        assert (await c.complete(stream=True)).text == right_text()
        await c.remove(c.decodes[1])
        c.d.faults.clear()
        c.d.inject(Trouble.HANG, Leg.DECODE)
        assert (await c.complete(stream=True)).text == right_text()


async def test_headers_do_not_extend_the_deadline() -> None:
    """The wait for the first content counts from the sending of the request."""
    async with cluster() as c:
        c.d.inject(Trouble.HANG, Leg.LOCAL, times=2)
        watch = Stopwatch()
        assert (await c.complete(SHORT, stream=True)).status == 504
        # One deadline of a second for both attempts, not one each.
        assert watch.s < 1.9


# --- after it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["local", "handoff"])
@pytest.mark.parametrize(
    "trouble", [Trouble.CUT, Trouble.HALF_EVENT, Trouble.HANG, Trouble.SILENT_END]
)
async def test_decode_dies_in_mid_stream(prompt: str, trouble: Trouble) -> None:
    """What was whole is kept, half an event is not, and an error event and ``[DONE]`` follow."""
    async with cluster() as c:
        c.d.inject(trouble, Leg.DECODE if prompt == LONG else Leg.LOCAL, after_chunks=3)
        answer = await c.complete(prompt, stream=True)
        assert answer.status == 200
        assert answer.text == "".join(words(tokens_of(prompt), 3))
        error = answer.stream_error
        assert error is not None
        assert error["code"] == "stream_broken"
        assert error["type"] == "server_error"
        # One answer, not two: nothing is tried again once the client has content.
        assert len(c.d.requests()) == 1
        if prompt == LONG:
            assert await c.metric("baton_handoffs_total", state="failed") == 1


async def test_a_chat_breaks_off() -> None:
    """A chat's role event and content come through before the error."""
    async with cluster() as c:
        c.d.inject(Trouble.CUT, Leg.DECODE, after_chunks=2)
        answer = await c.chat(stream=True)
        assert b'"role"' in answer.events[0]
        assert answer.text == right_chat(tokens=2)
        assert answer.stream_error is not None


async def test_a_role_alone_is_no_content() -> None:
    """A chat that fails after its role event has cost the client nothing: it is tried again."""
    async with cluster() as c:
        c.d.inject(Trouble.ERROR_EVENT, Leg.DECODE)
        answer = await c.chat(stream=True)
        assert answer.text == right_chat()
        assert answer.stream_error is None
        assert sum(b'"role"' in event for event in answer.events) == 1


async def test_the_engines_own_error_event() -> None:
    """An error event of the engine's own in mid-stream is passed on, once."""
    async with cluster() as c:
        c.d.inject(Trouble.ERROR_EVENT, Leg.DECODE, after_chunks=3)
        answer = await c.complete(stream=True)
        error = answer.stream_error
        assert error is not None
        assert error["message"] == "injected"


def prompt_whose_answer_looks_done() -> str:
    """A prompt whose first three words hold the text ``data: [DONE]``."""
    for number in itertools.count():
        prompt = f"{LONG} {number}"
        if any("[DONE]" in word for word in words(tokens_of(prompt), 3)):
            return prompt
    raise AssertionError


async def test_a_text_that_looks_like_the_end() -> None:
    """``data: [DONE]`` in a text is text: the stream that breaks after it is still broken."""
    async with cluster() as c:
        prompt = prompt_whose_answer_looks_done()
        answer = await c.complete(prompt, stream=True)
        assert answer.text == right_text(prompt)
        c.d.inject(Trouble.CUT, Leg.DECODE, after_chunks=3)
        answer = await c.complete(prompt, stream=True)
        assert "[DONE]" in answer.text
        assert answer.stream_error is not None


async def test_the_next_request_works() -> None:
    """A worker whose stream broke is left alone for a moment; another one serves."""
    async with cluster(decodes=2) as c:
        for engine in c.decodes:
            engine.inject(Trouble.CUT, Leg.DECODE, after_chunks=1)
        first = await c.complete(stream=True)
        assert first.stream_error is not None
        broken = next(engine for engine in c.decodes if engine.requests())
        for engine in c.decodes:
            engine.faults.clear()
        for _ in range(4):
            assert (await c.complete(stream=True)).text == right_text()
        assert len(broken.requests()) == 1


async def test_total_deadline() -> None:
    """A stream that never pauses but never ends is ended with the request's time."""
    deadlines = (("idle_s: 0.5, total_s: 3", "idle_s: 0.5, total_s: 1"),)
    async with cluster(replace=deadlines) as c:
        c.d.token_s = 0.05
        answer = await c.complete(stream=True, max_tokens=200)
        assert answer.stream_error is not None
        assert 3 < len(answer.events) < 50


async def test_two_hundred_events() -> None:
    """Many events in many pieces arrive all and in order."""
    async with cluster() as c:
        answer = await c.complete(stream=True, max_tokens=200)
        assert answer.text == right_text(tokens=200)
        assert answer.stream_error is None
