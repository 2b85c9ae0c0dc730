"""Trace files of four formats, read to rows: when, how long the prompt, how long the answer.

Everything that can be wrong with a file is found here, before anything is sent, and said with
file, line and what was expected. Times are kept in whole nanoseconds: a date as a float of
seconds since 1970 has lost the last digits of a trace of ten requests per millisecond.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from baton.errors import WorkloadError
from benchmarks.records import RequestRecord
from benchmarks.workloads.distributions import MAX_TOKENS
from profiles.document import show

BLOCK_TOKENS = 512
"""Of a Mooncake trace: tokens that one hash stands for."""

MAX_ROWS = 5_000_000
MAX_LINE_BYTES = 1024 * 1024
_OUT_OF_ORDER_NS = 60 * 1_000_000_000

_UNITS_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000}
_MAX_NS = 2**62
_DATE = re.compile(
    r"(\d{4}-\d{2}-\d{2})[ T](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:(Z)|([+-])(\d{2}):?(\d{2}))?"
)


@dataclass(slots=True)
class Row:
    """One recorded request; ``time_ns`` counts from wherever the trace does.

    ``output_tokens`` is None where the answer's length is left to the model. ``hashes`` name the
    prompt's blocks of 512 tokens; the last one is the remainder.
    """

    line: int
    time_ns: int
    prompt_tokens: int
    output_tokens: int | None
    hashes: tuple[int, ...] = ()
    class_name: str | None = None
    model: str | None = None
    tenant: str | None = None
    priority: int | None = None


@dataclass(slots=True)
class Trace:
    """A file's rows in their order, the hash of its bytes, and the rows that are no requests, as
    ``(time_ns, reason)``. ``zero_ns`` is the trace's second 0 on the clock of its rows."""

    rows: list[Row] = field(default_factory=list)
    unusable: list[tuple[int, str]] = field(default_factory=list)
    sha256: str = ""
    zero_ns: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a trace that is wanted, in nanoseconds of the trace: from ``start_ns`` to before
    ``end_ns``, or to its end."""

    start_ns: int = 0
    end_ns: int | None = None


_WHOLE = Part()


class _Broken(Exception):
    """What is wrong with a line."""


_Parser = Callable[[str], Row | tuple[int, str]]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class _Window:
    """Takes the rows of a part, as they come. Second 0 is the first row's time where the format
    has no other; the rows of a whole trace may come in any order."""

    def __init__(self, trace: Trace, part: Part, *, zero_at_first: bool) -> None:
        self._trace = trace
        self._part = part
        self._open = zero_at_first
        self._seen = self._left_out = False

    def take(self, row: Row | tuple[int, str]) -> bool:
        """Whether to go on reading."""
        trace = self._trace
        time_ns = row.time_ns if isinstance(row, Row) else row[0]
        if self._open and (not self._seen or time_ns < trace.zero_ns):
            if self._left_out:
                raise _Broken(
                    "is earlier than the first row; a file of which start_s or duration_s takes a "
                    "part must be in order of time"
                )
            trace.zero_ns = time_ns
        self._seen = True
        since_ns = time_ns - trace.zero_ns
        if since_ns < self._part.start_ns:
            self._left_out = True
            return True
        if isinstance(row, Row):
            trace.rows.append(row)
        else:
            trace.unusable.append(row)
        if len(trace.rows) + len(trace.unusable) > MAX_ROWS:
            raise _Broken(f"has more than {MAX_ROWS} rows; take a part with start_s and duration_s")
        end_ns = self._part.end_ns
        # The one row beyond says that the trace goes on.
        return end_ns is None or since_ns <= end_ns + _OUT_OF_ORDER_NS


def read_trace(
    path: Path, *, form: str, unit: str | None, part: Part = _WHOLE, zero_at_first: bool = True
) -> Trace:
    """Reads a trace file, or a part of it; ``form`` and ``unit`` as in a workload's ``trace``.

    A published trace may have tens of millions of rows. Of a part, rows before it are not kept, and
    reading ends a minute of the trace after it: a row that comes later than that is not found. The
    hash is that of the whole file.

    Args:
        zero_at_first: whether second 0 is the first row's time, or the format's own.

    Raises:
        WorkloadError: it cannot be read, or a line is not what the format says.
    """
    trace = Trace()
    window = _Window(trace, part, zero_at_first=zero_at_first)
    digest = hashlib.sha256()
    parse: _Parser | None = None if form in _CSV else _json_parser(form, unit)
    number = 0
    try:
        if not path.is_file():
            # A pipe or device could keep the reader waiting for ever.
            raise WorkloadError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                digest.update(raw)
                text = _text(raw, first=number == 1)
                if not text:
                    continue
                if parse is None:
                    parse = _csv_parser(form, unit, text)
                    continue
                row = parse(text)
                if isinstance(row, Row):
                    row.line = number
                if not window.take(row):
                    break
            while block := file.read(MAX_LINE_BYTES):
                digest.update(block)
    except _Broken as error:
        raise WorkloadError(f"{path}:{number}: {error}") from error.__cause__
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not trace.rows:
        where = f" from {part.start_ns / 1e9:g} s on" if part.start_ns else ""
        raise WorkloadError(f"{path}: holds no requests{where}; expected rows of format {form}")
    trace.sha256 = digest.hexdigest()
    return trace


def _text(raw: bytes, *, first: bool) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise _Broken(f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise _Broken("is not UTF-8 text") from error


# CSV ------------------------------------------------------------------------------------------

_CSV = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}


def _csv_parser(form: str, unit: str | None, header: str) -> _Parser:
    names = [name.strip() for name in _cells(header)]
    wanted = _CSV[form]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise _Broken(
            f"expected a header with the columns {', '.join(wanted)}; {missing[0]} is not there "
            f"(got {show(header)})"
        )
    places = [names.index(name) for name in wanted]
    unit_ns = _UNITS_NS[unit or "s"]

    def parse(text: str) -> Row | tuple[int, str]:
        cells = _cells(text)
        if len(cells) != len(names):
            raise _Broken(f"expected {len(names)} columns as in the header (got {len(cells)})")
        when, prompt, output = (cells[place].strip() for place in places)
        time_ns = _date_ns(when) if form == "azure" else _ns(when, unit_ns, wanted[0])
        tokens = _whole(prompt, wanted[1]), _whole(output, wanted[2])
        failed = "failed" if form == "burstgpt" else "empty"
        return _usable(Row(0, time_ns, *tokens), failed)

    return parse


def _cells(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader((text,), strict=True))
    except csv.Error as error:
        raise _Broken(f"is not valid CSV: {error}") from error


def _whole(text: str, name: str) -> int:
    # Some tools write whole numbers as 472.0.
    if not re.fullmatch(r"\d{1,9}(\.0{1,6})?", text, re.ASCII):
        raise _Broken(f"{name}: expected a whole number of tokens (got {show(text)})")
    return _bounded(int(text.partition(".")[0]), name)


def _bounded(tokens: int, name: str) -> int:
    if not 0 <= tokens <= MAX_TOKENS:
        raise _Broken(f"{name}: must be from 0 to {MAX_TOKENS} (got {tokens})")
    return tokens


def _ns(value: str | float, unit_ns: int, name: str) -> int:
    """A time in a unit to nanoseconds; whole numbers without rounding."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        value = int(value)
    try:
        if isinstance(value, int):
            time_ns = value * unit_ns
        else:
            number = float(value)
            whole = math.floor(number)
            time_ns = whole * unit_ns + round((number - whole) * unit_ns)
    except (ValueError, OverflowError) as error:
        raise _Broken(f"{name}: expected a number (got {show(value)})") from error
    if not 0 <= time_ns < _MAX_NS:
        raise _Broken(f"{name}: is negative or too large for a time (got {show(value)})")
    return time_ns


def _date_ns(text: str) -> int:
    """Nanoseconds since year 1, in UTC, with every digit of the fraction."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise _Broken(
            "TIMESTAMP: expected a date and time such as 2023-11-16 18:15:46.6805900 "
            f"(got {show(text)})"
        )
    day, hour, minute, second, fraction, _, sign, zone_hours, zone_minutes = match.groups()
    try:
        days = datetime.date.fromisoformat(day).toordinal()
        datetime.time(int(hour), int(minute), int(second))
    except ValueError as error:
        raise _Broken(f"TIMESTAMP: there is no such date or time (got {show(text)})") from error
    seconds = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second)
    if sign is not None:
        offset_s = (int(zone_hours) * 60 + int(zone_minutes)) * 60
        seconds += -offset_s if sign == "+" else offset_s
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


# JSON lines -----------------------------------------------------------------------------------


class _Mooncake(msgspec.Struct):
    timestamp: int | float
    input_length: int
    output_length: int
    hash_ids: list[int]


class _Request(msgspec.Struct, forbid_unknown_fields=True, rename={"class_name": "class"}):
    at_s: int | float
    prompt_tokens: int
    output_tokens: int | None
    class_name: str | None = None
    model: str | None = None
    tenant: str | None = None
    priority: int | None = None


class _Kind(msgspec.Struct):
    """Tells the two shapes of format ``requests`` apart."""

    at_s: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    scheduled_s: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _json_parser(form: str, unit: str | None) -> _Parser:
    if form == "mooncake":
        unit_ns = _UNITS_NS[unit or "ms"]
        return lambda text: _mooncake(text, unit_ns)
    unit_ns = _UNITS_NS[unit or "s"]
    return lambda text: _request(text, unit_ns)


def _decoded(text: str, kind: type[_Struct]) -> _Struct:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        what = re.sub(r" - at `\$\.?([^`]*)`$", r" in \1", str(error)).replace("`", "")
        raise _Broken(what[:1].lower() + what[1:]) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Broken(f"expected a JSON object (got {show(text)})") from error


def _mooncake(text: str, unit_ns: int) -> Row | tuple[int, str]:
    raw = _decoded(text, _Mooncake)
    prompt = _bounded(raw.input_length, "input_length")
    output = _bounded(raw.output_length, "output_length")
    blocks = -(-prompt // BLOCK_TOKENS)
    if len(raw.hash_ids) != blocks:
        raise _Broken(
            f"hash_ids: expected {blocks} of them, one per {BLOCK_TOKENS} tokens of input_length "
            f"{prompt} (got {len(raw.hash_ids)})"
        )
    time_ns = _ns(raw.timestamp, unit_ns, "timestamp")
    return _usable(Row(0, time_ns, prompt, output, hashes=tuple(raw.hash_ids)), "empty")


def _request(text: str, unit_ns: int) -> Row | tuple[int, str]:
    kind = _decoded(text, _Kind)
    if kind.scheduled_s is not msgspec.UNSET and kind.at_s is msgspec.UNSET:
        return _recorded(_decoded(text, RequestRecord), unit_ns)
    raw = _decoded(text, _Request)
    row = Row(
        line=0,
        time_ns=_ns(raw.at_s, unit_ns, "at_s"),
        prompt_tokens=_bounded(raw.prompt_tokens, "prompt_tokens"),
        output_tokens=_bounded_or_none(raw.output_tokens, "output_tokens"),
        class_name=_label(raw.class_name, "class"),
        model=_label(raw.model, "model"),
        tenant=_label(raw.tenant, "tenant"),
        priority=raw.priority,
    )
    return _usable(row, "empty")


def _recorded(raw: RequestRecord, unit_ns: int) -> Row | tuple[int, str]:
    """A line of a run's ``requests.jsonl``, with the lengths that the server counted; where it
    counted none, those that were planned. The model is the new run's."""
    prompt = raw.planned_prompt_tokens if raw.prompt_tokens is None else raw.prompt_tokens
    output = raw.planned_output_tokens if raw.error else raw.output_tokens
    row = Row(
        line=0,
        time_ns=_ns(raw.scheduled_s, unit_ns, "scheduled_s"),
        prompt_tokens=_bounded(prompt, "prompt_tokens"),
        output_tokens=_bounded_or_none(
            raw.planned_output_tokens if output is None else output, "output_tokens"
        ),
        class_name=_label(raw.class_name, "class_name"),
        tenant=_label(raw.tenant, "tenant"),
        priority=raw.priority,
    )
    return _usable(row, "empty")


def _bounded_or_none(tokens: int | None, name: str) -> int | None:
    return None if tokens is None else _bounded(tokens, name)


def _label(text: str | None, name: str) -> str | None:
    if text is not None and (not text or len(text) > 200 or not text.isprintable()):
        raise _Broken(f"{name}: expected 1 to 200 printable characters (got {show(text)})")
    return text


def _usable(row: Row, why_no_answer: str) -> Row | tuple[int, str]:
    """The row, or why it cannot be sent: an empty prompt, or an answer of no tokens."""
    if row.prompt_tokens == 0:
        return row.time_ns, "empty"
    if row.output_tokens == 0:
        return row.time_ns, why_no_answer
    return row
