"""From bytes to a body that can be trusted: JSON, depth, transfer parameters, exact types.

It exists because an engine believes what it reads: a body that reaches it unchecked can name
another machine to pull KV from, or be understood differently by prefill and by decode. One pass
over the body's own keys does all of it, since it runs for every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from baton.errors import InvalidRequest

MAX_DEPTH: Final = 64
"""Arrays and objects inside one another. JSON schemas and tool calls stay far below; recursion
in a decoder, a template or a validator does not start to hurt before several hundred."""

MAX_MODEL_NAME: Final = 512
"""Characters. A name goes into headers, metrics and messages."""

Rule = tuple[type[Any] | None, int | None]
"""The exact type of a field (None: any), and its least value (None: none)."""

ANY: Final[Rule] = (None, None)
"""Whoever reads the field checks it; only null is taken out here."""

_decode_json = msgspec.json.Decoder().decode
_LARGEST: Final = 2**53
"""Of counts: what a float holds exactly, and far more tokens than there are."""


def decode_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Of duplicate keys the last one counts.

    Raises:
        InvalidRequest: nothing else, whatever the bytes are.
    """
    try:
        body = _decode_json(raw)
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not valid UTF-8") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        # NaN, Infinity, lone surrogates and numbers beyond a double end here as well.
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if type(body) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, not {kind_of(body)}")
    # Each level costs a bracket: with so few, text or not, there is nothing to walk through.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    """Level by level, so that the depth of the input is never the depth of the stack."""
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            values = node.values() if type(node) is dict else node
            # A prompt of 100,000 token ids is one kind of value: told at C speed.
            if {dict, list} & set(map(type, values)):
                below.extend(value for value in values if type(value) in (dict, list))
        if not below:
            return
        level = below
    raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def check_fields(body: dict[str, Any], rules: Mapping[str, Rule]) -> bool:
    """Checks the fields that ``rules`` name, and takes out what a client may not say.

    Null is taken out of the fields named: it means the same as a missing field, but the engine
    refuses it in some places. Types have to be exact: the engine would take ``"2"`` or ``true``
    for the integer that the router did not see, and serve ``n = 2`` over a handoff.

    Transfer parameters go, by every way that a body has to them. ``kv_transfer_params`` names the
    host, port and blocks to pull from (a request of its own to any machine, other requests' KV, or
    a dead engine), and its ``prompt_token_ids`` replaces the prompt behind the router's back.
    ``ec_transfer_params`` is the same for encoder outputs. ``vllm_xargs`` becomes the engine's
    ``extra_args``, the very dictionary from which the engine takes both, so its keys are as good as
    the fields themselves (and a string there kills the engine core); from it the engine also takes
    ``kv_cache_report_mode``, which makes a request announce blocks again on the KV event stream.
    The suffix is matched, not the names, so that a third kind of transfer in a later engine is
    shut out too.

    What stays, and why it is harmless: ``request_id`` and ``session_id`` are labels (the engine
    adds its own random suffix to a request's id), ``priority`` is refused by an engine that does
    not schedule by it, ``cache_salt`` only separates caches. The data-parallel rank is a header,
    not a field.

    Returns:
        Whether any transfer parameter that said something (not null) was removed.

    Raises:
        InvalidRequest: a wrong type or too small a number.
    """
    leaving: list[str] | None = None
    stripped = False
    for field, value in body.items():
        rule = rules.get(field)
        if rule is None:
            if not _is_engine_control(field):
                continue
            stripped = stripped or value is not None
        elif value is not None:
            kind, at_least = rule
            if kind is not None:
                if type(value) is not kind:
                    raise InvalidRequest(
                        f"{field} must be {_KINDS[kind]}, not {kind_of(value)}", param=field
                    )
                if at_least is not None and value < at_least:
                    raise InvalidRequest(f"{field} must be at least {at_least}", param=field)
                if at_least is not None and value > _LARGEST:
                    raise InvalidRequest(f"{field} must be at most {_LARGEST}", param=field)
            continue
        if leaving is None:
            leaving = []
        leaving.append(field)
    if leaving is not None:
        for field in leaving:
            del body[field]
    if "vllm_xargs" in body:
        return _strip_extra(body) or stripped
    return stripped


def _is_engine_control(key: str) -> bool:
    return key.endswith("_transfer_params") or key == "kv_cache_report_mode"


def _strip_extra(body: dict[str, Any]) -> bool:
    extra = body["vllm_xargs"]
    if type(extra) is not dict:
        raise InvalidRequest(
            f"vllm_xargs must be an object, not {kind_of(extra)}", param="vllm_xargs"
        )
    removed = [extra.pop(key) for key in [*extra] if _is_engine_control(key)]
    if not extra:
        del body["vllm_xargs"]
    return any(value is not None for value in removed)


def model_of(body: dict[str, Any]) -> str:
    """The model's name, for a body whose ``model`` is a string or missing.

    Raises:
        InvalidRequest: none, or too long a one.
    """
    model: str | None = body.get("model")
    if not model:
        raise InvalidRequest("model is required", param="model")
    if len(model) > MAX_MODEL_NAME:
        raise InvalidRequest(f"model is longer than {MAX_MODEL_NAME} characters", param="model")
    return model


_KINDS: Final[Mapping[type[Any], str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """A JSON value's kind, in words."""
    return _KINDS[type(value)]
