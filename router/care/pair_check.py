"""Whether one prefill and one decode worker may hand over to each other, on paper and in fact.

On paper: everything that makes an engine answer 200 with wrong text when it differs. In fact: two
dummy handoffs, the first of which pays for the handshake. Their first token is also compared with
the one that prefill computed itself from the same KV, which no transfer has touched.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from baton.clock import Clock
from baton.types import RequestId, WorkerRecord
from kvtransfer import differences, kv_bytes
from router.care.first_token import (
    ASK_LOGPROBS,
    COMPLETIONS,
    Likeness,
    compare,
    read_first_token,
)
from router.care.handoffs import OFFER, OwnHandoff, hand_over
from router.care.probes import counters
from router.care.rules import CareRules
from router.care.seams import Asker

_LEAST_BLOCKS = 4
_TARGET_BYTES = 32 * 1024 * 1024
"""Of a dummy handoff: fewer measure the latency, not the bandwidth."""
_MOST_TOKENS = 1024
"""Of its prompt: prefill has better things to do."""
_MEASURED = 2
"""Measured handoffs at most, after the one that pays for the handshake: the second only where the
first was mixed with other pulls, or was below the floor."""
_LOWEST_ID, _IDS = 3, 97
"""Token ids of the prompt: any vocabulary has these, and the first few are often special."""


def static_refusal(prefill: WorkerRecord, decode: WorkerRecord, rules: CareRules) -> str | None:
    """Why the two must not be paired, in words, or None. Pure."""
    digests = [worker.model_digest or "unknown" for worker in (prefill, decode)]
    if digests[0] != digests[1] or "unknown" in digests:
        return f"weights: {digests[0]} against {digests[1]}"
    shapes = differences(prefill.geometry, decode.geometry)
    if shapes:
        return "; ".join(shapes)
    versions = (prefill.engine_version, decode.engine_version)
    if all(versions) and versions[0] != versions[1]:
        return f"engine version: {versions[0]} against {versions[1]}"
    if rules.require_rdma:
        for worker in (prefill, decode):
            if worker.transport != "rdma":
                return (
                    f"the profile asks for rdma, and worker {worker.id} transfers over "
                    f"{worker.transport or 'whatever it finds'}"
                )
    return None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the dummy handoffs of a pair showed.

    Attributes:
        setup_s: what the first took longer than the second: handshake and registration.
        bandwidth_bytes_per_s: of the pull alone where ``exact``; else of the whole decode leg, a
            lower bound.
        likeness: of the first tokens; DIFFERENT if they differed in every handoff.
        difference: of their log probabilities, the smallest of all handoffs.
    """

    setup_s: float
    bandwidth_bytes_per_s: float
    exact: bool
    likeness: Likeness
    difference: float | None


async def measure(
    asker: Asker,
    prefill: WorkerRecord,
    decode: WorkerRecord,
    *,
    floor_bytes_per_s: float | None,
    timeout_s: float,
    clock: Clock,
    rng: random.Random,
) -> Measured:
    """Warms and measures a pair, within ``timeout_s`` for each handoff and page.

    Raises:
        PeerFault: a leg failed.
    """
    tokens = _prompt_tokens(prefill, decode)
    size_bytes = kv_bytes(prefill.geometry, tokens)
    # One transfer each rank of decode, or each of prefill where those are more; all at one time.
    ranks = max(prefill.geometry.tensor_parallel, decode.geometry.tensor_parallel)
    first, signs = await _dummy(asker, prefill, decode, tokens, timeout_s, clock, rng)
    all_signs = [signs]
    best_exact: float | None = None
    fastest_s = first.decode_s
    second_s: float | None = None
    for _ in range(_MEASURED):
        request_id = _request_id(rng)
        before = await counters(asker, decode, request_id, timeout_s=timeout_s)
        handoff, signs = await _dummy(asker, prefill, decode, tokens, timeout_s, clock, rng)
        all_signs.append(signs)
        after = await counters(asker, decode, request_id, timeout_s=timeout_s)
        second_s = handoff.decode_s if second_s is None else second_s
        fastest_s = min(fastest_s, handoff.decode_s)
        moved_bytes = _more(before.transfer_bytes, after.transfer_bytes)
        moved_s = _more(before.transfer_s, after.transfer_s)
        # More than ours would belong to another pair, at another speed.
        if _more(before.transfers, after.transfers) == ranks and moved_bytes > 0 and moved_s > 0:
            best_exact = max(best_exact or 0.0, moved_bytes / (moved_s / ranks))
            if floor_bytes_per_s is None or best_exact >= floor_bytes_per_s:
                break
    assert second_s is not None  # the loop runs once at least
    likeness, difference = _verdict(all_signs)
    return Measured(
        setup_s=max(0.0, first.decode_s - second_s),
        bandwidth_bytes_per_s=best_exact or size_bytes / max(fastest_s, 1e-6),
        exact=best_exact is not None,
        likeness=likeness,
        difference=difference,
    )


_Signs = tuple[Likeness, float | None]


async def _dummy(
    asker: Asker,
    prefill: WorkerRecord,
    decode: WorkerRecord,
    tokens: int,
    timeout_s: float,
    clock: Clock,
    rng: random.Random,
) -> tuple[OwnHandoff, _Signs]:
    body = {
        "model": prefill.model,
        "prompt": [_LOWEST_ID + rng.randrange(_IDS) for _ in range(tokens)],
        "max_tokens": 1,
        "temperature": 0,
        # Nobody has these blocks cached, and nobody will find them.
        "cache_salt": f"{rng.getrandbits(64):016x}",
        **ASK_LOGPROBS[COMPLETIONS],
    }
    handoff = await hand_over(
        asker,
        prefill,
        decode,
        COMPLETIONS,
        msgspec.json.encode({**body, "kv_transfer_params": OFFER}),
        body,
        _request_id(rng),
        timeout_s=timeout_s,
        clock=clock,
    )
    there = read_first_token(COMPLETIONS, handoff.prefill_answer)
    here = read_first_token(COMPLETIONS, handoff.decode_answer)
    if there is None or here is None:
        return handoff, (Likeness.UNKNOWN, None)
    return handoff, compare(there, here)


def _verdict(signs: list[_Signs]) -> _Signs:
    if all(likeness is Likeness.DIFFERENT for likeness, _ in signs):
        return Likeness.DIFFERENT, min(d for _, d in signs if d is not None)
    if any(likeness is Likeness.SAME for likeness, _ in signs):
        return Likeness.SAME, min((d for _, d in signs if d is not None), default=None)
    return Likeness.UNKNOWN, None


def _prompt_tokens(prefill: WorkerRecord, decode: WorkerRecord) -> int:
    """Whole blocks, as many as the target needs and the limits allow."""
    geometry = prefill.geometry
    blocks = max(_LEAST_BLOCKS, -(-_TARGET_BYTES // max(1, geometry.block_bytes)))
    blocks = min(blocks, max(_LEAST_BLOCKS, _MOST_TOKENS // geometry.block_size))
    longest = min(prefill.limits.max_model_len, decode.limits.max_model_len) - 1
    tokens = blocks * geometry.block_size
    if tokens > longest:
        tokens = max(1, longest // geometry.block_size) * geometry.block_size
    return max(1, min(tokens, longest))


def _more(before: float | None, after: float | None) -> float:
    return (after or 0.0) - (before or 0.0)


def _request_id(rng: random.Random) -> RequestId:
    return RequestId(f"pair-{rng.getrandbits(64):016x}")
