"""Which way a request takes through the router, and that the answer is the right one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI

from tests.fakes.byte_tokenizer import chat_text, write_folder
from tests.fakes.engine import MODEL, Leg, Refused
from tests.integration.router_cluster import (
    CHAT,
    COMPLETIONS,
    LONG,
    SHORT,
    STANDARD_PROFILE,
    THRESHOLD,
    Cluster,
    cluster,
    long_chat,
    right_chat,
    right_text,
    tokens_of,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer the router can use."""
    return write_folder(tmp_path_factory.mktemp("byte-tokenizer"))


def touched_prefill(c: Cluster) -> bool:
    return any(engine.requests() for engine in c.prefills)


# --- the two ways, four kinds of answers --------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_long_completion(stream: bool) -> None:
    """A long prompt is prefilled on P and answered by D, and the text is that of one engine."""
    async with cluster() as c:
        answer = await c.complete(stream=stream)
        assert answer.status == 200
        assert answer.text == right_text()
        assert answer.path == "disaggregated"
        assert answer.reason == "long_prompt"
        assert answer.headers["x-baton-prompt-tokens"] == str(len(tokens_of(LONG)))
        assert answer.headers["x-baton-profile"] == "test"
        assert answer.headers["x-baton-profile-version"] == c.state.profile.version
        assert [s.leg for s in c.p.requests()] == [Leg.PREFILL]
        assert [s.leg for s in c.d.requests()] == [Leg.DECODE]


@pytest.mark.parametrize("stream", [False, True])
async def test_long_chat(stream: bool) -> None:
    """Chats too."""
    async with cluster() as c:
        answer = await c.chat(stream=stream)
        assert answer.status == 200
        assert answer.text == right_chat()
        assert answer.path == "disaggregated"
        assert [s.leg for s in c.d.requests()] == [Leg.DECODE]


@pytest.mark.parametrize("stream", [False, True])
async def test_short_prompts(stream: bool) -> None:
    """Short prompts go to D alone."""
    async with cluster() as c:
        answer = await c.complete(SHORT, stream=stream)
        assert answer.text == right_text(SHORT)
        assert (answer.path, answer.reason) == ("local", "short_prompt")
        assert answer.headers["x-baton-prompt-tokens"] == str(len(SHORT))
        messages = [{"role": "user", "content": SHORT}]
        answer = await c.chat(messages, stream=stream)
        assert answer.text == right_chat(messages)
        assert answer.path == "local"
        assert not touched_prefill(c)


async def test_a_stream_is_forwarded_in_bytes() -> None:
    """The client gets D's events as they came: ids, order, usage, ``[DONE]``."""
    async with cluster() as c:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await c.chat(**options)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert len(answer.events) == 1 + 8 + 1 + 1
        assert b'"role"' in answer.events[0]
        assert b'"usage"' in answer.events[-2]
        assert answer.events[-1] == b"[DONE]"


async def test_the_bodies_of_both_legs() -> None:
    """P is asked for one token and blocks; D gets the client's body and P's parameters."""
    async with cluster() as c:
        await c.complete(stream=True, temperature=0.5, stop=["x"])
        (first,), (second,) = c.p.requests(), c.d.requests()
        assert first.body["max_tokens"] == 1
        assert first.body["stream"] is False
        assert first.body["kv_transfer_params"]["do_remote_decode"] is True
        assert first.body["temperature"] == second.body["temperature"] == 0.5
        params = second.body["kv_transfer_params"]
        assert params["remote_engine_id"] == c.p.kv.engine_id
        assert params["do_remote_prefill"] is True
        assert second.body == {
            "kv_transfer_params": params,
            "model": MODEL,
            "prompt": LONG,
            "max_tokens": 8,
            "stream": True,
            "temperature": 0.5,
            "stop": ["x"],
        }


async def test_request_ids() -> None:
    """Both legs carry the router's id; the client gets its own back, or the router's."""
    async with cluster() as c:
        answer = await c.complete()
        ours = answer.headers["x-request-id"]
        assert ours.startswith("baton-")
        assert {s.headers["x-request-id"] for e in c.engines for s in e.requests()} == {ours}
        mine = {"X-Request-Id": "mine-1"}
        body = {"model": MODEL, "prompt": SHORT}
        answer = await c.call("POST", COMPLETIONS, json=body, headers=mine)
        assert answer.headers["x-request-id"] == "mine-1"
        assert c.d.requests()[-1].headers["x-request-id"].startswith("baton-")


async def test_a_standard_profile() -> None:
    """Without disaggregation every request goes to a standard worker, nothing is counted."""
    async with cluster(profile=STANDARD_PROFILE, prefills=0) as c:
        answer = await c.complete()
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "standard_profile")
        assert "x-baton-prompt-tokens" not in answer.headers
        assert {s.path for s in c.d.seen} <= {COMPLETIONS, "/tokenize"}


# --- the threshold ------------------------------------------------------------------------------


def prompt_of(tokens: int) -> str:
    """A prompt of exactly so many tokens, in bytes about twice as many."""
    text = "the baton " * (tokens // 4)
    return text + "x" * (tokens - len(tokens_of(text)))


@pytest.mark.parametrize("counted_by", ["tokenizer", "worker"])
async def test_the_threshold_is_exact(counted_by: str, folder: Path) -> None:
    """For 50 lengths around the threshold: one token below never touches P, one at it does."""
    async with cluster(tokenizer=folder if counted_by == "tokenizer" else None) as c:
        asked_before = len([s for s in c.d.seen if s.path == "/tokenize"])
        for tokens in range(THRESHOLD - 25, THRESHOLD + 25):
            prompt = prompt_of(tokens)
            assert len(tokens_of(prompt)) == tokens
            before = len(c.p.requests())
            answer = await c.complete(prompt, max_tokens=1)
            long = tokens >= THRESHOLD
            assert answer.path == ("disaggregated" if long else "local"), tokens
            assert len(c.p.requests()) - before == long, tokens
            assert answer.text == right_text(prompt, 1)
        asked = len([s for s in c.d.seen if s.path == "/tokenize"]) - asked_before
        assert asked == (0 if counted_by == "tokenizer" else 50)


@pytest.mark.parametrize("counted_by", ["tokenizer", "worker"])
async def test_the_threshold_of_chats(counted_by: str, folder: Path) -> None:
    """A chat's length is that of what the template writes."""
    async with cluster(tokenizer=folder if counted_by == "tokenizer" else None) as c:
        frame = len(tokens_of(chat_text([{"role": "user", "content": ""}])))
        for tokens in range(THRESHOLD - 3, THRESHOLD + 3):
            messages = [{"role": "user", "content": prompt_of(tokens - frame)}]
            answer = await c.chat(messages, max_tokens=1)
            assert answer.path == ("disaggregated" if tokens >= THRESHOLD else "local"), tokens
            assert answer.text == right_chat(messages, 1)


async def test_bytes_alone_decide_far_from_the_threshold(folder: Path) -> None:
    """Far below and far above nobody tokenizes; the header then tells bounds, or P's count."""
    async with cluster(tokenizer=folder) as c:
        answer = await c.complete("the baton")
        assert answer.path == "local"
        assert answer.headers["x-baton-prompt-tokens"] == "2-9"
        answer = await c.complete(prompt_of(600))
        assert answer.path == "disaggregated"
        assert answer.headers["x-baton-prompt-tokens"] == "600"
        assert await c.metric("baton_token_count_seconds_count", by="bytes") == 2
        assert await c.metric("baton_token_count_seconds_count", by="tokenizer") == 0


async def test_token_ids(folder: Path) -> None:
    """A prompt of token ids is as long as its list; it is one prompt and may be handed over."""
    async with cluster(tokenizer=folder) as c:
        ids = [5] * THRESHOLD
        answer = await c.complete(ids)
        assert answer.path == "disaggregated"
        assert answer.text == right_text(ids)
        assert (await c.complete(ids[1:])).path == "local"


async def test_a_tokenizer_that_disagrees_is_not_used(folder: Path) -> None:
    """When the engine counts other than the folder says, workers are asked."""
    async with cluster(register=False) as c:
        c.d._tokenize = c.p._tokenize = lambda text: list(text.encode())
        for engine in c.engines:
            await c.register(engine, tokenizer_path=str(folder))
        await c.state.counting.prepare()
        prompt = "the " * (THRESHOLD // 4)
        answer = await c.complete(prompt, max_tokens=1)
        assert answer.path == "disaggregated"
        assert answer.headers["x-baton-prompt-tokens"] == str(THRESHOLD)


async def test_nobody_can_count() -> None:
    """When no worker says how long a prompt is, it stays on one worker."""
    async with cluster() as c:
        c.d._tokenize = _failing_once(c.d._tokenize)
        answer = await c.complete()
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "uncounted_prompt")


def _failing_once(tokenize: Any) -> Any:
    failed: list[bool] = []

    def call(text: str) -> Any:
        if not failed:
            failed.append(True)
            raise Refused(400, "no", "BadRequestError")
        return tokenize(text)

    return call


# --- what a handoff cannot carry ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt": [LONG, LONG + "!"]}, "prompt_list"),
        ({"prompt": [tokens_of(LONG)]}, "prompt_list"),
        ({"n": 2}, "several_choices"),
        ({"use_beam_search": True, "n": 1}, "beam_search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_served_on_one_worker(options: dict[str, Any], reason: str, stream: bool) -> None:
    """What would come out wrong through a handoff goes to D alone, whatever its length."""
    async with cluster() as c:
        answer = await c.complete(**{**options, "stream": stream})
        assert answer.status == 200
        assert (answer.path, answer.reason) == ("local", reason)
        assert not touched_prefill(c)
        assert [s.leg for s in c.d.requests()] == [Leg.LOCAL]


async def test_every_text_of_a_list_is_right() -> None:
    """All answers to a list of prompts are those of one engine."""
    async with cluster() as c:
        prompts = [LONG, LONG + "!", SHORT]
        answer = await c.complete(prompts)
        assert [choice["text"] for choice in answer.json["choices"]] == list(
            map(right_text, prompts)
        )


SMUGGLED = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "p0-run-1",
    "remote_request_id": "r",
    "remote_block_ids": [[1, 2, 3]],
    "remote_host": "192.0.2.1",
    "remote_port": 1,
    "prompt_token_ids": [1],
}


@pytest.mark.parametrize("prompt", [SHORT, LONG])
@pytest.mark.parametrize(
    "smuggle",
    [
        {"kv_transfer_params": SMUGGLED},
        {"kv_transfer_params": {"do_remote_decode": True}},
        {"vllm_xargs": {"kv_transfer_params": SMUGGLED}},
        {"vllm_xargs": {"kv_transfer_params": "text", "mine": 1}},
        {"ec_transfer_params": SMUGGLED},
    ],
)
async def test_transfer_parameters_of_a_client(prompt: str, smuggle: dict[str, Any]) -> None:
    """They never reach an engine, in no place of the body; the request is served without."""
    async with cluster() as c:
        answer = await c.complete(prompt, **smuggle)
        assert answer.text == right_text(prompt)
        for engine in c.engines:
            for seen in engine.requests():
                assert "192.0.2.1" not in str(seen.body)
                assert "prompt_token_ids" not in str(seen.body)
                assert "transfer_params" not in str(seen.body.get("vllm_xargs"))
        if prompt == LONG:
            # P's own parameters, and nothing else.
            params = c.d.requests()[0].body["kv_transfer_params"]
            assert params["remote_request_id"] in c.p.kv.offers


async def test_a_duplicate_key_cannot_smuggle() -> None:
    """Of duplicate keys the router and the engine see the same one."""
    async with cluster() as c:
        raw = (
            b'{"model": "tiny", "prompt": "x", "kv_transfer_params": {"do_remote_prefill": true},'
            b' "prompt": "short", "kv_transfer_params": {"do_remote_prefill": true}}'
        )
        answer = await c.call("POST", COMPLETIONS, data=raw)
        assert answer.text == right_text("short", 16)
        assert [s.leg for s in c.d.requests()] == [Leg.LOCAL]


# --- workers that do not fit --------------------------------------------------------------------


async def test_no_prefill_worker() -> None:
    """Long prompts are served by D alone when P is not there."""
    async with cluster(prefills=0) as c:
        answer = await c.complete()
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "no_prefill_worker")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "sha256:other"},
        {"geometry": "block_size"},
        {"geometry": "dtype"},
    ],
)
async def test_pairs_that_do_not_match(changes: dict[str, Any]) -> None:
    """Other weights under the same name, or another KV geometry: no handoff."""
    async with cluster(register=False) as c:
        await c.register(c.d)
        if field := changes.pop("geometry", None):
            other = {"block_size": 64, "dtype": "float16"}[field]
            changes["geometry"] = msgspec.structs.replace(c.p.record().geometry, **{field: other})
        await c.register(c.p, **changes)
        answer = await c.complete()
        assert answer.text == right_text()
        assert (answer.path, answer.reason) == ("local", "no_matching_pair")
        assert not touched_prefill(c)


async def test_over_the_limit() -> None:
    """A prompt that does not fit never pins blocks on P; the client hears what an engine says."""
    async with cluster() as c:
        for stream in (False, True):
            answer = await c.complete("x" * 2048, stream=stream)
            assert answer.status == 400
            assert "maximum context length" in answer.json["error"]["message"]
            assert answer.reason == "over_limits"
        assert not touched_prefill(c)


async def test_prompt_and_answer_over_the_limit() -> None:
    """So does a prompt whose answer would not fit."""
    async with cluster() as c:
        answer = await c.complete("x" * 2000, max_tokens=100)
        assert answer.status == 400
        assert not touched_prefill(c)


async def test_load_is_spread() -> None:
    """Concurrent long prompts use all workers of both roles, evenly: a handoff counts on its
    decode worker from its plan on."""
    async with cluster(prefills=2, decodes=2) as c:
        for engine in c.engines:
            engine.token_s = 0.02
        answers = await asyncio.gather(*(c.complete(f"{LONG} {i}") for i in range(8)))
        assert [a.text for a in answers] == [right_text(f"{LONG} {i}") for i in range(8)]
        assert [len(e.requests()) for e in c.engines] == [4] * 4


# --- the official client ------------------------------------------------------------------------


@pytest.fixture
async def openai_cluster() -> Any:
    async with cluster() as c, AsyncOpenAI(base_url=f"{c.url}/v1", api_key="none") as client:
        yield c, client


@pytest.mark.parametrize("prompt", [SHORT, LONG])
async def test_openai_completions(openai_cluster: Any, prompt: str) -> None:
    """Completions of the official client, streamed and not."""
    _, client = openai_cluster
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
    assert answer.choices[0].text == right_text(prompt)
    assert answer.usage.completion_tokens == 8
    stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == right_text(prompt)


@pytest.mark.parametrize("prompt", [SHORT, LONG])
async def test_openai_chat(openai_cluster: Any, prompt: str) -> None:
    """Chat completions of the official client, streamed and not."""
    c, client = openai_cluster
    messages = long_chat(prompt)
    answer = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert answer.choices[0].message.content == right_chat(messages)
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=8, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == right_chat(messages)
    assert {s.path for s in c.d.requests()} == {CHAT}


async def test_openai_models(openai_cluster: Any) -> None:
    """Models of the official client."""
    _, client = openai_cluster
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
