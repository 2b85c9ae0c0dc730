"""Many requests while engines are killed and stopped at random: no answer with status 200 is wrong.

``BATON_E2E_REQUESTS=1000`` makes it a longer run; ``BATON_E2E_SEED`` another one.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.stack import MODEL, THRESHOLD, Stack, wait_until
from tests.e2e.test_handoff import prompt_of
from tests.fakes.gate import Gate

REQUESTS = int(os.environ.get("BATON_E2E_REQUESTS", "200"))
SEED = int(os.environ.get("BATON_E2E_SEED", "1"))
CLIENTS = 6
THINK_S = 0.5
"""Mean pause of a client between two requests: enough time for faults to fall into."""
PROMPTS = 24
TOKENS = 4
NOISE = 0.1
"""Of a first logprob; corrupt KV moves it by 0.19 and more."""
CLEAR = 0.3
"""Distance of the two likeliest tokens, at each place, above which rounding decides nothing."""

# A request may have to wait for an engine that hangs, and each kill costs half a minute.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(240 + 2 * REQUESTS)]

PREFILLERS = ("prefill", "prefill2")


@pytest.fixture(scope="module")
def two_prefill(pair: tuple[Stack, Gate]) -> Iterator[Stack]:
    """The shared stack with a second prefill worker."""
    stack, _ = pair
    stack.start_worker("prefill", registry=stack.url("router"), name="prefill2")
    try:
        stack.wait_ready("decode", *PREFILLERS)
        yield stack
    finally:
        stack.stop("prefill2")
        stack.wait_ready("prefill", "decode")


@dataclass(frozen=True)
class Reference:
    """A prompt, and what one worker alone says to it."""

    prompt: str
    text: str
    logprob: float


@dataclass
class Tally:
    """What came of the requests."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    farthest: float = 0.0
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


def references(stack: Stack, rng: random.Random) -> list[Reference]:
    """Prompts whose answers do not hang by a hair, some of them short."""
    found: list[Reference] = []
    while len(found) < PROMPTS:
        length = rng.choice([40, *[rng.randrange(THRESHOLD, 1100)] * 5])
        prompt = prompt_of(length, seed=rng.randrange(1 << 30))
        answer = httpx.post(
            stack.url("decode") + "/v1/completions",
            json={**body(prompt), "logprobs": 2},
            headers=stack.cluster_headers,
            timeout=60,
        )
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        tops = [sorted(top.values()) for top in choice["logprobs"]["top_logprobs"]]
        if min(top[-1] - top[-2] for top in tops) > CLEAR:
            found.append(Reference(prompt, choice["text"], choice["logprobs"]["token_logprobs"][0]))
    return found


def body(prompt: str) -> dict[str, Any]:
    """A greedy completion that finds nothing in any cache."""
    return {
        **{"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0},
        **{"logprobs": 1, "cache_salt": uuid.uuid4().hex},
    }


def ask(stack: Stack, reference: Reference, *, stream: bool, tally: Tally) -> None:
    """One request, judged."""
    began = time.monotonic()
    answer = httpx.post(
        stack.url("router") + "/v1/completions",
        json={**body(reference.prompt), "stream": stream},
        timeout=120,
    )
    took_s = time.monotonic() - began
    kind, text, logprob = read(answer)
    with tally.lock:
        tally.slowest_s = max(tally.slowest_s, took_s)
        tally.kinds[kind] += 1
        if logprob is None:
            if not kind.startswith("error"):
                tally.unclear.append(f"{answer.status_code}: {answer.text[:300]}")
            return
        distance = abs(logprob - reference.logprob)
        tally.farthest = max(tally.farthest, distance)
        if distance > NOISE or not reference.text.startswith(text):
            tally.wrong.append(f"{kind}: {text!r} for {reference.text!r}, {distance:.2f} off")
        elif text != reference.text and "broke off" not in kind:
            tally.wrong.append(f"{kind}: only {text!r} of {reference.text!r}")


def read(answer: httpx.Response) -> tuple[str, str, float | None]:
    """What kind of answer it is, its text, and its first logprob; None without a token."""
    if answer.status_code != 200:
        clear = "error" in answer.json() and answer.json()["error"]["message"]
        return f"error {answer.status_code}" if clear else "unclear", "", None
    way = f"{answer.headers['x-baton-path']}, {answer.headers['x-baton-reason']}"
    if answer.headers["content-type"].startswith("application/json"):
        choice = answer.json()["choices"][0]
        return way, choice["text"], choice["logprobs"]["token_logprobs"][0]
    text, first = "", None
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    for event in events[:-1]:
        chunk = json.loads(event)
        if "error" in chunk:
            return f"broke off after a handoff: {way}", text, first
        for choice in chunk["choices"]:
            text += choice["text"]
            if first is None and choice.get("logprobs"):
                first = choice["logprobs"]["token_logprobs"][0]
    return (way if events[-1] == "[DONE]" else "unclear"), text, first


class Faults(threading.Thread):
    """Kills and stops engines until it is told to end; afterwards all of them go on."""

    def __init__(self, stack: Stack, rng: random.Random) -> None:
        super().__init__(name="faults")
        self.done: Counter[str] = Counter()
        self.over = threading.Event()
        self._stack = stack
        self._rng = rng

    def run(self) -> None:
        while not self.over.wait(self._rng.uniform(0.3, 2.0)):
            # Prefill may be down for as long as it takes; decode, of which there is one, only
            # stands still for a moment.
            name = self._rng.choice([*PREFILLERS, *PREFILLERS, "decode"])
            if name == "decode":
                self._stand_still(name, self._rng.uniform(0.1, 1.5))
            elif self._rng.random() < 0.2:
                self._signal(name, signal.SIGKILL)
            else:
                self._stand_still(name, self._rng.choice([0.2, 1.0, 2.0, 5.0]))

    def _stand_still(self, name: str, seconds: float) -> None:
        if self._signal(name, signal.SIGSTOP):
            self.over.wait(seconds)
            self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> bool:
        try:
            self._stack.signal_engine(name, number)
        except (AssertionError, psutil.NoSuchProcess, ProcessLookupError):
            return False  # it is being started again
        if number is not signal.SIGCONT:
            self.done[f"{number.name} {name}"] += 1
        return True


def test_no_wrong_answer_under_random_faults(two_prefill: Stack) -> None:
    """Every 200 is what one worker alone says; whatever else there is, is a clear error. Afterwards
    nothing is stranded, all breakers are closed, and handoffs work."""
    stack, rng, tally = two_prefill, random.Random(SEED), Tally()
    known = references(stack, rng)
    work = [(rng.choice(known), rng.random() < 0.5, rng.expovariate(1 / THINK_S))
            for _ in range(REQUESTS)]  # fmt: skip

    def one(item: tuple[Reference, bool, float]) -> None:
        reference, stream, pause_s = item
        time.sleep(min(pause_s, 5 * THINK_S))
        ask(stack, reference, stream=stream, tally=tally)

    faults = Faults(stack, random.Random(SEED + 1))
    faults.start()
    began = time.monotonic()
    try:
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(one, work))
    finally:
        faults.over.set()
        faults.join(30)
    print(
        f"\n{REQUESTS} requests in {time.monotonic() - began:.0f} s, "
        f"slowest {tally.slowest_s:.1f} s, farthest first logprob {tally.farthest:.4f}\n"
        f"faults: {dict(faults.done)}\n"
        f"answers: {dict(tally.kinds.most_common())}"
    )
    assert not tally.wrong
    assert not tally.unclear
    assert sum(tally.kinds.values()) == REQUESTS
    handed = sum(n for kind, n in tally.kinds.items() if kind.startswith("disaggregated"))
    errors = sum(n for kind, n in tally.kinds.items() if kind.startswith("error"))
    assert sum(faults.done.values()) >= 5
    assert handed >= REQUESTS / 10
    assert errors <= REQUESTS / 20
    stack.wait_ready("decode", *PREFILLERS)

    def quiet() -> bool:
        told = stack.admin("handoffs")
        workers = stack.admin("workers")["workers"]
        return (
            not told["open"]
            and not told["stranded"]
            and all(worker["breaker"] == "closed" for worker in workers)
            and all(
                stack.engine_metric(name, "vllm:kv_cache_usage_perc") == 0
                for name in ("decode", *PREFILLERS)
            )
        )

    wait_until("nothing is left behind", quiet, timeout_s=60)
