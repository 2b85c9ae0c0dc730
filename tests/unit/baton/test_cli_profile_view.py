"""Switches of profiles in words: each phase, each end, and what is told line by line."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from baton.cli.profile_answers import (
    Change,
    CheckAnswer,
    Listed,
    Listing,
    RouterView,
    SourceView,
    SwitchAnswer,
)
from baton.cli.profile_follow import (
    FORGOTTEN_S,
    STILL_S,
    Course,
    LostSight,
    Screen,
    following_parts,
)
from baton.cli.profile_status import made_active, status_of
from baton.cli.profile_view import (
    Parts,
    check_parts,
    history_table,
    report_parts,
    shadow_line,
    show_share,
    show_span,
    status_parts,
    switch_parts,
    taken_line,
)
from baton.types import RouterId, Tally
from profiles.switching import Phase, Ref, Report, Shadow, Switch, Terms

OLD, NEW = Ref("disaggregated", "aaaa"), Ref("standard", "bbbb")
TALLIES = {
    "aaaa": Tally(requests=900, errors=9, missed=18, streams=100, ttft_s=42.0),
    "bbbb": Tally(requests=100, errors=0, missed=3, streams=10, ttft_s=3.8),
}
SHADOW = Shadow(
    requests=200,
    changed={"disaggregated -> local": 31},
    refused=2,
    old_ttft_s=0.42,
    new_ttft_s=0.38,
)


def words(parts: Parts) -> list[str]:
    """What is printed, lines without the padding of tables."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def switch(phase: Phase = Phase.PREPARE, **more: Any) -> Switch:
    """One that is on."""
    rest: dict[str, Any] = {"by": "operator", "owner": RouterId("r-1"), **more}
    return Switch(number=7, old=OLD, new=NEW, phase=phase, **rest)


def report(outcome: Phase = Phase.COMMITTED, **more: Any) -> Report:
    """How one ended."""
    rest: dict[str, Any] = {"reason": "all well", "at_s": 1.8e9, "by": "operator", **more}
    return Report(**{"number": 7, "old": OLD, "new": NEW, "outcome": outcome, **rest})


def answer(**more: Any) -> SwitchAnswer:
    """Of a router that serves the old profile."""
    return SwitchAnswer(**{"active": OLD, "revision": 5, "store": "memory", **more})


def router(name: str, version: str = "aaaa", seen: int = 5, **more: Any) -> RouterView:
    """One router."""
    return RouterView(RouterId(name), "node-1", "p", version, seen, **more)


def test_prepare() -> None:
    """What it waits for, for how long it has, and how long it has been seen."""
    waiting = ("pool standard has no ready worker", "pair p-1, d-1 is unchecked")
    lines = words(switch_parts(switch(waiting_for=waiting), 4.7))
    assert lines == [
        "switch 7: disaggregated (aaaa) -> standard (bbbb)",
        "asked by operator",
        "phase prepare: waits for the profile's pools, 60 s at most; seen for 4 s",
        "waits for pool standard has no ready worker",
        "waits for pair p-1, d-1 is unchecked",
    ]
    left_out = switch(terms=Terms(skip=(Phase.PREPARE,)))
    assert "phase prepare: left out" in words(switch_parts(left_out, None))


def test_shadow() -> None:
    """While it lasts, and what it found."""
    assert "phase shadow: decides the last requests anew" in words(
        switch_parts(switch(Phase.SHADOW), None)
    )
    assert shadow_line(SHADOW) == (
        "of the last 200 requests 31 would take another path (disaggregated -> local: 31), 2 would "
        "find no worker; predicted TTFT 0.42 s before, 0.38 s then"
    )
    assert shadow_line(Shadow()) == "no requests to decide anew"


def test_canary() -> None:
    """Share and limits, and both sides with shares of what went wrong; nothing is divided by 0."""
    terms = Terms(share=0.125, hold_s=30, canary_s=300, min_requests=20)
    on = switch(
        Phase.CANARY, terms=terms, tallies=TALLIES, took_s={"prepare": 2.13, "shadow": 0.05}
    )
    lines = words(switch_parts(on, 12))
    assert (
        "phase canary: 12.5 % of the requests, 30 s at least; until 20 were served, 5 min at most; "
        "seen for 12 s"
    ) in lines
    assert "over prepare 2.1 s, shadow 50 ms" in lines
    assert "side profile requests errors rate SLO missed rate mean TTFT" in lines
    assert "old disaggregated 900 9 1 % 18 2 % 0.42 s" in lines
    assert "new standard 100 0 0 % 3 3 % 0.38 s" in lines
    assert "new standard 0 0 0" in words(switch_parts(switch(Phase.CANARY), None))


def test_which_routers_have_taken_it() -> None:
    """By the revision that the phase began with."""
    both = (router("r-1", seen=9), router("r-2", seen=7))
    assert taken_line(both, 7) == "2 of 2 have taken it"
    assert taken_line(both, 8) == "1 of 2 have taken it; not yet: r-2"
    assert taken_line((), 8) == ""


def test_how_it_ended() -> None:
    """The outcome, its reason, the figures; markup in what others wrote is plain text."""
    ended = report(
        Phase.ROLLED_BACK, reason="[b]errors: 9 of 20", tallies=TALLIES, shadow=SHADOW,
        took_s={"prepare": 2.0, "canary": 10.4}, notes=("a worker flips",),
    )  # fmt: skip
    lines = words(report_parts(ended))
    first = "switch 7 rolled back after 12 s: disaggregated (aaaa) -> standard (bbbb)"
    assert lines[:2] == [first, "[b]errors: 9 of 20"]
    assert "note a worker flips" in lines
    assert "new standard 100 0 0 % 3 3 % 0.38 s" in lines
    waited = report(Phase.ROLLED_BACK, waiting_for=("pool decode is empty",))
    assert "missing pool decode is empty" in words(report_parts(waited))
    assert words(report_parts(report()))[0].startswith("switch 7 committed: ")


def test_the_status_of_everything() -> None:
    """Since when, the source with what is wrong there, routers that disagree."""
    source = SourceView("folder /etc/profiles", "standart", "d", ("a.yaml:3: spec.mode: wrong",))
    routers = (router("r-1", asked=True), router("r-2", "bbbb"))
    since = report(old=NEW, new=OLD, number=6)
    lines = words(
        status_parts(
            answer(
                previous=NEW,
                source=source,
                routers=routers,
                switch=switch(),
                last=report(),
                turning=("d-1", "d-2"),
            ),
            since,
        )
    )
    assert lines[0].startswith("active disaggregated (aaaa), since switch 6 (20")
    assert lines[0].endswith(", by operator)")
    assert "previous standard (bbbb)" in lines
    assert "turning d-1, d-2" in lines
    assert any(line.startswith("last switch 7 to standard committed (") for line in lines)
    assert "it wants standart, which is not what is active" in lines
    assert "problem a.yaml:3: spec.mode: wrong" in lines
    assert "phase prepare: waits for the profile's pools, 60 s at most" in lines
    assert "r-1 node-1 p aaaa asked" in lines
    assert "r-2 node-1 p bbbb another profile" in lines
    assert lines[-1] == "the routers do not all serve the same profile"


def test_a_store_that_is_away() -> None:
    """Is told: what is shown may be old."""
    lost = answer(store_lost=True)
    assert "store memory, away: what stands here may be old, revision 5" in words(
        status_parts(lost, None)
    )


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (answer(), 0),
        (answer(source=SourceView("folder /x", "", "d")), 0),
        (answer(source=SourceView("folder /x", "", "d", ("wrong",))), 3),
        (answer(routers=(router("r-1"), router("r-2"))), 0),
        (answer(routers=(router("r-1"), router("r-2", "bbbb"))), 3),
        (answer(store_lost=True), 3),
    ],
)
def test_the_exit_status_of_status(seen: SwitchAnswer, status: int) -> None:
    """Three things are not as they should be."""
    assert status_of(seen) == status


def test_which_switch_made_it_active() -> None:
    """The last one that was committed, unless it was to something else."""
    first, back = report(number=1), report(Phase.ROLLED_BACK, number=2)
    assert made_active(NEW, (first, back)) is first
    assert made_active(OLD, (first, back)) is None
    assert made_active(OLD, ()) is None


def test_the_history() -> None:
    """Newest first."""
    lines = words([history_table((report(number=1), report(Phase.REFUSED, number=2)))])
    assert [line.split()[0] for line in lines] == ["switch", "2", "1"]
    assert "refused" in lines[1]


def test_a_check() -> None:
    """Whether it fits, why not, what would change; long values are cut, lacking ones named."""
    told = CheckAnswer(
        fits=False,
        problems=("pool prefill has no worker",),
        notes=("two workers flip",),
        changes=(Change("spec.mode", "standard", "disaggregated"), Change("spec.x", new="y" * 99)),
        shadow=SHADOW,
    )
    lines = words(check_parts(told))
    assert lines[:2] == ["it does not fit", "pool prefill has no worker"]
    assert "note two workers flip" in lines
    assert 'spec.mode "standard" "disaggregated"' in lines
    assert any(line.startswith("spec.x absent") and line.endswith("...") for line in lines)
    assert words(check_parts(CheckAnswer(fits=True))) == ["it fits"]


def test_profiles_of_a_router() -> None:
    """Where each is from, which is active, what is wrong with the source."""
    from baton.cli.profile import listing_parts

    rows = (Listed("a", "v1", "standard", "One.", "built-in"), Listed("b", active=True))
    lines = words(listing_parts(Listing(rows, SourceView("folder /x", "b", "d", ("wrong",)))))
    assert "a standard v1 built-in One." in lines
    assert "b active" in lines
    assert lines[-2:] == ["source: folder /x, which wants b", "problem: wrong"]


def test_spans_and_shares() -> None:
    """As people say them."""
    spans = [0, 0.05, 0.35, 2, 4.25, 75.2, 150, 300]
    said = ["0 ms", "50 ms", "0.3 s", "2 s", "4.2 s", "75 s", "2 min 30 s", "5 min"]
    assert [show_span(span) for span in spans] == said
    assert [show_share(1, whole) for whole in (0, 1, 3, 10)] == ["", "100 %", "33.3 %", "10 %"]


def test_each_change_is_one_line() -> None:
    """A phase that went by between two questions too; what is waited for when it changes."""
    course = Course(7)
    waiting = ("a worker",)
    seen = [
        answer(switch=switch(beat=1, waiting_for=waiting)),
        answer(switch=switch(beat=2, waiting_for=waiting)),
        answer(
            switch=switch(Phase.CANARY, beat=3, phase_number=2, shadow=SHADOW,
                          took_s={"prepare": 2.0, "shadow": 0.04}),
            revision=8,
        ),
    ]  # fmt: skip
    lines = [course.see(one, 10.0 * second) for second, one in enumerate(seen)]
    assert lines[0] == [
        "switch 7: disaggregated (aaaa) -> standard (bbbb), by operator",
        "prepare: waits for the profile's pools, 60 s at most",
        "waiting: a worker",
    ]
    assert lines[1] == []
    assert lines[2][0] == "prepare: over after 2 s"
    assert lines[2][1].startswith("shadow: over after 40 ms; of the last 200 requests")
    assert lines[2][2].startswith("canary: 10 % of the requests")
    assert (course.phase_since_s, course.phase_revision) == (20.0, 8)
    shown = words(following_parts(answer(switch=seen[2].switch, routers=(router("r-1", seen=7),),
                                         store_lost=True), course, 22.0))  # fmt: skip
    assert "routers: 0 of 1 have taken it; not yet: r-1" in shown
    assert shown[-1].startswith("the router cannot reach its store")


def test_a_switch_that_stands_still() -> None:
    """Is not watched for ever; one that moves is."""
    course = Course(7)
    course.see(answer(switch=switch(beat=1)), 0)
    course.see(answer(switch=switch(beat=2)), 1000)
    course.see(answer(switch=switch(beat=2)), 999 + STILL_S)
    with pytest.raises(LostSight, match="stood still for 60 s"):
        course.see(answer(switch=switch(beat=2)), 1000 + STILL_S)


def test_a_switch_that_nobody_knows() -> None:
    """A router may lag for a while, no longer."""
    course = Course(7)
    course.miss(0)
    course.miss(FORGOTTEN_S - 1)
    course.see(answer(switch=switch()), FORGOTTEN_S)
    course.miss(FORGOTTEN_S)
    with pytest.raises(LostSight, match="knows nothing of switch 7"):
        course.miss(2 * FORGOTTEN_S)


def test_screens() -> None:
    """Lines where nothing changes in place; there the view, and what is noted stays above it."""
    plain = io.StringIO()
    screen = Screen(plain, live=False)
    screen.line("a phase")
    screen.show(["the view"])
    screen.note("trouble")
    screen.close()
    assert plain.getvalue() == "a phase\ntrouble\n"
    terminal = io.StringIO()
    screen = Screen(terminal, live=True)
    screen.line("a phase")
    screen.note("[b]trouble")
    screen.show([*switch_parts(switch(), 3), "end"])
    screen.close()
    screen.close()
    shown = terminal.getvalue()
    assert "[b]trouble" in shown
    assert "waits for the profile's pools" in shown
    assert "a phase" not in shown
    terminal.close()
    Screen(terminal, live=True).show(["nobody sees it"])
