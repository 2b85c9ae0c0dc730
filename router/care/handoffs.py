"""Handoffs that the router makes for itself, to warm, to measure and to check; nobody gets their
text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from baton.clock import Clock
from baton.errors import HandoffUnusable, WorkerFailed
from baton.types import RequestId, WorkerRecord
from router.care.seams import Asker

OFFER: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What a prefill leg says in ``kv_transfer_params`` (vLLM's NixlConnector)."""


@dataclass(frozen=True, slots=True)
class OwnHandoff:
    """A handoff that went well: both answers as they came, and how long decode's took, the pull
    included."""

    prefill_answer: bytes
    decode_answer: bytes
    decode_s: float


async def hand_over(
    asker: Asker,
    prefill: WorkerRecord,
    decode: WorkerRecord,
    path: str,
    prefill_body: bytes,
    decode_body: Mapping[str, Any],
    request_id: RequestId,
    *,
    timeout_s: float,
    clock: Clock,
) -> OwnHandoff:
    """Both legs, within ``timeout_s`` in all. Whatever fails, nothing is tried again: parameters
    are used once at most.

    Args:
        prefill_body: complete; asks for one token and an offer.
        decode_body: without transfer parameters.

    Raises:
        PeerFault: a leg failed, or offered nothing.
    """
    ends_s = clock.monotonic_s() + timeout_s
    prefill_answer = await checked(
        asker, prefill, path, prefill_body, request_id, timeout_s=timeout_s
    )
    try:
        params = msgspec.json.decode(prefill_answer)["kv_transfer_params"]
        offered = bool(params["remote_block_ids"])
    except (msgspec.DecodeError, ValueError, KeyError, TypeError):
        offered = False
    if not offered:
        raise HandoffUnusable(f"prefill worker {prefill.id} offered no blocks")
    began_s = clock.monotonic_s()
    decode_answer = await checked(
        asker,
        decode,
        path,
        msgspec.json.encode({**decode_body, "kv_transfer_params": params}),
        request_id,
        timeout_s=max(0.1, ends_s - began_s),
    )
    return OwnHandoff(prefill_answer, decode_answer, clock.monotonic_s() - began_s)


async def checked(
    asker: Asker,
    worker: WorkerRecord,
    path: str,
    body: bytes,
    request_id: RequestId,
    *,
    timeout_s: float,
) -> bytes:
    """The body of a 200.

    Raises:
        PeerFault: it could not be asked, or answered something else.
    """
    answer = await asker.ask(worker, path, body, request_id, timeout_s=timeout_s)
    if answer.status != 200:
        raise WorkerFailed(f"worker {worker.id} answered {answer.status} on {path}")
    return answer.body
