"""What people type after ``baton profile switch``: what is taken, what is refused, what is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.cli.profile_flags import SwitchFlags, parse_duration, parse_share, request_of
from baton.errors import ProfileError, SettingsError


@pytest.mark.parametrize(
    ("text", "share"),
    [("10%", 0.1), ("0.1", 0.1), ("2.5%", 0.025), ("100%", 1), ("1.0", 1), ("0", 0), ("0%", 0)],
)
def test_shares(text: str, share: float) -> None:
    """Per cent with its sign, or a fraction."""
    assert parse_share(text, "--canary") == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10", "write 10% or a fraction"),
        ("1", "write 1% or 100%"),
        ("101%", "at most 100%"),
        ("1.5", "at most 100%"),
        *((text, "such as 10% or 0.1") for text in ("", "-1", "ten", "nan", "10 %", ".5", "1e-1")),
        ("٣%", "such as 10% or 0.1"),
    ],
)
def test_shares_that_are_none(text: str, says: str) -> None:
    """What can be meant in two ways is not guessed; the flag is named."""
    with pytest.raises(SettingsError, match="--canary") as caught:
        parse_share(text, "--canary")
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60), ("2m", 120), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("24h", 86_400),
        ("1h1m1s1ms", 3661.001), ("1m500ms", 60.5), ("0s", 0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    """Numbers with units, the largest first."""
    assert parse_duration(text, "--hold") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("60", "say the unit"),
        ("25h", "at most a day"),
        *((text, "such as 60s") for text in ("", "m", "1s1m", "1m1m", "2 m", "-1s", "1e3s", "1d")),
    ],
)
def test_durations_that_are_none(text: str, says: str) -> None:
    """A number without a unit, units out of order or twice, anything else."""
    with pytest.raises(SettingsError, match="--hold") as caught:
        parse_duration(text, "--hold")
    assert says in caught.value.message


def test_a_wait_of_nothing() -> None:
    """Is refused where it would be a limit."""
    with pytest.raises(SettingsError, match="--prepare must be more than nothing"):
        request_of(SwitchFlags("standard", prepare="0s"))


def test_the_request() -> None:
    """Only what was said is sent: the rest is the profile's to say."""
    assert request_of(SwitchFlags("standard")) == {"profile": "standard"}
    whole = SwitchFlags(
        "standard", canary="10%", hold="60s", limit="5m", min_requests=7,
        skip=("shadow,prepare", "shadow"), check=True,
    )  # fmt: skip
    assert request_of(whole) == {
        "profile": "standard",
        "canary_share": 0.1,
        "hold_s": 60,
        "canary_s": 300,
        "min_requests": 7,
        "skip": ["prepare", "shadow"],
        "check_only": True,
    }
    assert request_of(SwitchFlags("standard", prepare="2m"))["prepare_s"] == 120


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (SwitchFlags("x", skip=("canary",), hold="60s"), "--hold is about the phase canary"),
        (SwitchFlags("x", skip=("canary",), min_requests=3), "--min-requests is about"),
        (SwitchFlags("x", skip=("prepare",), prepare="60s"), "--prepare is about"),
        (SwitchFlags("x", skip=("prepare", "warmup")), "prepare, shadow, canary (got 'warmup')"),
        (SwitchFlags("x", hold="2m", limit="60s"), "--limit 60s is less than --hold 2m"),
    ],
)
def test_flags_that_contradict_each_other(flags: SwitchFlags, says: str) -> None:
    """Nobody is asked."""
    with pytest.raises(SettingsError) as caught:
        request_of(flags)
    assert says in caught.value.message


def test_a_file_is_checked_and_sent(tmp_path: Path) -> None:
    """As text, with its name; a wrong one is told with its lines, and nothing is sent."""
    file = tmp_path / "mine.yaml"
    file.write_text("apiVersion: baton/v1\nkind: ServingProfile\n")
    with pytest.raises(ProfileError) as caught:
        request_of(SwitchFlags(str(file)))
    assert f"{file}:1: metadata" in caught.value.message
    file.write_text(GOOD)
    assert request_of(SwitchFlags(str(file))) == {"text": GOOD, "origin": str(file)}
    with pytest.raises(ProfileError, match="no such file"):
        request_of(SwitchFlags("./standard"))


GOOD = """apiVersion: baton/v1
kind: ServingProfile
metadata: {name: mine}
spec:
  mode: standard
  model: {source: demo}
  pools:
    standard: {accelerator: cpu, replicas: 1}
"""
