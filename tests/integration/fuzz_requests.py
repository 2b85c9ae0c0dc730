"""What a fuzzer sends: requests drawn from an OpenAPI document, whole ones and broken ones.

It exists beside the test because what is likely to hurt is knowledge of its own: options that
change how a request is served, bodies that two JSON readers understand differently, heads that two
HTTP readers do. It sends nothing and judges nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fakes.engine import MODEL

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE")

LONG_TEXT = "a long prompt about a baton, " * 8
_NUMBERS = st.sampled_from(
    [0, 1, 2, -1, 8, 65, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**64), 10**40, 1e308]
)
_TEXT = st.one_of(
    st.sampled_from(["", "x", LONG_TEXT, "\0", "\ud800", "é🙂", "data: [DONE]\n\n", "null", "0"]),
    st.text(max_size=20),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, st.floats(), st.integers(), _TEXT)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXT, inner, max_size=4)),
    max_leaves=8,
)

_PARTS = st.sampled_from(
    [
        {"type": "text", "text": LONG_TEXT},
        {"type": "input_text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]},
        {"type": "tool_use", "name": "f", "input": {}},
        {"type": 5, "text": None},
        {"text": LONG_TEXT, "image_url": 5},
        "text",
        {},
    ]
)
_CONTENTS = st.one_of(_TEXT, st.lists(_PARTS, max_size=3), _ANYTHING)
_MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "system", "assistant", "tool", "", 5]),
                "content": _CONTENTS,
            }
        ),
        _ANYTHING,
    ),
    min_size=1,
    max_size=3,
)
_PLAIN_MESSAGES = st.sampled_from([LONG_TEXT, "x"]).map(
    lambda text: [{"role": "user", "content": text}]
)
_PARAMS = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "p0-run-1",
    "remote_block_ids": [[1]], "remote_request_id": "r", "remote_host": "192.0.2.1",
    "remote_port": 5600, "tp_size": 1,
}  # fmt: skip

# Fields of any endpoint that change how a request is served; the document does not list them.
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.sampled_from([1, 2, 3, "2", True, 0, 10**9]),
    "best_of": st.sampled_from([1, 2, 3]),
    "echo": st.booleans(),
    "logprobs": st.sampled_from([True, False, 0, 2, -1]),
    "top_logprobs": _NUMBERS,
    "prompt_logprobs": st.sampled_from([0, 1, -1, "1"]),
    "stream": st.booleans(),
    "stream_options": st.sampled_from([{"include_usage": True}, {}, {"include_usage": 5}, []]),
    "min_tokens": st.sampled_from([0, 4, 9, 10**6]),
    "max_tokens": _NUMBERS,
    "max_completion_tokens": st.sampled_from([1, 8, 0]),
    "use_beam_search": st.booleans(),
    "truncate_prompt_tokens": st.sampled_from([1, -1]),
    "kv_transfer_params": st.one_of(st.just(_PARAMS), _ANYTHING),
    "ec_transfer_params": _ANYTHING,
    "vllm_xargs": st.one_of(st.just({"kv_transfer_params": _PARAMS, "a": 1}), _ANYTHING),
    "tools": st.one_of(st.just([{"type": "function", "function": {"name": "f"}}]), _ANYTHING),
    "tool_choice": st.one_of(st.just({"type": "tool", "name": "f"}), _ANYTHING),
    "temperature": st.sampled_from([0, 0.0, 1, -1, "0"]),
    "thinking": st.one_of(st.just({"type": "enabled", "budget_tokens": 2}), _ANYTHING),
    "system": _CONTENTS,
    "instructions": _CONTENTS,
    "previous_response_id": _TEXT,
    "background": st.booleans(),
    "store": st.booleans(),
    "truncation": st.sampled_from(["auto", "disabled", None, 5]),
    "prompt_embeds": st.one_of(_TEXT, st.lists(_TEXT, max_size=2)),
    "chat_template": _TEXT,
    "chat_template_kwargs": _ANYTHING,
    "add_generation_prompt": _ANYTHING,
    "suffix": _TEXT,
    "user": _ANYTHING,
    "session_id": _TEXT,
    "metadata": _ANYTHING,
    "cache_salt": _TEXT,
    "response_format": _ANYTHING,
}  # fmt: skip

_ALIKE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from([MODEL] * 12 + ["other", "", MODEL + "\0", "m" * 600]),
    "messages": st.one_of(_PLAIN_MESSAGES, _PLAIN_MESSAGES, _PLAIN_MESSAGES, _MESSAGES),
    "prompt": st.one_of(
        st.sampled_from([LONG_TEXT, LONG_TEXT, "x", [1, 2], list(range(100)), ["a", "b"]]),
        st.sampled_from([LONG_TEXT, "x"]),
        _CONTENTS,
    ),
    "input": st.one_of(
        st.sampled_from([LONG_TEXT, "x", [1, 2]]), st.just(LONG_TEXT), _PLAIN_MESSAGES, _MESSAGES
    ),
    "tokens": st.lists(st.integers(0, 255), max_size=5),
    "max_tokens": st.sampled_from([8, 8, 1, 2]),
    "max_output_tokens": st.sampled_from([8, 1]),
}
"""Values that an engine would mostly take, by the name of the field."""

_JSON_TYPES: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXT,
    "integer": st.integers(-5, 5000),
    "number": st.floats(),
    "boolean": st.booleans(),
    "null": st.none(),
    "array": st.lists(_SCALARS, max_size=3),
    "object": st.dictionaries(_TEXT, _SCALARS, max_size=3),
}


@dataclass(frozen=True)
class Shot:
    """One request. ``target`` is the path as it goes over the wire, with the query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def has_deadline(self) -> bool:
        """Whether it may be answered with 504."""
        return any(name.lower() == "x-baton-timeout-s" for name, _ in self.headers)


def _body_of(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """A value that mostly fits a schema of a body."""
    if schema.get("type") != "object":
        return draw(_ANYTHING)
    body: dict[str, Any] = {}
    required = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        if name not in required and draw(st.booleans()):
            continue
        kinds = inner.get("type", "object")
        kind = draw(st.sampled_from(kinds if isinstance(kinds, list) else [kinds]))
        body[name] = draw(_ALIKE.get(name, _JSON_TYPES[kind]))
    return body


def _spoil(draw: st.DrawFn, body: Any) -> Any:
    """Options that the document does not list, missing fields, and fields of other types."""
    if not isinstance(body, dict):
        return body
    names = st.lists(st.sampled_from(sorted(_OPTIONS)), min_size=1, max_size=2, unique=True)
    for name in draw(names) if draw(st.integers(0, 2)) == 2 else ():
        body[name] = draw(_OPTIONS[name])
    match draw(st.integers(0, 24)):
        case 0 if body:
            del body[draw(st.sampled_from(sorted(body)))]
        case 1 if body:
            body[draw(st.sampled_from(sorted(body)))] = draw(_ANYTHING)
        case 2:
            body[draw(_TEXT)] = draw(_ANYTHING)
        case 3:
            return draw(_ANYTHING)
    return body


def _encode(draw: st.DrawFn, body: Any) -> bytes:
    """JSON, or what is nearly JSON."""
    text = json.dumps(body)
    how = draw(st.integers(0, 39))
    if how == 0 and isinstance(body, dict) and body:
        name = draw(st.sampled_from(sorted(body)))
        return f"{{{json.dumps(name)}: {json.dumps(draw(_ANYTHING))}, {text[1:]}".encode()
    if how == 1:
        return text[: draw(st.integers(0, len(text)))].encode()
    if how == 2:
        at = draw(st.integers(0, len(text)))
        return text[:at].encode() + draw(st.binary(min_size=1, max_size=4)) + text[at:].encode()
    if how == 3:
        depth = draw(st.sampled_from([60, 70, 5000]))
        return b'{"model":"tiny","prompt":' + b"[" * depth + b"]" * depth + b"}"
    if how == 4:
        return draw(st.sampled_from([b"", b"\xef\xbb\xbf{}", text.encode("utf-16"), b"x" * 70_000]))
    return json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


_PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
_HEADERS: dict[str, st.SearchStrategy[str]] = {
    "Content-Type": st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""]),
    "Authorization": st.one_of(st.sampled_from(["Bearer x", "Basic eDp5"]), _PRINTABLE),
    "x-api-key": _PRINTABLE,
    "x-request-id": st.one_of(_PRINTABLE, st.sampled_from(["", "i" * 300])),
    "x-session-id": _PRINTABLE,
    "x-baton-priority": st.sampled_from(["0", "-1", "5", "1e3", "", "9" * 50]),
    "x-baton-timeout-s": st.sampled_from(["5", "0.001", "0", "-1", "nan", "inf", "x", "1e400"]),
    "x-baton-explain": st.sampled_from(["1", "0", "yes"]),
    "traceparent": st.one_of(st.just("00-" + "a" * 32 + "-" + "b" * 16 + "-01"), _PRINTABLE),
    "tracestate": _PRINTABLE,
    "Accept": st.sampled_from(["text/event-stream", "application/openmetrics-text", "", "*/*;q=x"]),
    "Accept-Encoding": st.sampled_from(["gzip", "br;q=0", "identity;q=0"]),
    "Content-Encoding": st.sampled_from(["gzip", "identity"]),
    "Origin": st.just("http://example.org"),
    "Host": _PRINTABLE,
    "X-Forwarded-For": _PRINTABLE,
}


def _odd_record(draw: st.DrawFn, record: dict[str, Any]) -> dict[str, Any]:
    """A worker's record in which some values are others; of the same type, mostly."""
    odd = {key: dict(value) if isinstance(value, dict) else value for key, value in record.items()}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(odd.keys() - {"model", "adapters"})))
        inside = odd[name] if isinstance(odd[name], dict) and odd[name] else odd
        name = draw(st.sampled_from(sorted(inside))) if inside is not odd else name
        alike = st.integers() if isinstance(inside[name], int) else _TEXT
        inside[name] = draw(st.one_of(alike, alike, _NUMBERS, _ANYTHING))
    return odd


@st.composite
def shots(draw: st.DrawFn, document: dict[str, Any], token: str, record: dict[str, Any]) -> Shot:
    """Requests to what a document describes, and to what is beside it.

    Args:
        document: an OpenAPI document.
        token: the cluster token; sent now and then, never to remove a worker of the test's own.
        record: a worker that nobody asks for, to be registered in odd ways.
    """
    if draw(st.integers(0, 19)) == 19:
        odd = _encode(draw, _odd_record(draw, record))
        target = f"/internal/workers/{record['id']}?ttl_s=60"
        return Shot("PUT", target, (("Authorization", f"Bearer {token}"),), odd)
    paths = sorted(document["paths"])
    with_body = [path for path in paths if "requestBody" in document["paths"][path].get("post", {})]
    template = draw(st.sampled_from(with_body if draw(st.booleans()) else paths))
    operations = document["paths"][template]
    method = draw(st.sampled_from(sorted(operations))).upper()
    operation = operations[method.lower()]
    path, query = template, []
    for parameter in operation.get("parameters", ()):
        value = draw(st.one_of(_JSON_TYPES[parameter["schema"].get("type", "string")], _TEXT))
        spelt = quote(str(value).encode("utf-8", "surrogatepass"), safe="")
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", "w" + spelt)
        elif parameter["in"] == "query":
            query.append(f"{parameter['name']}={spelt}")
    if draw(st.integers(0, 14)) == 14:
        method = draw(st.sampled_from(METHODS))
    if draw(st.integers(0, 24)) == 24:
        path = draw(st.sampled_from([path + "/", path + "/..", "//" + path, path.upper(), "/%00"]))
    headers = {
        name: draw(_HEADERS[name])
        for name in draw(st.lists(st.sampled_from(sorted(_HEADERS)), max_size=3, unique=True))
    }
    if path.startswith(("/internal", "/admin")) and draw(st.booleans()):
        headers["Authorization"] = f"Bearer {token}"
    body: bytes | None = None
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is not None:
        body = _encode(draw, _spoil(draw, _body_of(draw, content["schema"])))
    elif method not in ("GET", "HEAD", "TRACE") or draw(st.integers(0, 9)) == 0:
        body = _encode(draw, draw(_ANYTHING))
    target = path + ("?" + "&".join(query) if query else "")
    return Shot(method, target, tuple(headers.items()), body)


# --- below HTTP ---------------------------------------------------------------------------------

_BODY = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 2}).encode()
_LINES = (
    b"POST /v1/completions HTTP/1.1", b"GET /healthz HTTP/1.1", b"GET /v1/models HTTP/1.0",
    b"POST /v1/completions HTTP/2.0", b"PRI * HTTP/2.0", b"GET http://x/healthz HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"CONNECT x:443 HTTP/1.1", b"GET  /healthz HTTP/1.1", b"GET /healthz",
    b"get /healthz HTTP/1.1", b"GET /\xff\xfe HTTP/1.1", b"GET /" + b"a" * 40_000 + b" HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"POST /v1/messages HTTP/1.1", b"",
)  # fmt: skip
_HEADER_LINES = (
    b"Host: x", b"Content-Length: %d" % len(_BODY), b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: 99999999999999999999", b"Content-Length: 0x10", b"Content-Length: +3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Connection: close",
    b"Transfer-Encoding: xchunked", b"Connection: Upgrade\r\nUpgrade: h2c", b"Expect: 100-continue",
    b"Expect: something", b"X: a\r\n b", b"X : y", b": y", b"X: \0", b"X: a\rb", b"no colon",
    b"Connection: keep-alive", b"X: " + b"y" * 40_000, b"A: b\r\n" * 150 + b"A: b", b"\xff: \xff",
)  # fmt: skip
_BODIES = (
    _BODY, _BODY + _BODY, b"", _BODY[:5], b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY),
    b"5\r\nhello\r\n", b"zz\r\n", b"ffffffffffffffffff\r\n", b"0\r\nTrailer: x\r\n\r\n", b"\0" * 99,
    b"1;" + b"e" * 40_000 + b"\r\nx\r\n", b"-1\r\n\r\n",
)  # fmt: skip


@st.composite
def garbage(draw: st.DrawFn) -> bytes:
    """What comes over a connection and may be HTTP."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=200))
    said = b""
    for _ in range(draw(st.integers(1, 3))):
        lines = [draw(st.sampled_from(_LINES))]
        lines += draw(st.lists(st.sampled_from(_HEADER_LINES), max_size=4))
        end = draw(st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r"]))
        said += end.join([*lines, b"", b""]) + draw(st.sampled_from(_BODIES))
    if draw(st.integers(0, 3)) == 0:
        said = said[: draw(st.integers(1, len(said)))]
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(said)))
        said = said[:at] + draw(st.binary(max_size=3)) + said[at:]
    return said
