"""The router between one prefill and two decode workers, each harmed in turn: what a client sees,
how long it takes, and that nothing is left behind. Rows of ``fault_table`` say it in figures.

What needs one decode worker only stands in ``test_faults``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

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
    """Few slots, and a shorter silence; on prefill small pieces, and little room, so that blocks
    are soon used again. It may take longer than a lease."""
    text = PROFILE.replace("max_num_seqs: 16", f"max_num_seqs: {SLOTS}")
    text = text.replace(
        f"prefill: {{accelerator: cpu, max_num_seqs: {SLOTS}, cpu_kv_cache_mib: 64,",
        f"prefill: {{accelerator: cpu, max_num_seqs: {SLOTS}, cpu_kv_cache_mib: 24, "
        "max_num_batched_tokens: 32,",
    )
    assert "max_num_batched_tokens" in text
    text = text.replace("prefill_s: 10", "prefill_s: 30").replace("idle_s: 10", "idle_s: 5")
    return text + "  flow: {slots_factor: 1}\n"


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


def check(stack: Stack, prompt: str, text: str, logprob: float, *, on: str = "decode") -> None:
    """The answer is what a decode worker alone says, up to what rounding may change."""
    alone = client(stack, stack.url(on))
    own = {"cache_salt": uuid.uuid4().hex}
    text_alone, logprob_alone, _ = complete(alone, prompt, stream=False, extra_body=own)
    assert abs(logprob - logprob_alone) <= 0.1
    if text != text_alone:
        assert closest_call(alone, complete, prompt) < 0.1, (text, text_alone)


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
    rows = (during, before)
    for row, (_, _, headers) in zip(rows, answers, strict=True):
        assert headers["x-baton-path"] == "local"
        assert headers["x-baton-reason"] in ("prefill_failed", "no_prefill_worker")
        row.saw = f"200, correct, local, {headers['x-baton-reason']}"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda row: row.settle(stack, ALL), rows))
    for prompt, (text, logprob, _) in zip(prompts, answers, strict=True):
        check(stack, prompt, text, logprob)
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


def expired(stack: Stack) -> float:
    """Offers of prefill whose lease ended before anybody pulled."""
    return stack.engine_metric("prefill", "vllm:nixl_num_kv_expired_reqs_total")


# --- decode -------------------------------------------------------------------------------------


def test_decode_killed_before_its_first_event(trio: Trio) -> None:
    """SIGKILL just before the leg reaches it: another decode worker answers, after a fresh
    prefill, and what prefill offered to the dead one is given back long before its lease ends."""
    stack = trio.stack
    row = Row("decode killed before its first event")
    killed: list[str] = []

    def kill(name: str, _: Any) -> None:
        stack.signal_engine(name, signal.SIGKILL)
        killed.append(name)

    trio.hold(kill)
    prompt = prompt_of(THRESHOLD + 31, seed=710)
    with row.client():
        text, logprob, headers = complete(client(stack), prompt, stream=True)
    assert killed
    row.saw = f"200, correct, {headers['x-baton-path']}, {headers['x-baton-reason']}"
    row.settle(stack, ALL)
    check(stack, prompt, text, logprob)
    used = [
        body["kv_transfer_params"]["remote_request_id"]
        for gate in trio.gates.values()
        for body in gate.seen
        # A leg, not one of the requests by which an offer is given back.
        if (body.get("kv_transfer_params") or {}).get("do_remote_prefill")
        and body["model"] == MODEL
    ]
    assert len(used) == len(set(used)), "parameters were used twice"
    assert row.took_s < 20
    assert row.settled["prefill"] < LEASE_S - 3


def test_decode_hung_with_a_whole_answer(trio: Trio) -> None:
    """A whole answer shows nothing until its end, so its worker's silence has to tell: the other
    decode worker answers, long before the request's own time is over."""
    stack = trio.stack
    row = Row("decode hung with a whole local answer")
    prompt, answers = "a short prompt", {}

    def ask() -> None:
        with row.client():
            answers[0] = httpx.post(
                stack.url("router") + "/v1/completions",
                json={
                    **{"model": MODEL, "prompt": prompt, "max_tokens": 700, "temperature": 0},
                    **{"ignore_eos": True, "logprobs": 1},
                },
                timeout=120,
            )

    thread = threading.Thread(target=ask)
    thread.start()
    hung = ""

    def answering() -> bool:
        nonlocal hung
        hung = next((name for name in DECODERS if running_on(stack, name) == 1), "")
        return hung != ""

    wait_until("somebody answers", answering, timeout_s=20)
    stack.signal_engine(hung, signal.SIGSTOP)
    try:
        thread.join(100)
        assert not thread.is_alive()
    finally:
        stack.signal_engine(hung, signal.SIGCONT)
    answer = answers[0]
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-baton-reason"] == "decode_failed"
    choice = answer.json()["choices"][0]
    check(stack, prompt, choice["text"][:12], choice["logprobs"]["token_logprobs"][0])
    row.saw = "200, correct, from the other"
    row.settle(stack, ALL)
    assert row.took_s < 45


# --- clients that leave ---------------------------------------------------------------------------


def nothing_in_flight(stack: Stack) -> bool:
    """The router is done with everybody."""
    return bool(stack.status()["in_flight"] == 0)


@contextlib.contextmanager
def leaving(stack: Stack, body: dict[str, Any], *, send: float = 1.0) -> Iterator[socket.socket]:
    """A client that sends a share of its request and is gone at the end of the block."""
    url = urlsplit(stack.url("router"))
    assert url.hostname
    data = json.dumps({"model": MODEL, "temperature": 0, "max_tokens": 8, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode() + data[: int(len(data) * send)])
        yield connection


def handoff_states(stack: Stack) -> list[str]:
    """Of those that are open."""
    return [handoff["state"] for handoff in stack.admin("handoffs")["open"]]


def gone(row: Row, stack: Stack) -> None:
    """What is asserted of every client that left: all is free, long before a lease ends."""
    row.saw = "(gone)"
    row.settle(stack, ALL)
    assert nothing_in_flight(stack)
    assert max(row.settled.values()) < LEASE_S - 3, row.settled


def test_client_gone_while_it_sends_its_body(stack: Stack) -> None:
    """Half a body, and no more: no engine ever hears of it."""
    row = Row("client gone while it sends its body")
    before = stack.engine_metric("prefill", "vllm:request_success_total")
    with row.client(), leaving(stack, {"prompt": prompt_of(900, seed=720)}, send=0.5):
        wait_until("half a request", lambda: stack.status()["in_flight"] == 1, timeout_s=10)
    wait_until("nobody", lambda: nothing_in_flight(stack), timeout_s=10)
    gone(row, stack)
    assert stack.engine_metric("prefill", "vllm:request_success_total") == before


def test_client_gone_in_the_queue(stack: Stack) -> None:
    """All places are taken; the one that waits and leaves takes none."""
    row = Row("client gone in the queue")
    busy = {"prompt": "on and on", "max_tokens": 3000, "ignore_eos": True, "stream": True}

    def waiting() -> int:
        return sum(stack.admin("queue")["waiting_by_model"].values())

    with contextlib.ExitStack() as up:
        for _ in range(2 * SLOTS):
            up.enter_context(leaving(stack, busy))
        full = 2 * SLOTS
        wait_until("all places are taken", lambda: legs(stack) == full, timeout_s=20)
        with row.client(), leaving(stack, {"prompt": prompt_of(900, seed=721)}):
            wait_until("somebody waits", lambda: waiting() == 1, timeout_s=10)
        wait_until("nobody waits", lambda: waiting() == 0, timeout_s=10)
        assert legs(stack) == full
        assert handoff_states(stack) == []
    gone(row, stack)


def legs(stack: Stack) -> int:
    """Legs of the router on decode workers."""
    workers = stack.admin("workers")["workers"]
    return sum(worker["legs"] for worker in workers if worker["record"]["role"] == "decode")


def test_client_gone_during_prefill(stack: Stack) -> None:
    """Prefill stops computing."""
    row = Row("client gone during prefill")
    with row.client(), leaving(stack, {"prompt": prompt_of(LONG, seed=722)}):
        wait_until("prefill computes", lambda: running_on(stack, "prefill") == 1, timeout_s=10)
        assert handoff_states(stack) == ["prefilling"]
    gone(row, stack)


@pytest.mark.parametrize("stream", [False, True])
def test_client_gone_between_the_legs(trio: Trio, stream: bool) -> None:
    """Prefill has offered, and decode never heard of it: the offer is given back at once, although
    the lease has seconds to go."""
    stack = trio.stack
    row = Row(f"client gone between the legs{', streamed' if stream else ''}")
    held, left = threading.Event(), threading.Event()

    def hold(_name: str, _body: Any) -> None:
        held.set()
        left.wait(30)

    trio.hold(hold)
    body = {"prompt": prompt_of(900, seed=723 + stream), "stream": stream}
    with row.client(), leaving(stack, body):
        assert held.wait(30)
        assert stack.engine_metric("prefill", KV_USAGE) > 0
    wait_until("the router knows", lambda: nothing_in_flight(stack), timeout_s=10)
    left.set()
    gone(row, stack)
    # Not said without being so: the router counts nothing as stranded only when nothing is.
    assert row.settled["ledger"] >= row.settled["prefill"] - 0.5


def test_client_gone_before_the_first_event(trio: Trio) -> None:
    """Decode waits for blocks of a prefill worker that hangs, when the client leaves. Once prefill
    is back, both are free."""
    stack = trio.stack
    row = Row("client gone before the first event")
    trio.hold(lambda _name, _body: stack.signal_engine("prefill", signal.SIGSTOP))
    body = {"prompt": prompt_of(900, seed=726), "stream": True}
    try:
        with row.client(), leaving(stack, body):
            wait_until(
                "decode waits for KV",
                lambda: any(stack.engine_metric(n, KV_USAGE) > 0 for n in DECODERS),
                timeout_s=20,
            )
    finally:
        stack.signal_engine("prefill", signal.SIGCONT)
    gone(row, stack)


def test_client_gone_in_mid_stream(stack: Stack) -> None:
    """Decode stops writing."""
    row = Row("client gone in mid-stream")
    body = {
        **{"prompt": prompt_of(900, seed=727), "stream": True},
        **{"max_tokens": 3000, "ignore_eos": True},
    }
    with row.client(), leaving(stack, body) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    gone(row, stack)


# --- the router, and time -------------------------------------------------------------------------


def test_router_killed_and_restarted(trio: Trio) -> None:
    """Its clients see their connections end; the workers, which it knew from their heartbeats
    alone, are known to the next one at once, and no engine goes on for nobody."""
    stack = trio.stack
    row = Row("router killed and started again")
    body = {
        **{"prompt": prompt_of(900, seed=730), "stream": True},
        **{"max_tokens": 3000, "ignore_eos": True},
    }
    with leaving(stack, body) as streaming:
        assert streaming.recv(100).startswith(b"HTTP/1.1 200")
        with row.client():
            stack.servers["router"].process.kill()
            stack.servers["router"].process.wait(timeout=10)
            while streaming.recv(65536):
                pass
    row.saw = "the stream ends without its last event"
    stack.restart_router()
    row.settle(stack, DECODERS)
    stack.wait_ready(*ALL)
    prompt = prompt_of(THRESHOLD + 3, seed=731)
    text, logprob, headers = complete(client(stack), prompt, stream=False)
    assert headers["x-baton-path"] == "disaggregated"
    check(stack, prompt, text, logprob)


def test_router_hung_until_the_lease_was_over(trio: Trio) -> None:
    """The router stands still while prefill's answer lies in its socket, until prefill has given
    the blocks to others. What it reads then looks like a fresh offer, and is not taken."""
    stack = trio.stack
    row = Row("router hung until the lease was over")
    prompt, before = prompt_of(LONG, seed=732), expired(stack)
    seen = {name: len(gate.seen) for name, gate in trio.gates.items()}
    router = stack.servers["router"].process

    def ask() -> httpx.Response:
        with row.client():
            return httpx.post(
                stack.url("router") + "/v1/completions",
                json={
                    **{"model": MODEL, "prompt": prompt, "max_tokens": 12},
                    **{"temperature": 0, "logprobs": 1},
                },
                headers={"x-baton-explain": "1"},
                timeout=120,
            )

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        try:
            wait_until("prefill computes", lambda: running_on(stack, "prefill") == 1, timeout_s=10)
            router.send_signal(signal.SIGSTOP)
            wait_until("the lease is over", lambda: expired(stack) > before, timeout_s=4 * LEASE_S)
            overwrite_kv(stack, "prefill")
        finally:
            router.send_signal(signal.SIGCONT)
        told = answer.result(120)
    if told.status_code == 200:
        row.saw = f"200, correct, {told.headers['x-baton-path']}, {told.headers['x-baton-reason']}"
        assert json.loads(told.headers["x-baton-explain"])["attempts"] > 1
        choice = told.json()["choices"][0]
        check(stack, prompt, choice["text"], choice["logprobs"]["token_logprobs"][0])
    else:
        # Its workers' heartbeats lie unread too: it may know of nobody for a moment.
        row.saw = f"{told.status_code}, {told.json()['error']['code']}"
        assert told.status_code in (502, 503)
        legs = [body for name, gate in trio.gates.items() for body in gate.seen[seen[name] :]]
        assert not any(body.get("prompt") == prompt for body in legs)
    row.settle(stack, ALL)


def overwrite_kv(stack: Stack, name: str) -> None:
    """Fills an engine's whole KV cache with other prompts, so that blocks which were free before
    hold something else now."""
    for seed in range(3):
        httpx.post(
            stack.url(name) + "/v1/completions",
            headers=stack.cluster_headers,
            json={"model": MODEL, "prompt": prompt_of(3900, seed=800 + seed), "max_tokens": 1},
            timeout=60,
        ).raise_for_status()


def test_lease_over_before_decode_reads_its_leg(trio: Trio) -> None:
    """Decode hangs with the leg unread until prefill has freed the blocks and given them to
    others. When it comes to itself it pulls what it was promised, which is not there any more:
    nobody may get that answer."""
    stack = trio.stack
    row = Row("decode hung until the lease was over")
    hung: list[str] = []
    before = expired(stack)

    def stop(name: str, _: Any) -> None:
        stack.signal_engine(name, signal.SIGSTOP)
        hung.append(name)

    trio.hold(stop)
    prompt = prompt_of(THRESHOLD + 40, seed=740)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def ask() -> tuple[str, float, dict[str, str]]:
            with row.client():
                return complete(client(stack), prompt, stream=False)

        answer = pool.submit(ask)
        try:
            wait_until("decode hangs", lambda: bool(hung), timeout_s=20)
            wait_until("the lease is over", lambda: expired(stack) > before, timeout_s=4 * LEASE_S)
            overwrite_kv(stack, "prefill")
        finally:
            for name in hung:
                stack.signal_engine(name, signal.SIGCONT)
        text, logprob, headers = answer.result(90)
    other = next(n for n in DECODERS if n not in hung)
    check(stack, prompt, text, logprob, on=other)
    row.saw = f"200, correct, {headers['x-baton-path']}, {headers['x-baton-reason']}"
    row.settle(stack, ALL)
    # Nor does anybody get it later, out of the prefix cache of the worker that pulled too late.
    for name in hung:
        text, logprob, _ = complete(client(stack, stack.url(name)), prompt, stream=False)
        check(stack, prompt, text, logprob, on=other)
