"""The registry's hot endpoint: heartbeats of workers, a thousand a second where there are as many.

A handler of ``router.wire``, past FastAPI, which would cost more than all else that a heartbeat
needs. The registry's other endpoints are in ``router.app``.
"""

from __future__ import annotations

import math
from typing import Final
from urllib.parse import parse_qs, unquote

import msgspec

from baton.errors import BatonError, BodyTooLarge, InvalidRequest
from baton.registrar import TTL_S, WORKERS_PATH
from baton.types import WorkerRecord
from router.access import require_bearer
from router.state import RouterState
from router.wire import Exchange, Handler

_MAX_RECORD_BYTES: Final = 64 * 1024
_MAX_TTL_S: Final = 60.0
_BODY_S: Final = 5.0
_JSON: Final = [("content-type", "application/json")]


def registry_routes(state: RouterState) -> dict[tuple[str, str], Handler]:
    """Handlers by method and path."""
    return {("PUT", f"{WORKERS_PATH}/*"): _Heartbeats(state).serve}


class _Heartbeats:
    """``PUT /internal/workers/{id}?ttl_s=...`` with a worker's record."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    async def serve(self, exchange: Exchange) -> None:
        """Answers 204, or an error object."""
        try:
            require_bearer(exchange.header(b"authorization"), self._state.settings.token)
            await self._take(exchange)
        except BatonError as error:
            exchange.reply(error.status, _JSON, msgspec.json.encode(error.to_openai()))
        else:
            exchange.reply(204, [], b"")

    async def _take(self, exchange: Exchange) -> None:
        ttl_s = _ttl_s(exchange.query)
        try:
            raw = await exchange.body(_MAX_RECORD_BYTES, _BODY_S)
        except BodyTooLarge as error:
            raise InvalidRequest(
                f"A worker record has at most {_MAX_RECORD_BYTES} bytes."
            ) from error
        record = _record(raw)
        worker_id = unquote(exchange.path.rpartition("/")[2])
        if record.id != worker_id:
            raise InvalidRequest(f"The record is of {record.id!r}, the path says {worker_id!r}.")
        state = self._state
        known = state.pool.record(record.id)
        await state.store.put_worker(record, ttl_s=ttl_s)
        # News is seen at once; mere heartbeats at the pool's own next refresh.
        if known is None or (known.state, known.engine_id) != (record.state, record.engine_id):
            await state.pool.refresh()


def _record(raw: bytes) -> WorkerRecord:
    try:
        return msgspec.json.decode(raw, type=WorkerRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"Not a worker record: {error}") from error


def _ttl_s(query: bytes) -> float:
    text = query.decode("latin-1")
    name, _, value = text.partition("=")
    if name != "ttl_s" or not value.replace(".", "").isdigit():
        # Not as our workers write it.
        given = parse_qs(text, keep_blank_values=True).get("ttl_s")
        if given is None:
            return TTL_S
        value = given[-1]
    try:
        # It would take 1_0 for 10.
        ttl_s = math.nan if "_" in value else float(value)
    except ValueError:
        ttl_s = math.nan
    if not 0 < ttl_s <= _MAX_TTL_S:
        raise InvalidRequest(
            f"ttl_s must be a number of seconds above 0 and at most {_MAX_TTL_S:g}.", param="ttl_s"
        )
    return ttl_s
