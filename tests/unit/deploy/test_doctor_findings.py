"""How checks are run: side by side, bounded, and never at the cost of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from baton.errors import KubernetesUnavailable, SettingsError
from deploy.doctor import Check, Level, chosen, examine, worst
from deploy.doctor.findings import NotSeen, Said, note, ok, problem, warning

Log = list[str]


def check(
    name: str, said: Said | BaseException | None = None, *, alone: bool = False
) -> Check[Log]:
    async def look(log: Log) -> Iterable[Said]:
        log.append(f"+{name}")
        await asyncio.sleep(0)
        log.append(f"-{name}")
        if isinstance(said, BaseException):
            raise said
        return [] if said is None else [said]

    return Check(name, f"about {name}", look, alone=alone)


async def test_order_and_levels() -> None:
    """Findings come in the order of the checks, whoever was first; one that measures runs alone."""
    log: Log = []
    checks = [
        check("measure", ok("fast"), alone=True),
        check("a", problem("broken", "mend it")),
        check("b"),
        check("c", note("by the way")),
    ]
    found = await examine(checks, log)
    assert [(f.check, f.level, f.todo) for f in found] == [
        ("measure", Level.OK, ""),
        ("a", Level.PROBLEM, "mend it"),
        ("c", Level.NOTE, ""),
    ]
    assert log[:3] == ["+a", "+b", "+c"]
    assert log[-2:] == ["+measure", "-measure"]
    assert worst(found) is Level.PROBLEM
    assert worst([]) is Level.OK


@pytest.mark.parametrize(
    ("error", "level", "seen"),
    [
        (NotSeen("we may not", "ask"), Level.NOTE, "not checked: we may not"),
        (KubernetesUnavailable("no answer"), Level.WARNING, "not checked: no answer"),
        (ValueError("odd"), Level.WARNING, "not checked: ValueError: odd"),
    ],
)
async def test_a_check_that_fails(error: Exception, level: Level, seen: str) -> None:
    """It is a finding of its own, and the others go on."""
    found = await examine([check("a", error), check("b", ok("sound"))], [])
    assert [(f.check, f.level) for f in found] == [("a", level), ("b", Level.OK)]
    assert found[0].seen == seen


async def test_a_check_that_hangs() -> None:
    """It is given up after its limit."""

    async def hang(_: Log) -> Iterable[Said]:
        await asyncio.Event().wait()
        return []

    found = await examine([Check("a", "", hang, limit_s=0.001), check("b", ok("sound"))], [])
    assert found[0].level is Level.WARNING
    assert "--only a" in found[0].todo
    assert found[1].level is Level.OK


async def test_progress() -> None:
    """Whoever watches is told of each beginning and end, of a check that fails too."""
    log: Log = []
    await examine(
        [check("a", ValueError("odd"))],
        [],
        on_start=lambda c: log.append(f"start {c.name}"),
        on_end=lambda c: log.append(f"end {c.name}"),
    )
    assert log == ["start a", "end a"]


def test_chosen() -> None:
    """Checks are picked by name; an unknown name is an error that lists them, as is an empty
    choice."""
    checks = [check("a"), check("b"), check("c")]
    assert [c.name for c in chosen(checks, ["b", "a"], [])] == ["a", "b"]
    assert [c.name for c in chosen(checks, [], ["b"])] == ["a", "c"]
    with pytest.raises(SettingsError, match="'d'; there are a, b, c"):
        chosen(checks, ["d"], [])
    with pytest.raises(SettingsError, match="no check is left"):
        chosen(checks, ["a"], ["a"])


def test_every_finding_says_what_to_do() -> None:
    """Warnings and problems cannot be made without it."""
    for make in (warning, problem):
        with pytest.raises(TypeError):
            make("seen")  # type: ignore[call-arg]
