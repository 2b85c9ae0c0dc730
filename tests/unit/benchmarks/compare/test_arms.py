"""Arms as people write them, and the order in which they are measured."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ProfileError, SettingsError
from benchmarks.compare.arms import block_order, block_salt, parse_arms, parse_slo
from benchmarks.plan import Slo


def test_profiles_and_endpoints_can_be_mixed_and_named() -> None:
    """A profile, a named profile, an endpoint, and an endpoint that a profile describes."""
    arms = parse_arms(
        ["standard", "mine=disaggregated", "other=http://h:1", "last=https://h/v1@cpu-standard"]
    )
    assert [arm.name for arm in arms] == ["standard", "mine", "other", "last"]
    assert [arm.url for arm in arms] == [None, None, "http://h:1", "https://h/v1"]
    assert [arm.profile.name if arm.profile else None for arm in arms] == [
        "standard",
        "disaggregated",
        None,
        "cpu-standard",
    ]


def test_the_same_profile_three_times_gets_three_names() -> None:
    """An A/A comparison needs no names of its own."""
    names = [arm.name for arm in parse_arms(["standard", "standard", "standard"])]
    assert names == ["standard", "standard-2", "standard-3"]


def test_endpoints_without_names_are_numbered() -> None:
    """URLs alone are enough."""
    names = [arm.name for arm in parse_arms(["http://a:1", "http://b:1"])]
    assert names == ["endpoint-1", "endpoint-2"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["standard"], "at least two"),
        (["a=standard", "a=disaggregated"], "two arms are called a"),
        (["a b=standard", "standard"], "cannot name an arm"),
    ],
)
def test_unusable_arms_are_refused(texts: list[str], says: str) -> None:
    """One sentence says what is wrong."""
    with pytest.raises(SettingsError, match=says):
        parse_arms(texts)


def test_an_unknown_profile_is_refused_before_anything_starts() -> None:
    """With the profile package's own message."""
    with pytest.raises(ProfileError, match="did you mean standard"):
        parse_arms(["standart", "disaggregated"])


def test_accelerators_and_prices_come_from_the_profile() -> None:
    """Workers times devices each; the price of an arm is that of all of them."""
    first, second = (arm.describe() for arm in parse_arms(["disaggregated", "cpu-standard"]))
    assert [(a.label, a.count) for a in first.accelerators] == [
        ("nvidia-a100-80gb", 1),
        ("nvidia-l4", 2),
    ]
    assert first.accelerator_count == 3
    assert first.price_per_hour == pytest.approx(5.07 + 2 * 0.71)
    assert second.accelerator_count == 2
    assert second.price_per_hour is None


def test_all_devices_of_a_group_are_counted() -> None:
    """Of a worker on two machines, those of both."""
    first, _ = (arm.describe() for arm in parse_arms(["multi-node", "standard"]))
    assert [(a.label, a.count) for a in first.accelerators] == [
        ("nvidia-a100-80gb", 8),
        ("nvidia-l4", 32),
    ]


def test_service_levels_are_read() -> None:
    """Each bound is optional."""
    assert parse_slo("ttft=0.5, tpot=0.1") == Slo(ttft_s=0.5, tpot_s=0.1)
    assert parse_slo("e2e=20") == Slo(e2e_s=20)


@pytest.mark.parametrize("text", ["ttft", "ttft=x", "ttft=-1", "ttft=0", "speed=1", "ttft=inf"])
def test_bad_service_levels_are_refused(text: str) -> None:
    """With an example of how it is written."""
    with pytest.raises(SettingsError, match=r"ttft=0\.5,tpot=0\.1"):
        parse_slo(text)


def test_two_arms_alternate_as_a_b_b_a() -> None:
    """What drifts with time falls on both alike."""
    order = [arm for _, _, arm in block_order(["A", "B"], [1.0], 4)]
    assert "".join(order) == "ABBABAAB"


@given(
    arms=st.integers(2, 5),
    levels=st.lists(st.floats(0.1, 9), min_size=1, max_size=4, unique=True),
    pairs=st.integers(1, 12),
)
def test_every_block_is_there_once_and_pairs_stay_together(
    arms: int, levels: list[float], pairs: int
) -> None:
    """Each arm runs each level of each repetition once, all arms of a pair in a row."""
    names = [f"arm-{n}" for n in range(arms)]
    order = block_order(names, levels, pairs)
    assert Counter(order) == Counter(
        (level, pair, name) for pair in range(pairs) for level in levels for name in names
    )
    for start in range(0, len(order), arms):
        assert len({(level, pair) for level, pair, _ in order[start : start + arms]}) == 1


def test_over_enough_repetitions_no_arm_is_always_first() -> None:
    """With three arms, each of them is in each place."""
    order = block_order(["A", "B", "C"], [1.0], 6)
    places = {(n % 3, arm) for n, (_, _, arm) in enumerate(order)}
    assert len(places) == 9


def test_no_two_blocks_have_the_same_salt() -> None:
    """Nor do blocks of two comparisons."""
    salts = {
        block_salt(comparison, arm, level, pair)
        for comparison in ("x", "y")
        for arm in ("a", "b")
        for level in (1.0, 1.5)
        for pair in range(10)
    }
    assert len(salts) == 80
