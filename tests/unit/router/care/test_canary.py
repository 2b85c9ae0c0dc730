"""Canaries: which requests are replayed, how, and what a mismatch does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from baton.types import RequestId, WorkerId
from router.care.canary import Canary, Finished
from router.care.first_token import CHAT, COMPLETIONS
from router.care.handoffs import OFFER
from router.care.rules import CareRules
from tests.fakes.virtual_loop import run_virtual
from tests.unit.router.care.workers import UNREACHABLE, FakeCluster, LoopClock

PROMPT = list(range(100))


class Setting:
    """A pair, a canary on it, and the pairs that it had quarantined."""

    def __init__(self, rules: CareRules) -> None:
        self.cluster = FakeCluster()
        self.prefill, self.decode = self.cluster.pair()
        self.quarantined: list[tuple[WorkerId, WorkerId, str]] = []
        self.canary = Canary(
            self.cluster,
            rules,
            LoopClock(),
            random.Random(1),
            lambda *found: self.quarantined.append(found),
        )

    def finished(self, path: str = COMPLETIONS, **changes: Any) -> Finished:
        body: dict[str, Any] = {
            "model": "tiny",
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "min_tokens": 5,
            "max_tokens": 50,
            "cache_salt": "the client's",
            "seed": 7,
        }
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": "Hello"}]
            body["max_completion_tokens"] = 40
        else:
            body["prompt"] = PROMPT
        body |= changes.pop("body", {})
        short = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        fields: dict[str, Any] = {
            "request_id": RequestId("r-1"),
            "path": path,
            "body": body,
            "prefill_body": msgspec.json.encode({**short, "kv_transfer_params": OFFER}),
            "prompt_tokens": len(PROMPT),
            "prefill": self.prefill.record,
            "decode": self.decode.record,
        }
        return Finished(**(fields | changes))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Ok, mismatched, unknown."""
        found = self.canary.counts
        return found.ok, found.mismatched, found.unknown


def offer(it: Setting, finished: Finished) -> bool:
    """What happens to each handoff that ended well."""
    return it.canary.drawn() and it.canary.replay(finished)


def live(story: Callable[[Setting], Awaitable[None]], rules: CareRules | None = None) -> None:
    async def main() -> None:
        setting = Setting(rules or CareRules(canary_rate=1.0))
        try:
            await story(setting)
        finally:
            await setting.canary.close()
        assert setting.cluster.in_flight == 0

    run_virtual(main())


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_sound_pair(path: str) -> None:
    """One token handed over and one made by decode alone, with salts of their own, and the bodies
    otherwise as the client sent them."""

    async def story(it: Setting) -> None:
        offered = it.finished(path)
        before = msgspec.json.encode(offered.body)
        assert offer(it, offered)
        await asyncio.sleep(5)
        assert it.counts == (1, 0, 0)
        assert it.quarantined == []
        assert msgspec.json.encode(offered.body) == before
        (sent,) = it.prefill.generations
        assert sent == msgspec.json.decode(offered.prefill_body)
        handed, alone = it.decode.generations
        assert handed.pop("kv_transfer_params")["do_remote_prefill"]
        salts = {handed.pop("cache_salt"), alone.pop("cache_salt"), "the client's"}
        assert len(salts) == 3
        assert handed == alone
        assert handed["max_tokens"] == 1
        assert handed["seed"] == 7
        assert not {"stream", "stream_options", "min_tokens", "prompt_logprobs"} & handed.keys()
        if path == CHAT:
            assert handed["max_completion_tokens"] == 1
        assert it.prefill.offers == {}

    live(story)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("spoil", [-0.19, -0.86, 0.3])
def test_a_corrupt_pair(path: str, spoil: float) -> None:
    """It is quarantined, with the difference, and counted."""

    async def story(it: Setting) -> None:
        it.decode.spoil = spoil
        offer(it, it.finished(path))
        await asyncio.sleep(5)
        assert it.counts == (0, 1, 0)
        ((prefill, decode, reason),) = it.quarantined
        assert (prefill, decode) == ("p", "d")
        assert f"{abs(spoil):.2f}" in reason

    live(story)


def test_a_tie_that_flips() -> None:
    """Another first token, but either is as likely in both runs: sound."""

    async def story(it: Setting) -> None:
        it.decode.spoil, it.decode.flipped = 0.02, True
        offer(it, it.finished())
        await asyncio.sleep(5)
        assert it.counts == (1, 0, 0)

    live(story)


def _no_prefill(it: Setting) -> None:
    it.prefill.fault = UNREACHABLE


def _decode_hangs(it: Setting) -> None:
    it.decode.hangs = True


def _decode_fails(it: Setting) -> None:
    it.decode.status = 500


def _no_logprobs(it: Setting) -> None:
    it.decode.logprobs = False


@pytest.mark.parametrize("trouble", [_no_prefill, _decode_hangs, _decode_fails, _no_logprobs])
def test_trouble_is_no_mismatch(trouble: Callable[[Setting], None]) -> None:
    """Without a comparison nothing is said of the pair."""

    async def story(it: Setting) -> None:
        trouble(it)
        assert offer(it, it.finished())
        await asyncio.sleep(70)
        assert it.counts == (0, 0, 1)
        assert it.quarantined == []

    live(story)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/v1/responses"},
        {"path": "/v1/messages"},
        {"prompt_tokens": 8193},
        {"body": {"temperature": 0.7}},
        {"body": {"temperature": None}},
        {"body": {"n": 2}},
        {"body": {"use_beam_search": True}},
    ],
)
def test_what_is_not_replayed(changes: dict[str, Any]) -> None:
    """Sampled answers, long prompts, and endpoints without comparable answers."""

    async def story(it: Setting) -> None:
        assert not offer(it, it.finished(**changes))
        await asyncio.sleep(5)
        assert it.prefill.asked == []

    live(story)


def test_one_at_a_time() -> None:
    """Others are skipped, not queued."""

    async def story(it: Setting) -> None:
        it.decode.hangs = True
        assert offer(it, it.finished())
        assert not offer(it, it.finished())
        await asyncio.sleep(1)
        assert not offer(it, it.finished())
        assert it.canary.counts.skipped == 2
        assert it.cluster.most_in_flight == 1

    live(story)


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.0, 0, 0), (0.1, 60, 140), (1.0, 1000, 1000)]
)
def test_the_rate(rate: float, least: int, most: int) -> None:
    """That share is drawn."""

    async def story(it: Setting) -> None:
        drawn = 0
        for _ in range(1000):
            if offer(it, it.finished()):
                drawn += 1
                await asyncio.sleep(1)
        assert least <= drawn <= most

    live(story, CareRules(canary_rate=rate))


def test_close_cuts_the_replay() -> None:
    """And no other begins."""

    async def story(it: Setting) -> None:
        it.decode.hangs = True
        offer(it, it.finished())
        await asyncio.sleep(1)
        await it.canary.close()
        assert it.cluster.in_flight == 0
        assert not offer(it, it.finished())
        assert it.counts == (0, 0, 0)

    live(story)
