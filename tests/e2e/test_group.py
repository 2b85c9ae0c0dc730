"""A worker of two processes, as a LeaderWorkerSet starts them: one prefill engine with two ranks.

Both run on this machine, so each has a health port of its own; the test plays the LeaderWorkerSet
and starts the group anew once its members have ended.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from baton.worker.group import GROUP_LOST
from tests.e2e.stack import PROFILE, Stack, free_port, is_alive, open_stack, wait_until
from tests.e2e.test_handoff import client, closest_call, complete, prompt_of

pytestmark = pytest.mark.engine

LEADER, FOLLOWER = "prefill", "prefill-1"
GONE_WITHIN_S = 10.0
"""From a member's death until no process of the group is left."""


@dataclass
class Group:
    """The prefill group of a stack, and how to start it."""

    stack: Stack
    registry: str
    monkeypatch: pytest.MonkeyPatch
    health: dict[str, int] = field(default_factory=dict)

    def start(self) -> None:
        """Starts both members, the follower first: it has to wait for its leader."""
        rendezvous = free_port()
        self.health = {name: free_port() for name in (LEADER, FOLLOWER)}
        common = {
            "LWS_LEADER_ADDRESS": "localhost",
            "LWS_GROUP_SIZE": "2",
            "BATON_GROUP_PORT": str(rendezvous),
            "BATON_LEADER_HEALTH_PORT": str(self.health[LEADER]),
        }
        for index, name in ((1, FOLLOWER), (0, LEADER)):
            with self.monkeypatch.context() as patch:
                for variable, value in common.items():
                    patch.setenv(variable, value)
                patch.setenv("LWS_WORKER_INDEX", str(index))
                patch.setenv("BATON_HEALTH_PORT", str(self.health[name]))
                level = ("--log-level", "debug" if name == FOLLOWER else "info")
                self.stack.start_worker("prefill", *level, registry=self.registry, name=name)

    def pids(self) -> set[int]:
        """Every process of the group."""
        found: set[int] = set()
        for name in (LEADER, FOLLOWER):
            top = psutil.Process(self.stack.servers[name].process.pid)
            found |= {top.pid, *(child.pid for child in top.children(recursive=True))}
        return found

    def probe(self, name: str, path: str) -> tuple[int, dict[str, Any]]:
        """What a member's health server answers."""
        answer = httpx.get(f"http://127.0.0.1:{self.health[name]}{path}", timeout=5)
        return answer.status_code, answer.json()

    def statuses(self) -> dict[str, int]:
        """Exit statuses of both members, which have ended."""
        return {name: self.stack.servers.pop(name).process.wait(1) for name in (LEADER, FOLLOWER)}


class Traffic:
    """Requests, one after the other, until told to stop; short and long ones in turn."""

    def __init__(self, api: openai.OpenAI) -> None:
        self.served = {"short": 0, "long": 0}
        self.failures: list[str] = []
        self._api = api
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(kind, length), daemon=True)
            for kind, length in (("short", 60), ("long", 400))
        ]

    def _run(self, kind: str, length: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                complete(self._api, prompt_of(length, seed=7_000 + number), stream=number % 2 == 0)
            except (openai.OpenAIError, AssertionError) as error:
                self.failures.append(f"{kind} {number}: {error!r}")
            else:
                self.served[kind] += 1
            time.sleep(0.05)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def group_stack(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """A router, a decode worker of one process, and a prefill worker of two."""
    home.mkdir(parents=True)
    (home / "e2e.yaml").write_text(
        PROFILE.replace("prefill: {", "prefill: {tensor_parallel: 2, nodes: 2, ")
    )
    with open_stack(home, model) as stack:
        router = stack.start_router()
        stack.start_worker("decode", registry=router.url)
        group = Group(stack, router.url, monkeypatch)
        group.start()
        yield group


def expect_sound_handoffs(stack: Stack, seeds: range) -> None:
    """Long prompts go through the group, and are answered as a worker alone answers them."""
    through, alone = client(stack), client(stack, stack.url("decode"))
    texts, differing = set(), 0
    for seed in seeds:
        prompt = prompt_of(300 + 50 * (seed % 7), seed=seed)
        text, logprob, headers = complete(through, prompt, stream=seed % 2 == 0)
        assert headers["x-baton-path"] == "disaggregated", headers["x-baton-reason"]
        own = {"cache_salt": uuid.uuid4().hex}
        text_alone, logprob_alone, _ = complete(alone, prompt, stream=False, extra_body=own)
        print(f"  first logprob {logprob:.3f}, alone {logprob_alone:.3f}", flush=True)
        assert abs(logprob - logprob_alone) <= 0.1
        if text != text_alone:
            differing += 1
            assert closest_call(alone, complete, prompt) < 0.1, (text, text_alone)
        texts.add(text)
    assert differing <= len(seeds) // 3
    assert len(texts) == len(seeds)


@pytest.mark.timeout(900)
def test_a_group_as_prefill(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker to everybody else: right answers through its handoffs. Its follower killed, all of
    it is gone in seconds, and no request of others fails; started again, it serves as before."""
    with group_stack(tmp_path / "group", model, monkeypatch) as group:
        stack = group.stack
        wait_until("the leader listens", lambda: _listens(group), timeout_s=60)
        assert group.probe(LEADER, "/readyz")[0] == 503
        assert group.probe(LEADER, "/livez")[0] == 200
        print(f"group ready after {_ready_s(stack):.1f} s", flush=True)
        assert group.probe(LEADER, "/readyz") == (200, {"ready": True})
        wait_until(
            "the follower hears that the group is ready",
            lambda: group.probe(FOLLOWER, "/readyz")[0] == 200,
            timeout_s=5,
        )
        record = stack.worker(LEADER)
        assert record is not None
        assert record["geometry"]["tensor_parallel"] == 2
        assert stack.worker(FOLLOWER) is None
        # Our connector is on the follower's ranks too.
        assert "NIXL progress thread delay: 1000 us" in stack.servers[FOLLOWER].text()
        expect_sound_handoffs(stack, range(100, 106))

        pids = group.pids()
        with Traffic(client(stack)) as traffic:
            wait_until("traffic", lambda: min(traffic.served.values()) >= 2, timeout_s=30)
            group.stack.servers[FOLLOWER].process.send_signal(signal.SIGKILL)
            took_s = _until_gone(group, pids)
            unknown_s = wait_until(
                "the router forgets the group", lambda: stack.worker(LEADER) is None, timeout_s=5
            )
            before = dict(traffic.served)
            wait_until(
                "traffic goes on",
                lambda: all(traffic.served[kind] > before[kind] + 1 for kind in before),
                timeout_s=30,
            )
        assert traffic.failures == []
        print(
            f"follower killed: {len(pids)} processes gone after {took_s:.1f} s, forgotten "
            f"{unknown_s:.1f} s later; served meanwhile: {traffic.served}",
            flush=True,
        )
        assert group.statuses() == {LEADER: GROUP_LOST, FOLLOWER: -signal.SIGKILL}

        group.start()
        print(f"group ready again after {_ready_s(stack):.1f} s", flush=True)
        expect_sound_handoffs(stack, range(200, 203))


def _ready_s(stack: Stack) -> float:
    """Waits for both workers: the group's five processes import vLLM, one after the other."""
    return stack.wait_ready(LEADER, "decode", timeout_s=400)


def _until_gone(group: Group, pids: set[int]) -> float:
    def gone() -> bool:
        for name in (LEADER, FOLLOWER):
            group.stack.servers[name].process.poll()
        return not any(is_alive(pid) for pid in pids)

    return wait_until("the group is gone", gone, timeout_s=GONE_WITHIN_S)


def _listens(group: Group) -> bool:
    try:
        return group.probe(LEADER, "/livez")[0] == 200
    except httpx.HTTPError:
        return False
