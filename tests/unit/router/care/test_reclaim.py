"""Reclaiming: orphaned blocks are given back at once, whatever becomes of the request."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from baton.types import RequestId, WorkerId, WorkerRecord
from router.care.first_token import CHAT, COMPLETIONS
from router.care.reclaim import AT_A_TIME, MOST_WAITING, Orphan, Outcome, Reclaimer
from tests.fakes.virtual_loop import run_virtual
from tests.unit.router.care.workers import UNREACHABLE, FakeCluster, FakeWorker, LoopClock


class Setting:
    """A pair with a second decode worker, and a reclaimer that knows of both."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.prefill, self.decode = self.cluster.pair()
        self.second = self.cluster.add("d2", self.decode.record.role)
        self.able: list[FakeWorker] = [self.decode]
        self.ends: list[Outcome] = []
        self.reclaimer = Reclaimer(
            self.cluster,
            self._decoders,
            lambda prefill, decode: prefill in self.cluster.workers[decode].knows,
            LoopClock(),
            random.Random(1),
        )

    def _decoders(self, orphan: Orphan) -> list[WorkerRecord]:
        return [worker.record for worker in self.able]

    def orphan(self, path: str = COMPLETIONS, lease_s: float = 30.0, **body: Any) -> Orphan:
        """An offer of the prefill worker that nobody will take."""
        name = f"offer-{len(self.prefill.offers)}"
        self.prefill.offers[name] = [1, 2, 3]
        params = {
            "do_remote_prefill": True,
            "remote_engine_id": self.prefill.record.engine_id,
            "remote_request_id": name,
            "remote_block_ids": [[1]],
        }
        text = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": [1]}
        return Orphan(
            request_id=RequestId("r-1"),
            path=path,
            body={"model": "tiny", "stream": True, "max_tokens": 50, **text, **body},
            params=params,
            prefill=self.prefill.record,
            decode=self.decode.record,
            expires_s=asyncio.get_running_loop().time() + lease_s,
            on_end=self.ends.append,
        )

    def meet(self, *decodes: FakeWorker) -> None:
        """Handshakes are over."""
        for decode in decodes:
            decode.knows.add(WorkerId("p"))


def live(story: Callable[[Setting], Awaitable[None]]) -> None:
    async def main() -> None:
        it = Setting()
        try:
            await story(it)
        finally:
            await it.reclaimer.close()
        assert it.cluster.in_flight == 0
        assert it.reclaimer.pending == 0

    run_virtual(main())


def test_by_refusal() -> None:
    """Where the engines know each other, decode is asked for what it must refuse: it frees the
    blocks without computing or pulling anything, and gets no prompt."""

    async def story(it: Setting) -> None:
        it.meet(it.decode)
        assert it.reclaimer.reclaim(it.orphan(CHAT))
        await asyncio.sleep(1)
        assert it.prefill.offers == {}
        assert it.decode.told == ["offer-0"]
        assert it.decode.pulled == []
        ((method, path, body),) = it.decode.asked
        assert (method, path, body["prompt"]) == ("POST", COMPLETIONS, [1])
        assert body["model"] != "tiny"
        assert it.ends == [Outcome.RELEASED]
        assert it.reclaimer.counts.released == 1

    live(story)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/responses"])
def test_by_a_pull(path: str) -> None:
    """Where they may not, decode pulls for one token; under a salt of its own, so that nobody
    finds the result in its prefix cache."""

    async def story(it: Setting) -> None:
        orphan = it.orphan(path, cache_salt="the client's", min_tokens=9)
        it.reclaimer.reclaim(orphan)
        await asyncio.sleep(5)
        assert it.decode.pulled == ["offer-0"]
        ((_, asked, body),) = it.decode.asked
        assert asked == path
        assert body["stream"] is False
        assert body["cache_salt"] != "the client's"
        assert "min_tokens" not in body
        limit = "max_output_tokens" if "responses" in path else "max_tokens"
        assert body[limit] == 1
        assert body.get("max_completion_tokens") == (1 if path == CHAT else None)
        assert body["kv_transfer_params"] == orphan.params
        assert orphan.body["max_tokens"] == 50
        assert it.ends == [Outcome.RELEASED]

    live(story)


def test_other_endpoints_by_refusal_only() -> None:
    """A body that is not understood here is not sent for a pull."""

    async def story(it: Setting) -> None:
        it.reclaimer.reclaim(it.orphan("/v1/messages"))
        await asyncio.sleep(5)
        assert it.decode.asked == []
        assert it.ends == [Outcome.LEFT]
        it.meet(it.decode)
        it.reclaimer.reclaim(it.orphan("/v1/messages"))
        await asyncio.sleep(5)
        assert it.ends == [Outcome.LEFT, Outcome.RELEASED]

    live(story)


@pytest.mark.parametrize("known", [True, False])
def test_another_decode_worker(known: bool) -> None:
    """When the planned one cannot be reached, the next one does it."""

    async def story(it: Setting) -> None:
        it.able = [it.decode, it.second]
        it.decode.fault = UNREACHABLE
        if known:
            it.meet(it.decode, it.second)
        it.reclaimer.reclaim(it.orphan())
        await asyncio.sleep(5)
        assert it.second.told + it.second.pulled == ["offer-0"]
        assert it.ends == [Outcome.RELEASED]

    live(story)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("trouble", ["hangs", "status", "nobody", "all unreachable"])
def test_left_to_the_lease(trouble: str, known: bool) -> None:
    """Whoever took the parameters and did not answer well has used them; nobody else gets them."""

    async def story(it: Setting) -> None:
        it.able = [it.decode, it.second]
        if known:
            it.meet(it.decode, it.second)
        if trouble == "hangs":
            it.decode.hangs = True
        elif trouble == "status":
            it.decode.status = 500
        elif trouble == "nobody":
            it.able = []
        else:
            it.able = [it.decode, it.second, it.decode, it.second]
            it.decode.fault = it.second.fault = UNREACHABLE
        it.reclaimer.reclaim(it.orphan())
        await asyncio.sleep(15)
        assert it.ends == [Outcome.LEFT]
        assert len(it.decode.asked) + len(it.second.asked) <= 2
        if trouble in ("hangs", "status"):
            assert it.second.asked == []

    live(story)


@pytest.mark.parametrize("known", [True, False])
def test_parameters_that_decode_has_had(known: bool) -> None:
    """They are given back by refusal only: a pull would be their second use."""

    async def story(it: Setting) -> None:
        if known:
            it.meet(it.decode)
        it.reclaimer.reclaim(dataclasses.replace(it.orphan(), may_pull=False))
        await asyncio.sleep(5)
        assert it.decode.pulled == []
        assert it.ends == [Outcome.RELEASED if known else Outcome.LEFT]

    live(story)


def test_a_lease_that_is_over() -> None:
    """Then there is nothing to give back, and a pull would read what is no longer there."""

    async def story(it: Setting) -> None:
        it.reclaimer.reclaim(it.orphan(lease_s=0.0))
        await asyncio.sleep(1)
        assert it.decode.asked == []
        assert it.ends == [Outcome.LEFT]

    live(story)


def test_the_request_s_cancellation_changes_nothing() -> None:
    """The orphan is the reclaimer's from the call on."""

    async def story(it: Setting) -> None:
        it.meet(it.decode)

        async def request() -> None:
            orphan = it.orphan()
            try:
                await asyncio.Event().wait()
            finally:
                it.reclaimer.reclaim(orphan)

        task = asyncio.create_task(request())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await it.reclaimer.drain(5.0)
        assert it.ends == [Outcome.RELEASED]
        assert it.prefill.offers == {}

    live(story)


def test_bounds() -> None:
    """Some at a time, a queue behind them, and the rest left to their leases at once."""

    async def story(it: Setting) -> None:
        it.meet(it.decode)
        it.decode.hangs = True
        taken = [it.reclaimer.reclaim(it.orphan()) for _ in range(MOST_WAITING + 10)]
        assert taken.count(False) == 10
        assert it.ends == [Outcome.LEFT] * 10
        await asyncio.sleep(1)
        assert it.cluster.most_in_flight == AT_A_TIME
        assert it.reclaimer.pending == MOST_WAITING
        it.decode.hangs = False
        await it.reclaimer.drain(60.0)
        assert it.ends.count(Outcome.RELEASED) == MOST_WAITING - AT_A_TIME

    live(story)


def test_close_tells_everybody() -> None:
    """What is in work is cut, what waits is given up; each is told once."""

    async def story(it: Setting) -> None:
        it.meet(it.decode)
        it.decode.hangs = True
        for _ in range(20):
            it.reclaimer.reclaim(it.orphan())
        await asyncio.sleep(1)
        await it.reclaimer.drain(1.0)
        await it.reclaimer.close()
        assert it.ends == [Outcome.LEFT] * 20
        assert not it.reclaimer.reclaim(it.orphan())
        assert len(it.ends) == 21

    live(story)
