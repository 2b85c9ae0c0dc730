"""Profiles switched under a steady mixed load, on real engines with real handoffs.

``BATON_SWITCHES=50`` makes it the long run whose figures the docs give; a few are enough to see
that nothing is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from profiles import parse_profile, with_overrides
from tests.e2e.stack import MODEL, PROFILE, Stack, wait_until

SWITCHES = int(os.environ.get("BATON_SWITCHES", "4"))
CLIENTS = 4
QUIET_S = float(os.environ.get("BATON_QUIET_S", "2"))
LONG, SHORT = 700, 40
"""Bytes of prompts, which are tokens here; the threshold lies between."""

SWITCH = "  switch: {prepare_s: 30, canary_share: 0.3, hold_s: 1, canary_s: 10, min_requests: 3}\n"
ROUTING = '  routing: {prefix: "off"}\n'
DISAGGREGATED = PROFILE + ROUTING + SWITCH
STANDARD = (
    "\n".join(
        line
        for line in PROFILE.replace("mode: disaggregated", "mode: standard")
        .replace("name: e2e", "name: e2e-standard")
        .splitlines()
        if "classify" not in line
    )
    .replace("    prefill: {", "    standard: {")
    .split("    decode: {")[0]
    + "  transfer:"
    + PROFILE.split("  transfer:")[1]
    + ROUTING
    + SWITCH
)


@dataclass
class Asked:
    """One request and what came of it."""

    prompt: str
    sent_s: float
    ttft_s: float = 0.0
    text: str = ""
    version: str = ""
    path: str = ""
    problem: str = ""


class Load:
    """Clients that ask one after the other, long and short prompts, none of them twice."""

    def __init__(self, url: str, tokens: int = 8) -> None:
        self._url = url
        self._tokens = tokens
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self.asked: list[Asked] = []

    def _client(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop.is_set():
                length = LONG if rng.random() < 0.4 else SHORT
                start = f"{next(self._numbers)} {seed} "
                prompt = start + "".join(rng.choices("abcdefgh ", k=length - len(start)))
                self.asked.append(ask(http, prompt, self._tokens))
                self._stop.wait(rng.random() * 0.1)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            futures = [pool.submit(self._client, seed) for seed in range(CLIENTS)]
            try:
                yield
            finally:
                self._stop.set()
        for future in futures:
            future.result()


def ask(http: httpx.Client, prompt: str, tokens: int) -> Asked:
    """A streamed, greedy completion."""
    asked = Asked(prompt, time.monotonic())
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    try:
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            asked.version = response.headers.get("x-baton-profile-version", "")
            asked.path = response.headers.get("x-baton-path", "")
            if response.status_code != 200:
                asked.problem = f"{response.status_code}: {response.read().decode()}"
                return asked
            done = False
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                asked.ttft_s = asked.ttft_s or time.monotonic() - asked.sent_s
                if line == "data: [DONE]":
                    done = True
                elif "error" in (event := json.loads(line[6:])):
                    asked.problem = str(event["error"])
                else:
                    asked.text += event["choices"][0]["text"]
            if not done:
                asked.problem = asked.problem or "the stream ended early"
    except httpx.HTTPError as error:
        asked.problem = repr(error)
    return asked


class Operator:
    """Asks the router's admin API."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    @classmethod
    @contextlib.contextmanager
    def of(cls, stack: Stack) -> Iterator[Operator]:
        """One of this stack."""
        token = (stack.home / "admin-token").read_text().strip()
        with httpx.Client(
            base_url=stack.servers["router"].admin_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
        ) as http:
            yield cls(http)

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/admin/switch").raise_for_status().json()
        return found

    def switch(self, text: str, timeout_s: float = 60, **more: Any) -> tuple[float, dict[str, Any]]:
        """Switches; returns the seconds that it took and its report."""
        answer = self.http.post("/admin/switch", json={"text": text, **more})
        assert answer.status_code == 202, answer.text
        number = answer.json()["number"]

        def over() -> bool:
            return self.report()["switch"] is None

        took_s = wait_until(f"switch {number} is over", over, timeout_s=timeout_s)
        last: dict[str, Any] = self.report()["last"]
        assert last["number"] == number
        return took_s, last


@pytest.fixture
def trio(stack: Stack) -> Iterator[Stack]:
    """The shared stack under ``DISAGGREGATED``, and under what it was started with afterwards."""
    now = ["prepare", "shadow", "canary"]
    with Operator.of(stack) as operator:
        assert operator.switch(DISAGGREGATED, skip=now)[1]["outcome"] == "committed"
        yield stack
        assert operator.switch(PROFILE, skip=now)[1]["outcome"] == "committed"


def versions(stack: Stack) -> dict[str, str]:
    """What the router makes of both profiles: it has the model's folder in them."""
    found = {}
    for name, text in (("disaggregated", DISAGGREGATED), ("standard", STANDARD)):
        profile = parse_profile(text, source=name)
        found[name] = with_overrides(
            profile, model_source=str(stack.model), served_name=MODEL
        ).version
    return found


def p(share: float, values: list[float]) -> float:
    """A quantile, in ms."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@pytest.mark.timeout(300 + 20 * SWITCHES)
def test_switching_back_and_forth(trio: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways, again and again: no request fails, none is wrong, and each was served under
    exactly one of the two profiles, by the path that this one knows."""
    known = versions(trio)
    load = Load(trio.url("router"))
    windows: list[tuple[float, float]] = []
    outcomes: list[dict[str, Any]] = []
    began_s = time.monotonic()
    with Operator.of(trio) as operator, load.running():
        time.sleep(2 * QUIET_S)
        for number in range(SWITCHES):
            start_s = time.monotonic()
            _, last = operator.switch(STANDARD if number % 2 == 0 else DISAGGREGATED)
            windows.append((start_s, time.monotonic()))
            outcomes.append(last)
            time.sleep(QUIET_S)
        time.sleep(QUIET_S)
    took_s = time.monotonic() - began_s
    assert [o["outcome"] for o in outcomes] == ["committed"] * SWITCHES, outcomes
    assert [a.problem for a in load.asked if a.problem] == []
    assert {a.version for a in load.asked} == set(known.values())
    paths: dict[str, set[str]] = {}
    for asked in load.asked:
        paths.setdefault(asked.version, set()).add(asked.path)
    assert paths[known["standard"]] == {"local"}
    assert "disaggregated" in paths[known["disaggregated"]]
    assert all(len(a.text) == 8 for a in load.asked)
    gaps = _gaps(trio, [(a.prompt, a.text) for a in load.asked])
    wrong = [asked.prompt for asked, gap in zip(load.asked, gaps, strict=True) if gap > NEAR]
    assert wrong == []
    # The same look at answers to other prompts: it can tell.
    strangers = zip(load.asked[:100], load.asked[7:107], strict=False)
    mixed = _gaps(trio, [(a.prompt, b.text) for a, b in strangers])
    assert sum(gap > NEAR for gap in mixed) > 0.95 * len(mixed)

    def during(asked: Asked) -> bool:
        return any(start <= asked.sent_s <= end for start, end in windows)

    first_s, last_s = windows[0][0], windows[-1][1]
    groups = {
        "before": [a.ttft_s for a in load.asked if a.sent_s < first_s],
        "during a switch": [a.ttft_s for a in load.asked if during(a)],
        "between switches": [
            a.ttft_s for a in load.asked if first_s <= a.sent_s <= last_s and not during(a)
        ],
        "after": [a.ttft_s for a in load.asked if a.sent_s > last_s],
    }
    with capsys.disabled():
        count = len(load.asked)
        print(f"\n{SWITCHES} switches in {took_s:.0f} s, {count} requests, 0 failed, 0 wrong")
        worst, least = max(gaps), min(mixed)
        print(f"worst token {worst:.3f} below the best; of answers to others {least:.3f}")
        print("| when | requests | TTFT p50 ms | p99 ms | max ms |")
        print("| --- | --- | --- | --- | --- |")
        for name, values in groups.items():
            if values:
                most = 1000 * max(values)
                middle, high = p(0.5, values), p(0.99, values)
                print(f"| {name} | {len(values)} | {middle:.0f} | {high:.0f} | {most:.0f} |")


NEAR = 0.5
"""Logprob by which a token may lie below the best one. Of this random model two tokens are often
all but equal, and which one is taken depends on who shares the batch: then the texts go different
ways, both right. After a wrong KV cache nothing of the sort holds, as the control shows."""


def _gaps(stack: Stack, pairs: list[tuple[str, str]]) -> list[float]:
    """For each prompt and answer, by how much the answer's worst token lies below the best one, as
    an engine alone sees it: it is given both, and asked for the logprobs of what it was given."""
    with httpx.Client(
        base_url=stack.url("decode"), headers=stack.cluster_headers, timeout=60
    ) as http:

        def gap(pair: tuple[str, str]) -> float:
            prompt, text = pair
            body = {"model": MODEL, "prompt": prompt + text, "max_tokens": 1, "temperature": 0}
            answer = http.post("/v1/completions", json={**body, "echo": True, "logprobs": 1})
            told = answer.raise_for_status().json()["choices"][0]["logprobs"]
            # One token a byte; the last one is new, and nobody's answer.
            first = len(told["tokens"]) - 1 - len(text)
            assert "".join(told["tokens"][first:-1]) == text
            worst: float = max(
                max(best.values()) - own
                for own, best in zip(
                    told["token_logprobs"][first:-1], told["top_logprobs"][first:-1], strict=True
                )
            )
            return worst

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(gap, pairs))


def test_a_threshold_far_too_low_is_rolled_back(
    trio: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every prompt handed over, short ones miss the service level: the canary sees it, and
    the switch is rolled back by itself; the report has the figures."""
    with Operator.of(trio) as operator:
        _rolls_back(trio, operator, capsys)


def _rolls_back(trio: Stack, operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    active = operator.report()["active"]["version"]
    with httpx.Client(base_url=trio.url("router"), timeout=60) as http:
        usual = [ask(http, f"{n} how long does it take", 8) for n in range(20)]
    assert {a.problem for a in usual} == {""}
    # A little over what is usual: a handoff of such prompts takes twice as long here.
    slo_s = 1.4 * sorted(a.ttft_s for a in usual)[10]
    low = DISAGGREGATED.replace("threshold_tokens: 256", "threshold_tokens: 1")
    low = low.replace(SWITCH, f"  slo: {{ttft_s: {slo_s:.4f}}}\n")
    stop = threading.Event()
    seen: list[Asked] = []

    def client(seed: int) -> None:
        with httpx.Client(base_url=trio.url("router"), timeout=60) as http:
            for number in itertools.count():
                if stop.is_set():
                    return
                seen.append(ask(http, f"{seed} {number} a short prompt", 4))
                stop.wait(0.05)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(client, seed) for seed in range(2)]
        try:
            _, last = operator.switch(
                low, 90, canary_share=0.3, hold_s=60, canary_s=60, min_requests=20
            )
        finally:
            stop.set()
    for future in futures:
        future.result()
    with capsys.disabled():
        print(f"\n{last['outcome']} after {last['took_s']}: {last['reason']}")
    assert last["outcome"] == "rolled_back", last
    assert "%" in last["reason"]
    assert operator.report()["active"]["version"] == active
    assert {a.problem for a in seen} == {""}
