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
from tests.fakes.engine import KEY, FakeEngine, Fleet, Trouble, expected_text
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
