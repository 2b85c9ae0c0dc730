"""Starting, registering through Redis, and leaving: nothing stays behind, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.stack import THRESHOLD, Stack, is_alive, open_stack, wait_until
from tests.e2e.test_handoff import client, complete, prompt_of
from tests.fakes.redis_server import RedisServer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def redis_stack(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, str]]:
    """Both workers and two routers over a real Redis."""
    with RedisServer() as server, open_stack(tmp_path_factory.mktemp("redis"), model) as stack:
        stack.start_router("--store", server.url)
        stack.start_router("--store", server.url, name="router2")
        stack.start_worker("prefill", registry=server.url)
        stack.start_worker("decode", registry=server.url)
        stack.wait_ready("prefill", "decode")
        yield stack, server.url


def test_workers_registered_in_redis_serve_two_routers(redis_stack: tuple[Stack, str]) -> None:
    """Both routers know both workers, and hand over."""
    stack, _ = redis_stack
    stack.wait_ready("prefill", "decode", router="router2")
    for number, name in enumerate(("router", "router2")):
        _, _, headers = complete(
            client(stack, stack.url(name)), prompt_of(THRESHOLD, seed=600 + number), stream=False
        )
        assert headers["x-baton-path"] == "disaggregated"


def test_a_worker_that_is_asked_to_leave_drains(redis_stack: tuple[Stack, str]) -> None:
    """SIGTERM in the middle of an answer: the answer ends well, then the worker is gone, with its
    engine, and the registry forgets it at once."""
    stack, _ = redis_stack
    stack.remember()
    pids = [p for p in stack.seen_pids if p == stack.engine_pid("decode")]
    chunks = client(stack).completions.create(
        model="test-llama",
        prompt="go on",
        max_tokens=400,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    finish = None
    for count, chunk in enumerate(chunks, start=1):
        finish = chunk.choices[0].finish_reason or finish
        if count == 3:
            stack.servers["decode"].process.send_signal(signal.SIGTERM)
    assert finish == "length"
    worker = stack.servers["decode"]
    assert worker.process.wait(timeout=60) == 0
    assert pids
    assert not any(is_alive(pid) for pid in pids)
    wait_until("the registry forgot it", lambda: stack.worker("decode") is None, timeout_s=4)
    del stack.servers["decode"]


def test_an_engine_does_not_outlive_its_killed_supervisor(redis_stack: tuple[Stack, str]) -> None:
    """SIGKILL to the worker process: every process of its engine is gone within two seconds, and
    the registry forgets the worker when its heartbeat runs out."""
    stack, _ = redis_stack
    stack.remember()
    engine = stack.engine_pid("prefill")
    group = [pid for pid in stack.seen_pids if is_alive(pid) and os.getpgid(pid) == engine]
    assert len(group) >= 2
    worker = stack.servers.pop("prefill")
    worker.process.kill()
    worker.process.wait(timeout=5)
    wait_until("the engine is gone", lambda: not any(map(is_alive, group)), timeout_s=2)
    wait_until("the registry forgot it", lambda: stack.worker("prefill") is None, timeout_s=20)


def test_a_router_without_workers_says_so(redis_stack: tuple[Stack, str]) -> None:
    """A request waits for a worker for as long as the profile says; then 503 with an OpenAI error
    object and Retry-After, which the client's own retries honour."""
    stack, _ = redis_stack
    with contextlib.suppress(KeyError):
        stack.stop("decode")
    answer = httpx.post(
        stack.url("router") + "/v1/completions",
        json={"model": "test-llama", "prompt": "x"},
        timeout=60,
    )
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "no_worker_available"
    assert httpx.get(stack.url("router") + "/readyz").status_code == 503
    assert httpx.get(stack.url("router") + "/healthz").status_code == 200
