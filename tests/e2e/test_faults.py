"""Real processes killed and stopped: a client gets a correct answer or a clear error, in time."""

from __future__ import annotations

import signal
import time
import uuid
from functools import partial

import httpx
import openai
import pytest

from tests.e2e.fault_table import Row
from tests.e2e.stack import MODEL, THRESHOLD, Stack, wait_until
from tests.e2e.test_handoff import client, complete, prompt_of
from tests.fakes.gate import Gate

pytestmark = pytest.mark.engine


BOTH = ("prefill", "decode")


def streamed(stream: bool) -> str:
    """For the names of cases."""
    return ", streamed" if stream else ""


def engine_is_free(stack: Stack, name: str) -> bool:
    """Nothing runs on the engine, and no KV block is held."""
    running = stack.engine_metric(name, "vllm:num_requests_running")
    return running == 0 and stack.engine_metric(name, "vllm:kv_cache_usage_perc") == 0


def reference(stack: Stack, prompt: str) -> str:
    """What decode says to the prompt when nobody hands over. The salt keeps its own cache away: a
    prompt that is half known is computed in other pieces, and rounds otherwise."""
    own = {"cache_salt": uuid.uuid4().hex}
    return complete(client(stack, stack.url("decode")), prompt, stream=False, extra_body=own)[0]


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_killed_between_the_legs(stack: Stack, gate: Gate, stream: bool) -> None:
    """Prefill has answered, decode is about to pull: SIGKILL. The client gets a correct 200."""
    complete(client(stack), prompt_of(THRESHOLD, seed=400 + stream), stream=False)
    prompt = prompt_of(THRESHOLD + 40, seed=410 + stream)
    gate.before_handoff = lambda _: stack.signal_engine("prefill", signal.SIGKILL)
    row = Row(f"prefill killed after it has answered{streamed(stream)}")
    with row.client():
        text, _, headers = complete(client(stack), prompt, stream=stream)
    assert gate.before_handoff is None
    assert headers["x-baton-path"] == "local"
    assert headers["x-baton-reason"] == "transfer_failed"
    assert text == reference(stack, prompt)
    assert row.took_s < 12
    row.saw = "200, correct, local, transfer_failed"
    # The dead engine is noticed before its heartbeat runs out (5 s), and comes back by itself.
    wait_until("prefill is not ready", lambda: not stack.is_ready("prefill"), timeout_s=4)
    row.settle(stack, BOTH)
    stack.wait_ready("prefill")
    _, _, headers = complete(client(stack), prompt_of(THRESHOLD, seed=420 + stream), stream=False)
    assert headers["x-baton-path"] == "disaggregated"


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_stopped_between_the_legs(stack: Stack, gate: Gate, stream: bool) -> None:
    """Prefill hangs before decode has pulled, which makes decode wait without end: a correct 200
    comes all the same, within the deadline for a first token, whole answers included."""
    prompt = prompt_of(THRESHOLD + 70, seed=430 + stream)
    gate.before_handoff = lambda _: stack.signal_engine("prefill", signal.SIGSTOP)
    row = Row(f"prefill hung between the legs{streamed(stream)}")
    try:
        with row.client():
            text, _, headers = complete(client(stack), prompt, stream=stream)
    finally:
        stack.signal_engine("prefill", signal.SIGCONT)
    assert headers["x-baton-reason"] == "transfer_failed"
    assert text == reference(stack, prompt)
    assert row.took_s < 30
    row.saw = "200, correct, local, transfer_failed"
    stack.wait_ready("prefill")
    row.settle(stack, BOTH)


def test_prefill_stopped_before_the_first_leg(stack: Stack) -> None:
    """Prefill takes the connection and never answers: a correct 200 after the leg's deadline,
    and once the worker is known to be silent, at once."""
    prompt = prompt_of(THRESHOLD + 5, seed=440)
    stack.signal_engine("prefill", signal.SIGSTOP)
    row = Row("prefill hung before its leg")
    try:
        with row.client():
            text, _, headers = complete(client(stack), prompt, stream=False)
        assert headers["x-baton-reason"] in ("prefill_failed", "no_prefill_worker")
        wait_until("prefill is not ready", lambda: not stack.is_ready("prefill"), timeout_s=10)
        began = time.monotonic()
        _, _, again = complete(client(stack), prompt, stream=False)
        took_again = time.monotonic() - began
    finally:
        stack.signal_engine("prefill", signal.SIGCONT)
    assert text == reference(stack, prompt)
    assert row.took_s < 10 + 5
    assert again["x-baton-reason"] == "no_prefill_worker"
    assert took_again < 5
    row.saw = f"200, correct, local, {headers['x-baton-reason']}"
    stack.wait_ready("prefill")
    row.settle(stack, BOTH)


def test_decode_killed_in_mid_stream(stack: Stack) -> None:
    """The client gets an error event, not a silent end; requests work again after the restart."""
    stream = client(stack).completions.create(
        model=MODEL,
        prompt=prompt_of(THRESHOLD + 10, seed=450),
        max_tokens=3000,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    got = 0

    def read_and_kill() -> None:
        nonlocal got
        for _ in stream:
            got += 1
            if got == 5:
                stack.signal_engine("decode", signal.SIGKILL)

    row = Row("decode killed in mid-stream")
    with row.client(), pytest.raises(openai.APIError, match=r"broke off|in the middle"):
        read_and_kill()
    row.saw = "what had come, then an error event"
    assert got >= 5
    refused = httpx.post(
        stack.url("router") + "/v1/completions",
        json={"model": MODEL, "prompt": "now?", "max_tokens": 2},
        timeout=30,
    )
    assert refused.status_code in (200, 502, 503)
    if refused.status_code != 200:
        assert refused.json()["error"]["message"]
    row.settle(stack, BOTH)
    stack.wait_ready("prefill", "decode")
    text, _, headers = complete(client(stack), prompt_of(THRESHOLD + 11, seed=451), stream=False)
    assert text
    assert headers["x-baton-path"] == "disaggregated"


def test_a_client_that_leaves_frees_both_engines(stack: Stack) -> None:
    """Closed in mid-stream: no leg, no open handoff, no KV held."""
    with (
        httpx.Client(timeout=30) as http,
        http.stream(
            "POST",
            stack.url("router") + "/v1/completions",
            json={
                "model": MODEL,
                "prompt": prompt_of(THRESHOLD + 30, seed=460),
                "max_tokens": 3000,
                "stream": True,
                "ignore_eos": True,
            },
        ) as answer,
    ):
        assert answer.headers["x-baton-path"] == "disaggregated"
        next(answer.iter_bytes())

    def free() -> bool:
        status = stack.status()
        return not status["handoffs"]["open"] and status["in_flight"] == 0

    wait_until("the router is free", free, timeout_s=3)
    for name in ("prefill", "decode"):
        wait_until(f"{name} is free", partial(engine_is_free, stack, name), timeout_s=5)


def test_no_log_has_a_traceback_of_ours(stack: Stack) -> None:
    """After all of the above, the router and both supervisors logged no traceback of their own."""
    assert "Traceback" not in stack.servers["router"].text()
    for name in ("prefill", "decode"):
        ours = [
            line for line in stack.servers[name].text().splitlines() if line.startswith("Traceback")
        ]
        assert not ours
