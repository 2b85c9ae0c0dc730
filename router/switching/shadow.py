"""The last requests, decided anew under another profile: what a switch would change.

Both profiles decide about the workers as they are now, with lots of their own, so that what differs
is the profile and nothing else. Nothing is sent anywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from statistics import fmean

import msgspec

from profiles.switching import Shadow
from router.dispatch import Recent
from router.policy import Ask, Handoff, Local, Plan, Refuse, TokenBounds, plan
from router.pool import WorkerPool
from router.serving import Serving

_AT_A_TIME = 16
"""Requests between two looks at everything else: some milliseconds."""


async def compare(
    recent: list[Recent],
    pool: WorkerPool,
    old: Serving,
    new: Serving,
    look_again: Callable[[], None] = lambda: None,
) -> Shadow:
    """How many of the requests would take another way, and how long their first token would take.

    Args:
        recent: the last requests.
        pool: the workers.
        old, new: the profiles.
        look_again: called after each pause, in which workers may have come or gone.
    """
    rng = random.Random(0)  # noqa: S311 (lots between workers)
    changed: Counter[str] = Counter()
    refused = 0
    times: list[tuple[float, float]] = []
    for at, request in enumerate(recent):
        if at % _AT_A_TIME == 0:
            await asyncio.sleep(0)
            look_again()
        ask = _known(request)
        match = pool.match(request.chain, ask.prompt_tokens)
        plans = [plan(ask, pool.snapshot(side, match), rng) for side in (old, new)]
        before, after = (_path(each) for each in plans)
        if isinstance(plans[1], Refuse) and not isinstance(plans[0], Refuse):
            refused += 1
        if before != after:
            changed[f"{before} -> {after}"] += 1
        was_s, will_s = (_predicted_s(each) for each in plans)
        if was_s is not None and will_s is not None:
            times.append((was_s, will_s))
    return Shadow(
        requests=len(recent),
        changed=dict(changed),
        refused=refused,
        old_ttft_s=fmean(was for was, _ in times) if times else None,
        new_ttft_s=fmean(will for _, will in times) if times else None,
    )


def _known(request: Recent) -> Ask:
    """The request with its length, which is known by now also where it did not matter before."""
    ask = request.ask
    tokens = request.trail.known_prompt_tokens
    if ask.prompt_tokens is None and tokens is not None:
        ask = msgspec.structs.replace(ask, prompt_tokens=TokenBounds(tokens, tokens))
    return msgspec.structs.replace(ask, predict=True, avoid=frozenset())


def _path(found: Plan) -> str:
    if isinstance(found, Handoff):
        return "disaggregated"
    return "local" if isinstance(found, Local) else "refused"


def _predicted_s(found: Plan) -> float | None:
    if isinstance(found, Refuse) or found.predicted is None:
        return None
    predicted = found.predicted
    return predicted.remote_s if isinstance(found, Handoff) else predicted.local_s


__all__ = ["compare"]
