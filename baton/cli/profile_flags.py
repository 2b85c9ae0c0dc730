"""What people type after ``baton profile switch``, as the request that the admin API takes.

Strict on purpose: a share of ``10`` or a duration of ``60`` can be meant in two ways, and a switch
is no place to guess. A file is checked here first, so that its mistakes are told with its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ProfileError, SettingsError
from profiles import load_profile

PHASES = ("prepare", "shadow", "canary")
"""That can be left out."""

MAX_S = 86_400.0
"""A day, as in ``spec.switch``."""

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)(%?)", re.ASCII)
_PART = r"\d{{1,8}}(?:\.\d{{1,6}})?(?={unit})"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(
    "".join(
        rf"(?:(?P<{name}>{_PART.format(unit=unit)}){unit})?"
        for name, unit in (("h", "h"), ("m", "m(?!s)"), ("s", "s"), ("ms", "ms"))
    ),
    re.ASCII,
)
_FLAGS_OF = {
    "prepare": ("prepare",),
    "canary": ("canary", "hold", "limit", "min_requests"),
}


@dataclass(frozen=True, slots=True)
class SwitchFlags:
    """The flags of ``baton profile switch``, as typed; what is None is the profile's to say."""

    profile: str
    canary: str | None = None
    hold: str | None = None
    prepare: str | None = None
    limit: str | None = None
    min_requests: int | None = None
    skip: Sequence[str] = ()
    check: bool = False


def request_of(flags: SwitchFlags) -> dict[str, Any]:
    """The body of ``POST /admin/switch``.

    Raises:
        SettingsError: a flag cannot be understood, or two contradict each other.
        ProfileError: the file cannot be read, or is not a sound profile.
    """
    skip = _skipped(flags.skip)
    for phase in skip:
        for name in _FLAGS_OF.get(phase, ()):
            if getattr(flags, name) is not None:
                flag = name.replace("_", "-")
                raise SettingsError(
                    f"--{flag} is about the phase {phase}, which --skip leaves out: "
                    "give one of the two"
                )
    terms: dict[str, Any] = {
        "canary_share": None if flags.canary is None else parse_share(flags.canary, "--canary"),
        "hold_s": _seconds(flags.hold, "--hold"),
        "prepare_s": _seconds(flags.prepare, "--prepare", positive=True),
        "canary_s": _seconds(flags.limit, "--limit", positive=True),
        "min_requests": flags.min_requests,
        "skip": list(skip) or None,
        "check_only": flags.check or None,
    }
    hold_s, canary_s = terms["hold_s"], terms["canary_s"]
    if hold_s is not None and canary_s is not None and canary_s < hold_s:
        raise SettingsError(
            f"--limit {flags.limit} is less than --hold {flags.hold}: a canary that lasts "
            "at least so long cannot end before"
        )
    return {**_profile(flags.profile), **{k: v for k, v in terms.items() if v is not None}}


def parse_share(text: str, flag: str) -> float:
    """A share of the requests, 0 to 1: ``10%`` or ``0.1``.

    Raises:
        SettingsError: it is neither; ``flag`` is what the message calls it.
    """
    match = _SHARE.fullmatch(text)
    if match is None:
        raise SettingsError(f"{flag} must be a share such as 10% or 0.1 (got {_shown(text)})")
    number, percent = float(match[1]), bool(match[2])
    if not percent and number >= 1 and "." not in match[1]:
        other = "100%" if number == 1 else "a fraction such as 0.1"
        raise SettingsError(f"{flag} {text} can be meant in two ways: write {text}% or {other}")
    if number > (100 if percent else 1):
        raise SettingsError(f"{flag} must be at most 100% (got {text})")
    return number / 100 if percent else number


def parse_duration(text: str, flag: str, *, positive: bool = False) -> float:
    """Seconds of ``60s``, ``2m``, ``1m30s``, ``500ms``, ``1.5h``; a day at most.

    Raises:
        SettingsError: it is no such thing; ``flag`` is what the message calls it.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        unit = "; say the unit" if re.fullmatch(r"[0-9.]+", text) else ""
        raise SettingsError(
            f"{flag} must be a duration such as 60s, 2m, 1m30s or 500ms{unit} (got {_shown(text)})"
        )
    seconds = sum(float(value) * _UNITS[unit] for unit, value in match.groupdict("0").items())
    if seconds > MAX_S:
        raise SettingsError(f"{flag} must be at most a day (got {text})")
    if positive and seconds == 0:
        raise SettingsError(f"{flag} must be more than nothing (got {text})")
    return seconds


def means_file(name: str) -> bool:
    """Whether a file is meant, as everywhere: by a slash, or by .yaml or .yml at the end."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def _seconds(text: str | None, flag: str, *, positive: bool = False) -> float | None:
    return None if text is None else parse_duration(text, flag, positive=positive)


def _skipped(given: Sequence[str]) -> tuple[str, ...]:
    wanted = set(_words(given))
    if strange := sorted(wanted - set(PHASES)):
        raise SettingsError(f"--skip takes {', '.join(PHASES)} (got {_shown(strange[0])})")
    return tuple(phase for phase in PHASES if phase in wanted)


def _words(given: Sequence[str]) -> Iterator[str]:
    for text in given:
        yield from (word.strip() for word in text.split(","))


def _profile(name: str) -> dict[str, str]:
    if not means_file(name):
        return {"profile": name}
    path = Path(name).expanduser()
    load_profile(path)
    try:
        return {"text": path.read_text("utf-8"), "origin": name}
    except (OSError, ValueError) as error:
        raise ProfileError([f"{name}: cannot be read: {error}"]) from error


def _shown(text: str) -> str:
    return repr(text[:40])
