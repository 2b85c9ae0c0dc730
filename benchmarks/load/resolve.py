"""Looks at an endpoint before it is measured, so that what cannot work is said in words.

A run against a wrong name, a refused key or a refused option would be a run of errors. A handful of
small requests finds that out, and how long our words are to the server's tokenizer.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from baton.errors import TargetError
from benchmarks.load.bodies import build_body, path_of
from benchmarks.load.client import http_session
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.sse import DONE, BadAnswer, Events, Usage, decode, error_text, shorten
from benchmarks.plan import Piece, PlannedRequest
from benchmarks.target import Target
from benchmarks.workloads import PromptWriter

_LOOK_S = 15.0
_TRIAL_S = 120.0
"""For one trial request, at most: an endpoint that hangs is said to, long before ``--timeout``."""
_MAX_BYTES = 4 * 1024 * 1024
_SHORT_WORDS, _LONG_WORDS = 16, 144
_TRIAL_TOKENS = 2
_MOST_NAMES = 12


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Refused(Exception):
    """The endpoint answered a trial with an error; never leaves this module."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.said = said


async def resolve(target: Target, models: Collection[str] = ()) -> ResolvedTarget:
    """Finds the model, tries one request with the options of the run, measures the length of words
    where there is no tokenizer.

    Args:
        target: what is to be measured.
        models: that the workload names; the endpoint must have them all.

    Raises:
        TargetError: what is wrong, and what to do.
    """
    url = base_url(target.url)
    patient = msgspec.structs.replace(target, timeout_s=_patience_s(target))
    async with http_session(patient) as http:
        model = await _find_model(http, url, target.model, models)
        resolved = ResolvedTarget(
            url=url,
            model=model,
            **{
                name: getattr(target, name)
                for name in Target.__struct_fields__
                if name not in ("url", "model")
            },
        )
        measured = await _try(http, resolved)
        return msgspec.structs.replace(
            resolved,
            tokens_per_word=None if target.tokenizer is not None else measured,
            version=await _version(http, url),
        )


def _patience_s(target: Target | ResolvedTarget) -> float:
    return min(target.timeout_s, _TRIAL_S)


def base_url(written: str) -> str:
    """The URL without ``/v1`` and slashes at its end.

    Raises:
        TargetError: it is none, or holds a password or a query.
    """
    url = written.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise TargetError(f"{shorten(written)!r} is no URL; write it as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise TargetError("the URL holds a user name or a password; give the key as --api-key")
    if parts.query or parts.fragment:
        raise TargetError(f"{url} has a query; give the base URL alone")
    return url


async def _find_model(
    http: aiohttp.ClientSession, url: str, wanted: str | None, named: Collection[str]
) -> str:
    status, body = await _get(http, f"{url}/v1/models")
    if status in (401, 403):
        raise TargetError(
            f"{url} refuses the key ({status}); give it as --api-key or OPENAI_API_KEY"
        )
    if status != 200:
        if wanted is not None and status in (404, 405, 501):
            return wanted  # Not every server lists its models; the trial request decides.
        raise TargetError(
            f"{url}/v1/models answers {status} ({error_text(body)}); is it an OpenAI endpoint?"
        )
    try:
        names = [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except msgspec.DecodeError as error:
        raise TargetError(f"{url}/v1/models is no list of models; is it an OpenAI endpoint?") from (
            error
        )
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    missing = [name for name in sorted(named) if name not in names]
    if missing:
        raise TargetError(
            f"{url} has no model {missing[0]!r}, which the workload asks for; it has: "
            f"{listed or 'none'}"
        )
    if wanted is not None:
        if wanted not in names:
            raise TargetError(f"{url} has no model {wanted!r}; it has: {listed or 'none'}")
        return wanted
    if not names:
        raise TargetError(f"{url} lists no model; is it still starting?")
    if len(names) > 1:
        raise TargetError(f"{url} has several models; choose one with --model: {listed}")
    return names[0]


async def _try(http: aiohttp.ClientSession, target: ResolvedTarget) -> float | None:
    """Two trial requests; returns tokens per word, None if the server counts none."""
    salt = secrets.token_hex(8)
    try:
        short = await _trial(http, target, salt, _SHORT_WORDS)
    except _Refused as refusal:
        await _explain(http, target, refusal)
        raise
    if target.tokenizer is not None:
        return None
    try:
        long = await _trial(http, target, salt + "-long", _LONG_WORDS)
    except _Refused as refusal:
        raise _failed(target, refusal) from refusal
    if short is None or long is None:
        return None
    # The difference: what a chat template adds is the same in both.
    measured = (long - short) / (_LONG_WORDS - _SHORT_WORDS)
    return measured if 0.01 <= measured <= 1000 else None


async def _explain(http: aiohttp.ClientSession, target: ResolvedTarget, refusal: _Refused) -> None:
    """Raises a ``TargetError`` for a refused trial; finds out whether the options were at fault."""
    if target.force_output and refusal.status in (400, 422):
        plain = msgspec.structs.replace(target, force_output=False)
        try:
            await _trial(http, plain, secrets.token_hex(8), _SHORT_WORDS)
        except _Refused as second:
            raise _failed(target, second) from refusal
        raise TargetError(
            f"{target.url} refuses min_tokens and ignore_eos, which force the length of answers "
            f"({refusal.said}); use --no-force-output"
        ) from refusal
    raise _failed(target, refusal) from refusal


def _failed(target: ResolvedTarget, refusal: _Refused) -> TargetError:
    what = f"answers {refusal.status}" if refusal.status != 200 else "answers with an error"
    hint = ""
    if refusal.status in (401, 403):
        hint = "; give the key as --api-key or OPENAI_API_KEY"
    elif refusal.status == 404:
        hint = f"; does it serve {target.api.value}, and the model {target.model!r}?"
    elif refusal.status in (429, 503):
        hint = "; is it ready, and idle?"
    return TargetError(f"{target.url}{path_of(target.api)} {what}: {refusal.said}{hint}")


async def _trial(
    http: aiohttp.ClientSession, target: ResolvedTarget, salt: str, words: int
) -> int | None:
    """Sends one small request; returns its prompt tokens as the server counted them."""
    request = PlannedRequest(
        index=0,
        class_name="trial",
        pieces=(Piece("trial", words),),
        output_tokens=_TRIAL_TOKENS,
    )
    prompt = PromptWriter(salt).write(request.pieces)
    url = target.url + path_of(target.api)
    try:
        async with http.post(
            url,
            data=build_body(target, request, prompt),
            headers={"Content-Type": "application/json"},
            allow_redirects=False,
        ) as response:
            body = await _read(response, url)
            if response.status != 200:
                raise _Refused(response.status, error_text(body))
            usage = _usage(body, stream=target.stream)
    except TimeoutError as error:
        raise TargetError(f"{url} gave no answer within {_patience_s(target):g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TargetError(f"{url} broke off ({shorten(str(error))})") from error
    except BadAnswer as error:
        raise TargetError(f"{url} gives no OpenAI answer: {error}") from error
    return None if usage is None else usage.prompt_tokens


def _usage(body: bytes, *, stream: bool) -> Usage | None:
    if not stream:
        payloads = [body]
    else:
        payloads = [p for p in Events().feed(body + b"\n\n") if p != DONE]
        if not payloads:
            raise BadAnswer(f"not a stream: {shorten(body)}")
    usage = None
    for payload in payloads:
        answer = decode(payload)
        if answer.failure is not None:
            raise _Refused(200, answer.failure)
        usage = answer.usage or usage
    return usage


async def _version(http: aiohttp.ClientSession, url: str) -> str | None:
    """vLLM says its version; others need not."""
    try:
        status, body = await _get(http, f"{url}/version")
        said: Any = msgspec.json.decode(body) if status == 200 else None
    except (TargetError, msgspec.DecodeError):
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return shorten(version)[:60] if isinstance(version, str) else None


async def _get(http: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=_LOOK_S)
    try:
        async with http.get(url, timeout=timeout, allow_redirects=False) as response:
            return response.status, await _read(response, url)
    except TimeoutError as error:
        raise TargetError(f"{url} gave no answer within {_LOOK_S:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TargetError(
            f"nothing answers at {url} ({shorten(str(error))}); is it running?"
        ) from error


async def _read(response: aiohttp.ClientResponse, url: str) -> bytes:
    body = bytearray()
    while received := await response.content.readany():
        body += received
        if len(body) > _MAX_BYTES:
            raise TargetError(f"{url} answers with more than {_MAX_BYTES} bytes")
    return bytes(body)
