"""What a log line may hold, in which form, and how often."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from baton import telemetry
from baton.clock import VirtualClock
from baton.errors import SettingsError
from baton.telemetry import (
    ACCESS_LOGGER,
    TEXT_MAX_CHARS,
    LogContext,
    Repeats,
    configure_logging,
    hide,
    log_context,
    once_per_s,
    redact,
)

log = logging.getLogger("baton.test_telemetry")

SECRET = "Zx81-spectrum_48k"


class Stderr:
    """What was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stderr]:
    """Catches the log, and puts logging back as it was."""
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in ("urllib3", "httpx", "asyncio", ACCESS_LOGGER)]
    before = [(logger, logger.level) for logger in (root, *loggers)]
    handlers = root.handlers[:]
    monkeypatch.setattr(telemetry, "_hidden", [])
    yield Stderr(capsys)
    root.handlers = handlers
    for logger, level in before:
        logger.setLevel(level)


def lines(stderr: Stderr) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stderr.getvalue().splitlines()]


# --- settings ---


@pytest.mark.parametrize(
    ("level", "form", "variable"),
    [("loud", "text", "BATON_LOG_LEVEL"), ("info", "xml", "BATON_LOG_FORMAT")],
)
def test_settings_without_a_meaning_say_what_to_use(level: str, form: str, variable: str) -> None:
    """The message names the variable."""
    with pytest.raises(SettingsError, match=variable):
        configure_logging(level, form)


@pytest.mark.usefixtures("stderr")
def test_libraries_that_narrate_are_silenced() -> None:
    """Below warning; and the access log is silent unless asked for."""
    configure_logging("info")
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    assert not logging.getLogger(ACCESS_LOGGER).isEnabledFor(logging.INFO)
    configure_logging("info", access=True)
    assert logging.getLogger(ACCESS_LOGGER).isEnabledFor(logging.INFO)


# --- JSON ---


def test_a_json_line_has_time_level_logger_and_message(stderr: Stderr) -> None:
    """One object a line, the time in UTC with milliseconds."""
    configure_logging("info", "json")
    record = log.makeRecord(log.name, logging.WARNING, "", 0, "two\nlines %d", (7,), None)
    record.created = 1_700_000_000.0625
    log.handle(record)
    assert lines(stderr) == [
        {
            "ts": "2023-11-14T22:13:20.062Z",
            "level": "warning",
            "logger": "baton.test_telemetry",
            "message": "two\nlines 7",
        }
    ]


def test_a_json_line_says_whose_work_it_was(stderr: Stderr) -> None:
    """From the task's context, or from the call where it knows better."""
    configure_logging("info", "json")
    token = log_context.set(LogContext(request_id="r-1", tenant="acme", trace_id="ab" * 16))
    try:
        log.info("one")
        log.info("two", extra={"request_id": "r-2", "fields": {"worker": "p-0", "n": 3}})
    finally:
        log_context.reset(token)
    log.info("three")
    one, two, three = lines(stderr)
    assert (one["request_id"], one["tenant"], one["trace_id"]) == ("r-1", "acme", "ab" * 16)
    assert (two["request_id"], two["worker"], two["n"]) == ("r-2", "p-0", 3)
    assert "request_id" not in three


def test_fields_cannot_stand_for_what_the_line_says_itself(stderr: Stderr) -> None:
    """A field named like one of the line's own is left out; odd values become text."""
    configure_logging("info", "json")
    log.info("real", extra={"fields": {"message": "forged", "what": ["a"], "none": None}})
    (line,) = lines(stderr)
    assert line["message"] == "real"
    assert line["what"] == "['a']"
    assert "none" not in line


def test_an_exception_is_part_of_its_line(stderr: Stderr) -> None:
    """With its traceback, redacted as everything is."""
    configure_logging("info", "json")
    try:
        raise RuntimeError("refused: Authorization: Bearer abcdefgh12345678")
    except RuntimeError:
        log.exception("failed")
    (line,) = lines(stderr)
    assert "RuntimeError: refused" in line["exception"]
    assert "Traceback" in line["exception"]
    assert "abcdefgh" not in line["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_whose_arguments_do_not_fit_is_written_all_the_same(
    form: str, stderr: Stderr
) -> None:
    """A bug in a message must not lose the message, nor let a secret in it out."""
    configure_logging("info", form)
    log.info("%d tokens", f"bt-{SECRET}")
    found = stderr.getvalue()
    assert f"%d tokens ('bt-{telemetry.REDACTED}',)" in found
    assert SECRET not in found


@pytest.mark.parametrize("form", ["text", "json"])
def test_text_that_cannot_be_encoded_is_spelled_out(form: str, stderr: Stderr) -> None:
    """A file name that is no UTF-8 must not lose the line."""
    configure_logging("info", form)
    log.info("no such file: %s, ü", "a\udcff")
    assert "no such file: a\\udcff, ü" in stderr.getvalue().replace("\\\\", "\\")


def test_a_line_that_cannot_be_written_is_lost_and_nothing_of_it_gets_out(stderr: Stderr) -> None:
    """Logging's own way would print the message and its arguments as they are."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError(SECRET)

    configure_logging("info", "json")
    log.info("%s and %s", Broken(), SECRET)
    assert stderr.getvalue() == "a log line of baton.test_telemetry could not be written\n"


# --- text ---


def test_text_is_for_people(stderr: Stderr) -> None:
    """Time, level, logger, message."""
    configure_logging("info")
    log.info("hello %s", "you")
    line = stderr.getvalue()
    assert line.endswith(" INFO    baton.test_telemetry: hello you\n")
    assert line[:10].count("-") == 2


def test_no_text_can_pose_as_a_line_of_its_own(stderr: Stderr) -> None:
    """Lines after the first are set in, and control characters are spelled out."""
    configure_logging("info")
    log.info("id %s", "x\n2026-01-01T00:00:00.000 ERROR   baton: forged\x1b[31m\r")
    first, second = stderr.getvalue().splitlines()
    assert first.endswith(": id x")
    assert second == "    2026-01-01T00:00:00.000 ERROR   baton: forged\\x1b[31m\\x0d"


# --- secrets ---


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: {SECRET}",
        f"Proxy-Authorization: Basic {SECRET}",
        f"{{'authorization': 'Bearer {SECRET}', 'a': 1}}",
        f"(b'authorization', b'Bearer {SECRET}')",
        f'{{"api_key": "{SECRET}"}}',
        f"x-api-key: {SECRET}",
        f"apikey={SECRET}",
        f"GET /v1/models?api-key={SECRET}&x=1",
        f"token was bearer {SECRET}",
        f"key bt-{SECRET} is not known",
        f"key=sk-{SECRET}",
        f"(sk-proj-{SECRET})",
        f"cannot reach redis://:{SECRET}@redis:6379/0",
        f"cannot reach rediss://user:{SECRET}@redis:6379/0",
        f"password={SECRET}",
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_do_not_get_out(text: str, form: str, stderr: Stderr) -> None:
    """In the message, its arguments, a field or an exception, in both forms."""
    configure_logging("info", form)
    log.info("%s", text, extra={"fields": {"what": text}})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception(text)
    found = stderr.getvalue()
    assert SECRET not in found
    assert telemetry.REDACTED in found


@pytest.mark.parametrize(
    "text",
    [
        "request baton-0123456789abcdef to http://127.0.0.1:8100/v1/completions failed",
        "task-12345678901234 and risk-12345678901234 are no keys",
        "the authorization header is missing",
        "worker http://user@host:8100/path is gone",
        "20000 tokens a minute",
    ],
)
def test_innocent_text_stays(text: str) -> None:
    """Request ids, addresses and words that only look alike."""
    assert redact(text) == text


def test_a_value_that_was_told_is_hidden_wherever_it_stands(stderr: Stderr) -> None:
    """The cluster token has no shape of its own."""
    hide("a1b2c3d4e5f6")
    hide("short")
    configure_logging("info")
    log.info("worker said a1b2c3d4e5f6!, in short")
    assert stderr.getvalue().endswith(f"worker said {telemetry.REDACTED}!, in short\n")


def test_what_is_hidden_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen values; the oldest goes."""
    monkeypatch.setattr(telemetry, "_hidden", [])
    for number in range(20):
        hide(f"secret-{number:04}")
    assert redact("secret-0019") == telemetry.REDACTED
    assert redact("secret-0000") == "secret-0000"
    assert len(telemetry._hidden) == 16


# --- floods ---


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_bomb_is_cut(form: str, stderr: Stderr) -> None:
    """A megabyte becomes 8 KiB and a note; a traceback keeps its end, where the error stands."""
    configure_logging("info", form)
    try:
        raise ValueError("y" * 1_000_000 + " the end")
    except ValueError:
        log.exception("x" * 1_000_000)
    found = stderr.getvalue()
    assert "[1000000 characters, cut]" in found
    assert "the end" in found
    assert len(found) < 2 * TEXT_MAX_CHARS + 500


@pytest.mark.parametrize("before", range(4, 48, 3))
def test_a_secret_across_the_cut_does_not_get_out(before: int, stderr: Stderr) -> None:
    """Half a key would be half a secret, wherever the cut lies in it."""
    configure_logging("info")
    log.info("%s", "x" * (TEXT_MAX_CHARS - before) + " bt-" + "k" * 40 + " " + "z" * 100_000)
    assert "bt-k" not in stderr.getvalue()


def test_equal_events_pass_once_a_period_and_are_counted() -> None:
    """Per key; the next that passes says how many were held back."""
    clock = VirtualClock()
    repeats = Repeats(period_s=1.0, now_s=clock.monotonic_s)
    assert [repeats.admit("a") for _ in range(5)] == [0, None, None, None, None]
    assert repeats.admit("b") == 0
    clock.advance(1.0)
    assert repeats.admit("a") == 4
    assert repeats.admit("a") is None
    clock.advance(5.0)
    assert repeats.admit("a") == 1
    clock.advance(5.0)
    assert repeats.admit("a") == 0


def test_keys_of_repeats_are_bounded() -> None:
    """The key that passed longest ago is forgotten, and may pass again."""
    repeats = Repeats(most_keys=3, now_s=VirtualClock().monotonic_s)
    for key in "abcd":
        assert repeats.admit(key) == 0
    assert repeats.admit("d") is None
    assert repeats.admit("a") == 0
    assert len(repeats._seen) == 3


def test_a_repeated_warning_says_how_often_it_would_have_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line a second, and no line at all below the level."""
    clock = VirtualClock()
    repeats = Repeats(now_s=clock.monotonic_s)
    with caplog.at_level(logging.WARNING, logger=log.name):
        for _ in range(3):
            once_per_s(log, logging.WARNING, "gone", "%s is gone", "p-0", repeats=repeats)
            once_per_s(log, logging.INFO, "quiet", "nobody hears this", repeats=repeats)
        clock.advance(1.0)
        once_per_s(log, logging.WARNING, "gone", "%s is gone", "p-0", repeats=repeats)
    assert [record.getMessage() for record in caplog.records] == [
        "p-0 is gone",
        "p-0 is gone (2 more since the last of these lines)",
    ]
