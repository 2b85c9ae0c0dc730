"""The router between one prefill and two decode workers, each harmed in turn: what a client sees,
how long it takes, and that nothing is left behind. Rows of ``fault_table`` say it in figures.

What needs one decode worker only stands in ``test_faults``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from baton.clock import SystemClock
from baton.types import RequestId, WorkerRecord
from router.care import Orphan, Outcome, Reclaimer
from router.wire import Upstream
from tests.e2e.fault_table import KV_USAGE, Row
from tests.e2e.stack import LEASE_S, MODEL, PROFILE, THRESHOLD, Stack, open_stack, wait_until
from tests.e2e.test_handoff import client, closest_call, complete, prompt_of
from tests.fakes.gate import Gate

pytestmark = pytest.mark.engine

SLOTS = 4
"""Requests at a time on each engine: few, so that a queue is quickly made."""
LONG = 3900
"""Tokens of a prompt that prefill, in small pieces, computes for long enough to be harmed."""


@dataclass
class Trio:
    """The stack, and the gates in front of its decode workers."""

    stack: Stack
    gates: dict[str, Gate]

    def hold(self, hook: Any) -> None:
        """Has ``hook(name, body)`` called before the next decode leg is forwarded, once."""
        for name, gate in self.gates.items():
            gate.before_handoff = lambda body, name=name: self._once(hook, name, body)

    def _once(self, hook: Any, name: str, body: dict[str, Any]) -> None:
        for gate in self.gates.values():
            gate.before_handoff = None
        hook(name, body)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """One prefill worker, and two decode workers behind gates."""
    with open_stack(tmp_path_factory.mktemp("trio"), model) as stack, contextlib.ExitStack() as up:
        stack.profile.write_text(profile())
        router = stack.start_router()
        stack.start_worker("prefill", registry=router.url)
        gates = {}
        for name in ("decode", "decode2"):
            gate = gates[name] = up.enter_context(Gate(""))
            worker = stack.start_worker(
                "decode", "--advertise-url", gate.url, registry=router.url, name=name
            )
            gate.target = worker.url
        stack.wait_ready("prefill", *gates)
        yield Trio(stack, gates)


def profile() -> str:
    """Small pieces of prefill, few slots, and a shorter silence."""
    text = PROFILE.replace("max_num_seqs: 16", f"max_num_seqs: {SLOTS}")
    text = text.replace(
        "prefill: {accelerator: cpu,", "prefill: {accelerator: cpu, max_num_batched_tokens: 32,"
    )
    return text.replace("idle_s: 10", "idle_s: 5") + "  flow: {slots_factor: 1}\n"


@pytest.fixture
def trio(running: Trio) -> Trio:
    """All workers ready and nothing going on."""
    for gate in running.gates.values():
        gate.before_handoff = None
    running.stack.wait_ready("prefill", "decode", "decode2")
    return running


@pytest.fixture
def stack(trio: Trio) -> Stack:
    """The stack alone."""
    return trio.stack


DECODERS = ("decode", "decode2")
ALL = ("prefill", *DECODERS)


def check(stack: Stack, prompt: str, text: str, logprob: float) -> None:
    """The answer is what a decode worker alone says, up to what rounding may change."""
    alone = client(stack, stack.url("decode"))
    own = {"cache_salt": uuid.uuid4().hex}
    text_alone, logprob_alone, _ = complete(alone, prompt, stream=False, extra_body=own)
    assert abs(logprob - logprob_alone) <= 0.1
    if text != text_alone:
        assert closest_call(alone, complete, prompt) < 0.1, (text, text_alone)


def test_how_long_prefill_takes(stack: Stack) -> None:
    prompt = prompt_of(LONG, seed=1)
    began = time.monotonic()
    complete(client(stack), prompt, stream=False)
    print("prefill", time.monotonic() - began)


def test_prefill_killed_while_it_computes_and_just_before(trio: Trio) -> None:
    """One SIGKILL, two requests: the one being prefilled, and one that is sent to the dead engine
    before anybody knows. Both get a correct 200, computed by a decode worker."""
    stack = trio.stack
    during, before = Row("prefill killed while it computes"), Row("prefill killed just before")
    old_engine = stack.worker("prefill")
    assert old_engine is not None
    prompts = prompt_of(LONG, seed=701), prompt_of(THRESHOLD + 9, seed=702)

    def ask(row: Row, prompt: str) -> tuple[str, float, dict[str, str]]:
        with row.client():
            return complete(client(stack), prompt, stream=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, during, prompts[0])
        wait_until("prefill computes", lambda: running_on(stack, "prefill") == 1, timeout_s=10)
        stack.signal_engine("prefill", signal.SIGKILL)
        second = pool.submit(ask, before, prompts[1])
        answers = first.result(60), second.result(60)
    for row, prompt, (text, logprob, headers) in zip(
        (during, before), prompts, answers, strict=True
    ):
        assert headers["x-baton-path"] == "local"
        assert headers["x-baton-reason"] in ("prefill_failed", "no_prefill_worker")
        check(stack, prompt, text, logprob)
        row.saw = f"200, correct, {headers['x-baton-reason']}"
    during.settle(stack, ALL)
    before.settle(stack, ALL)
    assert max(during.took_s, before.took_s) < 20
    # It comes back by itself, as another engine, and is used again.
    stack.wait_ready(*ALL)
    new_engine = stack.worker("prefill")
    assert new_engine is not None
    assert new_engine["engine_id"] != old_engine["engine_id"]
    row = Row("prefill restarted, with a new engine id")
    prompt = prompt_of(THRESHOLD + 2, seed=703)
    with row.client():
        text, logprob, headers = complete(client(stack), prompt, stream=False)
    assert headers["x-baton-path"] == "disaggregated"
    check(stack, prompt, text, logprob)
    row.saw = "200, correct, over the new engine"
    row.settle(stack, ALL)


def running_on(stack: Stack, name: str) -> float:
    """Requests that run on an engine now."""
    return stack.engine_metric(name, "vllm:num_requests_running")
