"""The mock worker's book of handoffs: what prefill offered, and what decode was given.

It exists because a router that forgets the transfer parameters, changes them or uses them twice is
answered 200 by real engines, and would look cheap here: each of these is counted, and the table
says so. Pure.
"""

from __future__ import annotations

import msgspec

BLOCK_TOKENS = 16
_MOST_OFFERS = 65_536
"""Offers that nobody pulls are forgotten from here on, the oldest first."""

_OFFER = (
    b'{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[%b]],'
    b'"remote_engine_id":"%b","remote_request_id":"%b","remote_host":"127.0.0.1",'
    b'"remote_port":5600,"tp_size":1,"dcp_size":1,"pp_size":1,"remote_num_tokens":%d,'
    b'"remote_blocks_expiry_time":null,"transfer_mode":"pull","remote_prefill_cached_tokens":0}'
)
"""Every field that vLLM 0.32's NixlConnector answers with (``request_finished`` of its scheduler
side)."""


class Counts(msgspec.Struct):
    """What the workers of one mock saw.

    Attributes:
        offered: prefill legs that asked for a remote decode and were answered with parameters.
        long_prefills: those of them that asked for more than one token, which corrupts answers.
        pulled: decode legs with parameters as they were given, for the first time.
        changed: decode legs with parameters that differ from what prefill gave.
        unknown: decode legs with parameters used before, or never given.
        whole_on_prefill: requests to a prefill worker that said nothing of a remote decode.
        whole: requests to a decode or standard worker without parameters.
    """

    offered: int = 0
    long_prefills: int = 0
    pulled: int = 0
    changed: int = 0
    unknown: int = 0
    whole_on_prefill: int = 0
    whole: int = 0

    def minus(self, before: Counts) -> Counts:
        """What was added since ``before``."""
        return Counts(*(getattr(self, n) - getattr(before, n) for n in self.__struct_fields__))


class _Params(msgspec.Struct):
    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_request_id: str | None = None


_PARAMS = msgspec.json.Decoder(_Params)


class Book:
    """One for all workers of a mock."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._offers: dict[str, bytes] = {}
        self._asked = 0

    def answer(
        self, role: str, engine: bytes, given: bytes, prompt_tokens: int, max_tokens: int
    ) -> bytes:
        """Notes one leg on a worker of ``role``; returns the parameters of its answer as JSON.

        Args:
            role: ``prefill``, ``decode`` or ``standard``.
            engine: the worker's engine id.
            given: the request's ``kv_transfer_params`` as JSON; empty if it has none.
            prompt_tokens: length of the prompt.
            max_tokens: what it may generate.

        Raises:
            msgspec.DecodeError: the parameters are not of the form that engines take.
        """
        counts = self.counts
        params = _PARAMS.decode(given) if given and given != b"null" else _Params()
        if role == "prefill":
            if not params.do_remote_decode:
                counts.whole_on_prefill += 1
                return b"null"
            counts.offered += 1
            counts.long_prefills += max_tokens > 1
            return self._offer(engine, prompt_tokens)
        if not params.do_remote_prefill:
            counts.whole += 1
            return b"null"
        offer = self._offers.pop(params.remote_request_id or "", None)
        if offer is None:
            counts.unknown += 1
        elif given == offer or msgspec.json.decode(given) == msgspec.json.decode(offer):
            counts.pulled += 1
        else:
            counts.changed += 1
        return b"null"

    def _offer(self, engine: bytes, prompt_tokens: int) -> bytes:
        self._asked += 1
        name = f"cmpl-{self._asked:016x}"
        blocks = -(-prompt_tokens // BLOCK_TOKENS)
        ids = b",".join(b"%d" % number for number in range(1, 1 + blocks))
        offer = _OFFER % (ids, engine, name.encode(), prompt_tokens)
        self._offers[name] = offer
        if len(self._offers) > _MOST_OFFERS:
            del self._offers[next(iter(self._offers))]
        return offer
