"""What a router would do with a body, without doing it: ``POST /admin/explain``."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from baton.errors import OurFault
from baton.types import RequestId
from router.api import Endpoint, parse_request, session_of
from router.call import Call, Trail
from router.policy import explain
from router.state import RouterState


class _NoReply:
    """Nobody is answered."""

    started = False

    def _never(self, *_: Any, **__: Any) -> Any:
        raise OurFault("an explanation sends nothing to a client")

    start = write = end = reply = on_congestion = writer = chunk_writer = _never


async def explain_request(state: RouterState, endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    """The decision on a body as things are now, with every worker's verdict and scores.

    Raises:
        InvalidRequest: the body would be refused, or generates nothing.
    """
    request = parse_request(endpoint, body)
    base, adapter = state.pool.base_of(request.model)
    now_s = state.clock.monotonic_s()
    serving = state.servings.current
    call = Call(
        request=request,
        request_id=RequestId("baton-explain"),
        reply=_NoReply(),
        trail=Trail(now_s, serving),
        ends_s=now_s + serving.total_s,
        session=session_of(request),
    )
    call.chain = state.chain_of(request, base, adapter)
    ask = await state.dispatcher.ask(call)
    match = state.pool.match(call.chain, ask.prompt_tokens)
    # Lots of its own: an explanation must not change what the next request draws.
    told = explain(ask, state.pool.snapshot(serving, match), random.Random())  # noqa: S311
    classify = serving.classify
    found: dict[str, Any] = msgspec.to_builtins(told)
    found["model"] = {"base": base, "adapter": adapter or None}
    found["local_reason"] = ask.local_reason
    found["stripped_transfer_params"] = request.stripped
    found["profile"] = {
        "name": serving.name,
        "version": serving.version,
        "decider": None if classify is None else str(classify.decider),
    }
    return found
