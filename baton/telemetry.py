"""How Baton's processes speak: one logging set-up for all of them.

Metrics belong to the process that has something to count; the router's stand in
``router.observe``. Logs go to stderr, one line an event, so that a container runtime or the
``baton up`` command can collect them; as text for people, or as one JSON object a line for
machines (``BATON_LOG_FORMAT``).

It refuses to let a secret or a flood out: every line is redacted and cut here, whoever wrote it,
and ``once_per_s`` is for warnings that a broken peer would otherwise repeat at every request.
Redaction knows shapes (bearer tokens, API keys, passwords in URLs) and the values it was told
(``hide``); it is the last net, not a licence to log what is secret.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

from baton.errors import SettingsError

TEXT_MAX_CHARS = 8192
"""Of a message or a traceback: more is cut. One line of a log must not fill a disk."""

ACCESS_LOGGER = "baton.router.access"
"""One line a request; silent unless asked for, since each costs as much as a small request."""

REDACTED = "[redacted]"

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_MARGIN_CHARS = 1024
"""Read beyond the cut, so that a secret that lies across it is seen whole."""


class LogContext(msgspec.Struct, frozen=True):
    """Whose work the current task does; stands in every JSON line that the task logs.

    Attributes:
        request_id: ours.
        tenant: its name, never its key.
        trace_id: 32 hex digits.
        profile_version: of the profile that the request is served under.
    """

    request_id: str | None = None
    tenant: str | None = None
    trace_id: str | None = None
    profile_version: str | None = None


log_context: ContextVar[LogContext | None] = ContextVar("baton_log_context", default=None)
"""Set once per request, in the request's own task."""

process_context: dict[str, str] = {}
"""What JSON lines bear that are about no request, such as the active profile's version."""


def configure_logging(level: str, form: str = "text", *, access: bool = False) -> None:
    """Sets the root logger up; to be called once, by an entry point.

    Args:
        level: debug, info, warning or error.
        form: ``text`` or ``json``.
        access: whether the router writes a line per request, at info.

    Raises:
        SettingsError: the level or the form has no meaning.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise SettingsError(
            f"unknown log level {level!r}: use debug, info, warning or error (BATON_LOG_LEVEL)"
        )
    if form not in _FORMATTERS:
        raise SettingsError(f"unknown log format {form!r}: use text or json (BATON_LOG_FORMAT)")
    handler = _Handler(sys.stderr)
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(level=number, handlers=[handler], force=True)
    # Libraries that narrate their normal work.
    for noisy in ("aiohttp.access", "httpx", "uvicorn.access", "asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
    logging.getLogger(ACCESS_LOGGER).setLevel(number if access else logging.WARNING)


# --- secrets ---

_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # A header or a field by its name, whatever its value looks like.
    (
        re.compile(
            r"((?:proxy-)?authorization|(?:x-)?api[-_]?key|password)"
            r"(['\"]{0,2}\s{0,4}[:=,]\s{0,4}(?:b(?=['\"]))?['\"]?)((?:bearer|basic)\s{1,4})?[^\s'\",;&}\]]+",
            re.IGNORECASE,
        ),
        rf"\1\2\3{REDACTED}",
    ),
    (re.compile(r"(bearer\s{1,4})[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # Keys of ours, and those that clients of OpenAI's API hold.
    (re.compile(r"(?<![A-Za-z0-9])(bt|sk)-[A-Za-z0-9_-]{8,}"), rf"\1-{REDACTED}"),
    # The password of a URL, such as Redis's.
    (re.compile(r"(://[^\s/@:]{0,256}:)[^\s/@]{1,512}@"), rf"\1{REDACTED}@"),
)
_MAY_HOLD_A_SECRET = re.compile(
    r"authorization|api[-_]?key|password|bearer|(?:bt|sk)-|://", re.IGNORECASE
)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code not in (9, 10)}
_hidden: list[str] = []
_HIDDEN_MOST = 16
_HIDDEN_MIN_CHARS = 8


def hide(secret: str) -> None:
    """Never lets this value out in a line of the log; for the tokens a process itself holds.

    At most 16, the oldest is forgotten; values under 8 characters are not taken, since they would
    blacken innocent text.
    """
    if len(secret) >= _HIDDEN_MIN_CHARS and secret not in _hidden:
        _hidden.append(secret)
        del _hidden[:-_HIDDEN_MOST]


def redact(text: str) -> str:
    """``text`` without what looks like a secret, nor any value given to ``hide``."""
    for secret in _hidden:
        if secret in text:
            text = text.replace(secret, REDACTED)
    if _MAY_HOLD_A_SECRET.search(text) is None:
        return text
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def _safe(text: str, *, keep_end: bool = False) -> str:
    """Redacted and at most ``TEXT_MAX_CHARS`` long, with a note of what was cut."""
    length = len(text)
    if not text.isascii():
        # Lone surrogates (undecodable file names and the like) cannot be encoded.
        text = text.encode("utf-8", "backslashreplace").decode()
    if length <= TEXT_MAX_CHARS:
        return redact(text)
    room = TEXT_MAX_CHARS + _MARGIN_CHARS
    if keep_end:
        return f"[{length} characters, cut] " + redact(text[-room:])[-TEXT_MAX_CHARS:]
    return redact(text[:room])[:TEXT_MAX_CHARS] + f" [{length} characters, cut]"


# --- lines ---


class _Handler(logging.StreamHandler[TextIO]):
    """Loses a line that cannot be written, and says so; the standard one would write the message
    and its arguments as they are."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"a log line of {record.name} could not be written\n")


class _TextFormatter(logging.Formatter):
    """For people: time, level, logger, message; a traceback below."""

    def __init__(self) -> None:
        super().__init__(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.msg, record.args = _message(record), None
        # What an earlier handler kept was not made here.
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        # Lines after the first are set in, so that no text can pose as a line of its own.
        message = _safe(record.message).translate(_CONTROLS)
        record.message = message.replace("\n", "\n    ")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return _safe(super().formatException(ei), keep_end=True)


class _JsonFormatter(logging.Formatter):
    """For machines: one object a line.

    ``ts`` (RFC 3339, UTC, milliseconds), ``level``, ``logger``, ``message``; ``request_id``,
    ``tenant``, ``trace_id`` and ``profile_version`` where known (of a request, else
    ``process_context``'s); ``exception``; and what a call
    gave as ``extra={"fields": {...}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _safe(_message(record)),
        }
        context = log_context.get()
        for name in ("request_id", "tenant", "trace_id", "profile_version"):
            value = getattr(record, name, None) or (context and getattr(context, name))
            value = value or process_context.get(name)
            if value:
                line[name] = _safe(str(value))
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            for name, value in fields.items():
                if name not in line and value is not None:
                    line[name] = value if type(value) in _PLAIN else _safe(str(value))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _safe(self.formatException(record.exc_info), keep_end=True)
        if record.stack_info:
            line["stack"] = _safe(self.formatStack(record.stack_info), keep_end=True)
        return msgspec.json.encode(line).decode()


_PLAIN = frozenset({int, float, bool})
_FORMATTERS: dict[str, type[logging.Formatter]] = {"text": _TextFormatter, "json": _JsonFormatter}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        # A format string and arguments that do not fit: a bug, but its line is still worth having.
        return f"{record.msg!s} {record.args!r}"


def _rfc3339(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


# --- floods ---


class Repeats:
    """Lets the first of equal events through and counts the rest, period by period.

    Safe to use from several threads.

    Args:
        period_s: at most one event per key in so long.
        most_keys: keys kept apart; past that the oldest is forgotten.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        period_s: float = 1.0,
        most_keys: int = 256,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period_s = period_s
        self._most = most_keys
        self._now_s = now_s
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}

    def admit(self, key: str) -> int | None:
        """How many events of ``key`` were held back since the last one that was let through;
        None if this one is to be held back too."""
        with self._lock:
            now_s = self._now_s()
            last = self._seen.get(key)
            if last is not None and now_s - last[0] < self._period_s:
                self._seen[key] = (last[0], last[1] + 1)
                return None
            self._seen.pop(key, None)
            if len(self._seen) >= self._most:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = (now_s, 0)
            return 0 if last is None else last[1]


_repeats = Repeats()


def once_per_s(
    log: logging.Logger,
    level: int,
    key: str,
    message: str,
    *args: object,
    exc_info: bool = False,
    repeats: Repeats = _repeats,
) -> None:
    """Logs at most one line a second per logger and ``key``, and says how many were held back."""
    if not log.isEnabledFor(level):
        return
    held_back = repeats.admit(f"{log.name} {key}")
    if held_back is None:
        return
    if held_back:
        message += f" ({held_back} more since the last of these lines)"
    log.log(level, message, *args, exc_info=exc_info, stacklevel=2)
