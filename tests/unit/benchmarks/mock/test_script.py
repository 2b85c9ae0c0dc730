"""The mock's script: what it will do to a request, before it does."""

from __future__ import annotations

import random

import pytest

from benchmarks.mock import Delay, Outcome, Script, Shape, Stall
from benchmarks.mock.script import course, wall_time, working_time

STALLS = (Stall(1.0, 0.5), Stall(4.0, 2.0))


@pytest.mark.parametrize("shape", list(Shape))
def test_delays_have_the_mean_that_they_are_told(shape: Shape) -> None:
    """Whatever the shape, the mean is the mean, and nothing is negative."""
    rng = random.Random(1)
    delay = Delay(0.2, shape, 0.4)
    drawn = [delay.draw(rng) for _ in range(20_000)]
    assert min(drawn) >= 0
    assert sum(drawn) / len(drawn) == pytest.approx(0.2, rel=0.02)


def test_a_course_depends_on_seed_and_key_alone() -> None:
    """The same request meets the same delays; another one, or another seed, others."""
    script = Script(ttft=Delay(0.1, Shape.LOGNORMAL), itl=Delay(0.01, Shape.EXPONENTIAL))
    one = course(script, 7, output_tokens=5)
    assert one == course(script, 7, output_tokens=5)
    assert one != course(script, 8, output_tokens=5)
    assert one != course(Script(ttft=script.ttft, itl=script.itl, seed=1), 7, output_tokens=5)


def test_chunks_hold_every_token_once() -> None:
    """Several tokens per chunk come when the last of them is there."""
    script = Script(ttft=Delay(1.0), itl=Delay(0.1), tokens_per_chunk=4)
    chunks = course(script, 0, output_tokens=10).chunks
    assert [tokens for _, tokens in chunks] == [4, 4, 2]
    assert [at_s for at_s, _ in chunks] == pytest.approx([1.0, 1.4, 1.6])


def test_prompt_tokens_take_time() -> None:
    """What is not in the cache is paid for before the first chunk."""
    script = Script(ttft=Delay(1.0), prompt_tokens_per_s=1000)
    assert course(script, 0, output_tokens=1, new_prompt_tokens=500).chunks[0][0] == 1.5


def test_outcomes_come_at_their_rates() -> None:
    """Errors, broken streams and cut connections are shares of the requests."""
    script = Script(error_rate=0.1, error_event_rate=0.2, cut_rate=0.3)
    found = [course(script, key, output_tokens=4).outcome for key in range(5000)]
    for outcome, rate in (
        (Outcome.ERROR, 0.1),
        (Outcome.ERROR_EVENT, 0.2),
        (Outcome.CUT, 0.3),
        (Outcome.WHOLE, 0.4),
    ):
        assert found.count(outcome) / len(found) == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize(
    ("at_s", "worked_s"),
    [(0.0, 0.0), (1.0, 1.0), (1.2, 1.0), (1.5, 1.0), (2.0, 1.5), (5.0, 3.5), (7.0, 4.5)],
)
def test_no_time_passes_in_a_stall(at_s: float, worked_s: float) -> None:
    """Working time stands still while the server does."""
    assert working_time(at_s, STALLS) == pytest.approx(worked_s)


def test_what_a_stall_holds_up_goes_on_after_it() -> None:
    """A chunk due in a stall comes later by as much of the stall as was left; outside of stalls
    the two functions undo each other."""
    assert wall_time(0.9, STALLS) == pytest.approx(0.9)
    assert wall_time(1.1, STALLS) == pytest.approx(1.6)
    assert wall_time(3.6, STALLS) == pytest.approx(6.1)
    for at_s in (0.3, 1.7, 3.9, 6.5, 100.0):
        assert wall_time(working_time(at_s, STALLS), STALLS) == pytest.approx(at_s)


def test_a_moment_in_a_stall_is_its_end_whatever_the_rounding() -> None:
    """Also where its beginning and end are no binary fractions."""
    stalls = (Stall(0.05, 0.4), Stall(0.7, 0.1))
    for stall in stalls:
        for part in range(100):
            at_s = stall.at_s + stall.length_s * part / 100
            ends_s = stall.at_s + stall.length_s
            assert wall_time(working_time(at_s, stalls), stalls) == pytest.approx(ends_s)
