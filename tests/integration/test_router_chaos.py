"""Random faults on all workers at once: no wrong 200, no half answer taken for a whole one, nothing
left behind.

What a request gets is right, or an error that says so: an error object with a status, or an error
event after a beginning that is right. The faults of an ordinary run are the same each time, as far
as time lets them; ``BATON_CHAOS_REQUESTS=2000`` draws as many new ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

from baton.types import Role
from tests.fakes.engine import MODEL, FakeEngine, Fleet, Leg, Trouble
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    CHAT,
    COMPLETIONS,
    Answer,
    Cluster,
    cluster,
    long_chat,
    right_chat,
    right_text,
    tokens_of,
)
from tests.integration.test_care_engines import CareEngine

ASKED = os.environ.get("BATON_CHAOS_REQUESTS")
REQUESTS = int(ASKED or 240)
CLIENTS = 8
TOKENS = 6
SHORT_DEADLINES = (
    ("connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
     "connect_s: 0.3, prefill_s: 0.3, first_token_s: 0.3, idle_s: 0.3, total_s: 2"),
    ("worker_wait_s: 0", "worker_wait_s: 1"),
    ('routing: {prefix: "off"}',
     "routing: {prefix: approximate}\n  degrade: {steps: [other_prefill, local], attempts: 4}"),
)  # fmt: skip

ANYWHERE = (
    Trouble.STATUS, Trouble.ERROR_EVENT, Trouble.HANG_BEFORE_HEADERS, Trouble.HANG,
    Trouble.CUT_BEFORE_HEADERS, Trouble.CUT, Trouble.HALF_EVENT, Trouble.SILENT_END, Trouble.DELAY,
)  # fmt: skip
AT_PREFILL = (*ANYWHERE, Trouble.NO_PARAMS, Trouble.NOT_JSON)


class Chaos:
    """Clients, and somebody who breaks things beside them."""

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        self.c = c
        self.rng = rng
        self.left = REQUESTS
        self.ends: Counter[str] = Counter()

    async def client(self) -> None:
        """Asks, one request after the other."""
        while self.left > 0:
            self.left -= 1
            self.disturb()
            await self.one()

    def disturb(self) -> None:
        """Has something go wrong with one of the next requests, now and then."""
        rng = self.rng
        engine = rng.choice(self.c.engines)
        if rng.random() < 0.6 or len(engine.faults) > 2:
            return
        prefill = engine in self.c.prefills
        engine.inject(
            rng.choice(AT_PREFILL if prefill else ANYWHERE),
            rng.choice([None, Leg.PREFILL] if prefill else [None, Leg.DECODE, Leg.LOCAL]),
            after_chunks=rng.randrange(TOKENS),
            status=rng.choice([400, 404, 429, 500, 503]),
            delay_s=rng.choice([0.01, 0.1]),
        )

    async def one(self) -> None:
        rng = self.rng
        text = "a baton " * rng.choice([1, 30]) + str(rng.randrange(20))
        body: dict[str, Any] = {
            "model": MODEL, "max_tokens": TOKENS, "stream": rng.random() < 0.6, "temperature": 0
        }  # fmt: skip
        chat = rng.random() < 0.5
        messages = long_chat(text)
        body |= {"messages": messages} if chat else {"prompt": text}
        right = right_chat(messages, TOKENS) if chat else right_text(text, TOKENS)
        patience_s = rng.uniform(0.01, 0.3) if rng.random() < 0.15 else 30.0
        try:
            async with asyncio.timeout(patience_s):
                answer = await self.c.call("POST", CHAT if chat else COMPLETIONS, json=body)
        except TimeoutError:
            self.ends["left"] += 1
            assert patience_s < 1
            return
        self.judge(answer, right)

    def judge(self, answer: Answer, right: str) -> None:
        """It is right, or says that it is not."""
        if answer.status != 200:
            # 4xx are those that engines were told to answer.
            assert answer.status in (400, 404, 429, 502, 503, 504), answer
            assert answer.json["error"]["message"]
            self.ends[str(answer.status)] += 1
        elif answer.headers["content-type"].startswith("text/event-stream") and answer.stream_error:
            assert right.startswith(answer.text), answer
            self.ends["broken off"] += 1
        else:
            assert answer.text == right, (answer, right)
            self.ends[f"right, {answer.path}"] += 1

    async def saboteur(self) -> None:
        """Kills, freezes and restarts workers, never all at once."""
        rng = self.rng
        while self.left > 0:
            victim = rng.choice([*self.c.prefills[1:], *self.c.decodes[1:]])
            if rng.random() < 0.5:
                await victim.kill()
                await asyncio.sleep(rng.uniform(0, 0.3))
                if rng.random() < 0.5:
                    await victim.start()
                    await self.c.register(victim)
                else:
                    await victim.server.start()
                    victim.alive = True
            else:
                victim.freeze()
                await asyncio.sleep(rng.uniform(0, 0.5))
                victim.thaw()
            await asyncio.sleep(rng.uniform(0, 0.2))


def care_engine(fleet: Fleet, name: str, role: Role) -> FakeEngine:
    return CareEngine(fleet, name, role, tokenize=tokens_of)


async def test_random_faults() -> None:
    """Whatever happens to workers, and whenever clients leave."""
    rng = random.Random(None if ASKED else 4)
    async with cluster(prefills=3, decodes=3, replace=SHORT_DEADLINES, make=care_engine) as c:
        chaos = Chaos(c, rng)
        async with asyncio.TaskGroup() as group:
            group.create_task(chaos.saboteur())
            for _ in range(CLIENTS):
                group.create_task(chaos.client())
        for engine in c.engines:
            engine.faults.clear()
        if ASKED:
            print(f"\n{dict(chaos.ends)}")
        assert chaos.ends["right, disaggregated"] > 0
        assert chaos.ends["right, local"] > 0
        # Everything closes again.
        await until(lambda: not c.state.care.breakers.blocked_ids, timeout_s=30.0)
        assert (await c.complete()).text == right_text()
