"""What a person sees of a run."""

from __future__ import annotations

import io

from benchmarks.load.progress import SILENCE_S, Progress, ProgressView, sentence


def at(phase: str, **more: object) -> Progress:
    fields: dict[str, object] = {
        "phase": phase, "done": 48, "planned": 120, "in_flight": 3, "elapsed_s": 12.2,
        "duration_s": 30.0, **more,
    }  # fmt: skip
    return Progress(**fields)  # type: ignore[arg-type]


def test_sentences() -> None:
    """Each phase in words; failures only where there are some."""
    assert sentence(at("measure")) == "measuring 12 of 30 s, 48 of 120 requests, 3 in flight"
    assert sentence(at("warm-up", planned=None, errors=2, label="x2")) == (
        "x2: warming up 12 of 30 s, 48 requests, 3 in flight, 2 failed"
    )
    assert sentence(at("drain")) == "waiting for 3 answers, 48 of 120 requests"


def test_lines_where_there_is_no_terminal() -> None:
    """Elsewhere than on a terminal: a line at each phase, and one every few seconds."""
    now = [0.0]
    out = io.StringIO()
    with ProgressView(out, clock=lambda: now[0]) as view:
        for _ in range(40):
            view.update(at("measure"))
            now[0] += 0.25
        view.update(at("drain"))
        view.say("block 2 of 8")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 + 1 + 1
    assert now[0] / 2 == SILENCE_S
    assert lines[-2:] == ["waiting for 3 answers, 48 of 120 requests", "block 2 of 8"]


def test_screen_that_is_gone() -> None:
    """A closed screen ends no run."""
    out = io.StringIO()
    view = ProgressView(out)
    out.close()
    view.update(at("measure"))
    view.say("hello")


def test_live_line() -> None:
    """On a terminal the line is drawn in place, and sentences stay above it."""
    out = io.StringIO()
    with ProgressView(out, live=True) as view:
        view.update(at("measure"))
        view.say("a sentence")
    assert "measuring 12 of 30 s" in out.getvalue()
    assert "a sentence" in out.getvalue()
