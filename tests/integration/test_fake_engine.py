"""The fake engine keeps the engine contract, and is wrong exactly where the real one is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from baton.clock import VirtualClock
from baton.types import Role
from tests.contracts.engine_contract import (
    PAIR_CHECKS,
    SINGLE_CHECKS,
    EngineAt,
    PairCheck,
    SingleCheck,
)
from tests.fakes.byte_tokenizer import chat_text
from tests.fakes.engine import KEY, FakeEngine, Fleet, Trouble, expected_chat, expected_text
from tests.fakes.engine_kv import Corruption
from tests.fakes.waiting import until

PROMPT = "a prompt that is long enough to be handed over " * 3


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(VirtualClock())
    yield fleet
    await asyncio.gather(*(engine.kill() for engine in set(fleet.engines.values())))


@pytest.fixture
async def prefill(fleet: Fleet) -> FakeEngine:
    engine = FakeEngine(fleet, "p", Role.PREFILL)
    await engine.start()
    return engine


@pytest.fixture
async def decode(fleet: Fleet) -> FakeEngine:
    engine = FakeEngine(fleet, "d", Role.DECODE)
    await engine.start()
    return engine


def at(engine: FakeEngine) -> EngineAt:
    return EngineAt(engine.url, KEY, engine.model)


@pytest.mark.parametrize("check", SINGLE_CHECKS, ids=lambda check: check.__name__)
async def test_single(check: SingleCheck, decode: FakeEngine) -> None:
    """The contract of one engine."""
    await check(at(decode))


@pytest.mark.parametrize("check", PAIR_CHECKS, ids=lambda check: check.__name__)
async def test_pair(check: PairCheck, prefill: FakeEngine, decode: FakeEngine) -> None:
    """The contract of two engines; nothing was corrupt on the way."""
    await check(at(prefill), at(decode))
    assert prefill.corruptions == decode.corruptions == []


# --- the nine silent corruptions ----------------------------------------------------------------


async def ask(engine: FakeEngine, prompt: Any = PROMPT, **more: Any) -> dict[str, Any]:
    body = {"model": engine.model, "prompt": prompt, "max_tokens": 4, **more}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{engine.url}/v1/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def offer(engine: FakeEngine, prompt: Any = PROMPT, **more: Any) -> dict[str, Any]:
    answer = await ask(
        engine,
        prompt,
        **{"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}, **more},
    )
    params: dict[str, Any] = answer["kv_transfer_params"]
    return params


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


async def test_a_sound_handoff(prefill: FakeEngine, decode: FakeEngine) -> None:
    """The text is that of one engine alone."""
    answer = await ask(decode, kv_transfer_params=await offer(prefill))
    assert texts(answer) == [expected_text(PROMPT, 4)]
    assert decode.corruptions == []
    assert prefill.kv.held(0.0) == []


async def test_a_list_of_prompts(prefill: FakeEngine, decode: FakeEngine) -> None:
    """1: the first prompt's answer is right, the second's is not."""
    answer = await ask(decode, [PROMPT, "other"], kv_transfer_params=await offer(prefill))
    assert texts(answer)[0] == expected_text(PROMPT, 4)
    assert texts(answer)[1] != expected_text("other", 4)
    assert decode.corruptions == [Corruption.PROMPT_LIST]


async def test_several_choices(prefill: FakeEngine, decode: FakeEngine) -> None:
    """2: so with n > 1."""
    answer = await ask(decode, n=2, kv_transfer_params=await offer(prefill))
    assert texts(answer)[0] == expected_text(PROMPT, 4)
    assert texts(answer)[1] != expected_text(PROMPT, 4)
    assert decode.corruptions == [Corruption.SEVERAL_CHOICES]


async def test_a_long_prefill(prefill: FakeEngine, decode: FakeEngine) -> None:
    """3: a prefill of two tokens."""
    answer = await ask(decode, kv_transfer_params=await offer(prefill, max_tokens=2))
    assert texts(answer) != [expected_text(PROMPT, 4)]
    assert decode.corruptions == [Corruption.LONG_PREFILL]


async def test_parameters_used_twice(prefill: FakeEngine, decode: FakeEngine) -> None:
    """4: the second use."""
    params = await offer(prefill)
    await ask(decode, kv_transfer_params=params)
    answer = await ask(decode, kv_transfer_params=params)
    assert texts(answer) != [expected_text(PROMPT, 4)]
    assert decode.corruptions == [Corruption.USED_TWICE]


async def test_another_prompt(prefill: FakeEngine, decode: FakeEngine) -> None:
    """5: decode reads another prompt than prefill did."""
    answer = await ask(decode, PROMPT + "!", kv_transfer_params=await offer(prefill))
    assert texts(answer) != [expected_text(PROMPT + "!", 4)]
    assert decode.corruptions == [Corruption.OTHER_PROMPT]


async def test_after_the_lease(fleet: Fleet, prefill: FakeEngine, decode: FakeEngine) -> None:
    """6: only prefill notices."""
    params = await offer(prefill)
    assert isinstance(fleet.clock, VirtualClock)
    fleet.clock.advance(30.0)
    answer = await ask(decode, kv_transfer_params=params)
    assert texts(answer) != [expected_text(PROMPT, 4)]
    assert decode.corruptions == [Corruption.EXPIRED]
    assert prefill.kv.late_pulls == 1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ({"block_size": 64}, Corruption.BLOCK_SIZE),
        ({"weights": "weights-2"}, Corruption.WEIGHTS),
        ({"model": "adapter"}, Corruption.ADAPTER),
    ],
    ids=["7", "8", "9"],
)
async def test_engines_that_do_not_match(
    fleet: Fleet, prefill: FakeEngine, make: dict[str, Any], why: Corruption
) -> None:
    """7 to 9: block size, weights, adapter."""
    other = FakeEngine(fleet, "other", Role.DECODE, **make)
    await other.start()
    answer = await ask(other, kv_transfer_params=await offer(prefill))
    assert texts(answer) != [expected_text(PROMPT, 4, weights=other.kv.weights)]
    assert other.corruptions == [why]


async def test_parameters_without_a_host(prefill: FakeEngine, decode: FakeEngine) -> None:
    """A client's own parameters without a host hang decode."""
    params = {**await offer(prefill), "remote_host": None}
    await leave_while_it_waits(decode, params)
    await until(lambda: decode.requests()[-1].aborted)


async def test_a_frozen_peer(prefill: FakeEngine, decode: FakeEngine) -> None:
    """A pull from a hung engine waits without end, counted as waiting."""
    params = await offer(prefill)
    prefill.freeze()
    await leave_while_it_waits(decode, params)
    await until(lambda: decode.requests()[-1].finished)
    assert decode.waiting == 0


async def leave_while_it_waits(engine: FakeEngine, params: dict[str, Any]) -> None:
    """A client that goes when its request waits for the pull, and would wait for ever."""
    asking = asyncio.create_task(ask(engine, kv_transfer_params=params))
    await until(lambda: engine.waiting)
    # Long enough to see that nothing comes.
    await asyncio.sleep(0.2)
    assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_killed_peer_and_a_new_run(prefill: FakeEngine, decode: FakeEngine) -> None:
    """A dead peer's blocks are an error; its next run has another engine id."""
    before = await offer(prefill)
    await prefill.kill()
    with pytest.raises(AssertionError, match="Internal server error"):
        await ask(decode, kv_transfer_params=before)
    await prefill.start()
    after = await offer(prefill)
    assert after["remote_engine_id"] != before["remote_engine_id"]
    answer = await ask(decode, kv_transfer_params=after)
    assert texts(answer) == [expected_text(PROMPT, 4)]


@pytest.mark.parametrize("trouble", [Trouble.CUT_BEFORE_HEADERS, Trouble.CUT])
async def test_cuts(decode: FakeEngine, trouble: Trouble) -> None:
    """A cut is a broken connection for the client, and no abort for the engine."""
    decode.inject(trouble)
    with pytest.raises(aiohttp.ClientError):
        await ask(decode)
    assert not decode.requests()[-1].aborted
    assert texts(await ask(decode)) == [expected_text(PROMPT, 4)]


# --- the same through the other endpoints -------------------------------------------------------

OTHERS = ["/v1/chat/completions", "/v1/responses", "/v1/messages"]
LIMITS = {"/v1/responses": "max_output_tokens"}


async def ask_at(
    path: str, engine: FakeEngine, prompt: str = PROMPT, tokens: int = 4, **more: Any
) -> dict[str, Any]:
    content = {"input": prompt} if path == "/v1/responses" else {"messages": question(prompt)}
    body = {"model": engine.model, LIMITS.get(path, "max_tokens"): tokens, **content, **more}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(engine.url + path, json=body) as response,
    ):
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def offer_at(path: str, engine: FakeEngine, **more: Any) -> dict[str, Any]:
    asked = {"tokens": 1, "kv_transfer_params": {"do_remote_decode": True}, **more}
    params: dict[str, Any] = (await ask_at(path, engine, **asked))["kv_transfer_params"]
    return params


def question(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def text_at(answer: dict[str, Any]) -> str:
    if "output" in answer:
        answer = answer["output"][0]
    if "content" in answer:
        text = answer["content"][0]["text"]
    else:
        text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("path", OTHERS)
async def test_a_sound_handoff_anywhere(path: str, prefill: FakeEngine, decode: FakeEngine) -> None:
    """One prompt, one text, whichever API asks."""
    answer = await ask_at(path, decode, kv_transfer_params=await offer_at(path, prefill))
    assert text_at(answer) == expected_chat(question(PROMPT), 4)
    assert decode.corruptions == []


@pytest.mark.parametrize("path", OTHERS)
async def test_spoiled_anywhere(
    path: str, fleet: Fleet, prefill: FakeEngine, decode: FakeEngine
) -> None:
    """3 to 6: each shows in the text; lists and ``n`` (1 and 2) these APIs do not have, but for
    chats, which have the second."""
    right = expected_chat(question(PROMPT), 4)
    long = await offer_at(path, prefill, tokens=2)
    assert text_at(await ask_at(path, decode, kv_transfer_params=long)) != right
    assert text_at(await ask_at(path, decode, kv_transfer_params=long)) != right
    other = await offer_at(path, prefill)
    answer = await ask_at(path, decode, PROMPT + "!", kv_transfer_params=other)
    assert text_at(answer) != expected_chat(question(PROMPT + "!"), 4)
    late = await offer_at(path, prefill)
    assert isinstance(fleet.clock, VirtualClock)
    fleet.clock.advance(30.0)
    assert text_at(await ask_at(path, decode, kv_transfer_params=late)) != right
    assert decode.corruptions == [
        Corruption.LONG_PREFILL,
        Corruption.USED_TWICE,
        Corruption.OTHER_PROMPT,
        Corruption.EXPIRED,
    ]


@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        ({"block_size": 64}, Corruption.BLOCK_SIZE),
        ({"weights": "weights-2"}, Corruption.WEIGHTS),
        ({"model": "adapter"}, Corruption.ADAPTER),
    ],
    ids=["7", "8", "9"],
)
async def test_mismatches_anywhere(
    path: str, fleet: Fleet, prefill: FakeEngine, make: dict[str, Any], why: Corruption
) -> None:
    """7 to 9."""
    other = FakeEngine(fleet, "other", Role.DECODE, **make)
    await other.start()
    answer = await ask_at(path, other, kv_transfer_params=await offer_at(path, prefill))
    right = expected_chat(question(PROMPT), 4, weights=other.kv.weights)
    assert text_at(answer) != right
    assert other.corruptions == [why]


async def test_several_choices_of_a_chat(prefill: FakeEngine, decode: FakeEngine) -> None:
    """2: with ``n``, which responses and messages ignore."""
    for path in OTHERS:
        await ask_at(path, decode, n=2, kv_transfer_params=await offer_at(path, prefill))
    assert decode.corruptions == [Corruption.SEVERAL_CHOICES]


async def test_wrong_kv_shows_in_the_first_logprob(prefill: FakeEngine, decode: FakeEngine) -> None:
    """What a canary compares: the same for right KV, another for wrong."""
    params = await offer(prefill)
    right = await ask(decode, logprobs=1, kv_transfer_params=params)
    wrong = await ask(decode, logprobs=1, kv_transfer_params=params)
    alone = await ask(decode, logprobs=1)
    first = [a["choices"][0]["logprobs"]["token_logprobs"][0] for a in (right, wrong, alone)]
    assert first[0] == first[2]
    assert abs(first[1] - first[0]) > 0.01


async def test_cached_tokens(prefill: FakeEngine, decode: FakeEngine) -> None:
    """Decode tells prefill's cached tokens, and none as written, where usage has details."""
    for engine in (prefill, decode):
        engine.prompt_tokens_details = True
    found = []
    for _ in range(2):
        params = await offer_at("/v1/messages", prefill)
        answer = await ask_at("/v1/messages", decode, kv_transfer_params=params)
        found.append(answer["usage"])
    size = len(chat_text(question(PROMPT)))
    blocks = (size - 1) // 32 * 32
    assert [usage["cache_read_input_tokens"] for usage in found] == [0, blocks]
    assert [usage["cache_creation_input_tokens"] for usage in found] == [0, 0]
    assert [usage["input_tokens"] for usage in found] == [size, size - blocks]
    chat = await ask_at("/v1/chat/completions", decode)
    assert chat["usage"]["prompt_tokens_details"]["cached_tokens"] == blocks


async def test_embeddings(decode: FakeEngine) -> None:
    """Where a model has them: one for each input, in order."""
    decode.embeds = True
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": decode.model, "input": ["a", "bc", "a"]}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{decode.url}/v1/embeddings", json=body) as response,
    ):
        assert response.status == 200
        answer = await response.json()
    first, second, third = (item["embedding"] for item in answer["data"])
    assert first == third != second
    assert answer["usage"]["prompt_tokens"] == 4
