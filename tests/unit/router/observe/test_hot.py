"""Counters and histograms of the hot path."""

from __future__ import annotations

import math

import pytest

from router.observe.hot import Counter, Family, Histogram, Kind, Pulled

TENANTS = Family(
    "t_total",
    Kind.COUNTER,
    "Help.",
    ("tenant", "outcome"),
    open_labels=frozenset({"tenant"}),
    most_series=4,
)
TIMES = Family("t_seconds", Kind.HISTOGRAM, "Help.", ("path",), buckets=(0.1, 1.0, 10.0))


def test_a_counter_keeps_a_number_per_label_tuple() -> None:
    """Updates of equal labels add up, those of others stay apart."""
    counter = Counter(TENANTS, lambda _: None)
    counter.add(("a", "ok"))
    counter.add(("a", "ok"), 2)
    counter.add(("b", "ok"))
    counter.prime(("c", "ok"))
    counter.prime(("a", "ok"))
    assert counter.values == {("a", "ok"): 3, ("b", "ok"): 1, ("c", "ok"): 0}


def test_past_the_bound_open_labels_become_other_and_closed_ones_stay() -> None:
    """A flood of tenants cannot grow memory, and the outcomes of all of them still count."""
    full: list[str] = []
    counter = Counter(TENANTS, full.append)
    for number in range(100):
        counter.add((f"tenant-{number}", "ok"))
        counter.add((f"tenant-{number}", "failed"))
    assert len(counter.values) == 6
    assert counter.values["other", "ok"] == counter.values["other", "failed"] == 98
    assert sum(counter.values.values()) == 200
    assert full == ["t_total"] * 196


def test_a_label_that_was_thought_closed_is_bounded_too() -> None:
    """At twice the bound everything is folded, whatever the labels."""
    counter = Counter(TENANTS, lambda _: None)
    for number in range(100):
        counter.add(("a", f"outcome-{number}"))
    assert len(counter.values) == 9
    assert counter.values["other", "other"] == 92


def test_a_series_from_before_the_bound_goes_on_being_counted_as_itself() -> None:
    """Only newcomers are folded."""
    counter = Counter(TENANTS, lambda _: None)
    for number in range(10):
        counter.add((f"tenant-{number}", "ok"))
    counter.add(("tenant-0", "ok"))
    assert counter.values["tenant-0", "ok"] == 2


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c")])
def test_labels_that_do_not_fit_are_a_bug(labels: tuple[str, ...]) -> None:
    """A wrong number of label values raises instead of writing a page nobody can read."""
    with pytest.raises(ValueError, match="t_total"):
        Counter(TENANTS, lambda _: None).add(labels)
    with pytest.raises(ValueError, match="t_seconds"):
        Histogram(TIMES, lambda _: None).observe(("a", "b", *labels), 1)


def test_a_value_on_a_bound_belongs_to_that_bucket() -> None:
    """Prometheus's buckets are "less or equal"."""
    histogram = Histogram(TIMES, lambda _: None)
    for value in (0.1, 0.100001, 1.0, 10.0, 10.1, -1.0):
        histogram.observe(("local",), value)
    assert histogram.cells["local",][:-1] == [2, 2, 1, 1]
    assert histogram.cells["local",][-1] == pytest.approx(0.1 + 0.100001 + 1 + 10 + 10.1 - 1)


def test_what_is_no_number_does_not_poison_a_sum() -> None:
    """NaN would make the sum NaN for the rest of the process's life."""
    histogram = Histogram(TIMES, lambda _: None)
    histogram.observe(("local",), 1.0)
    histogram.observe(("local",), math.nan)
    assert histogram.cells["local",] == [0, 1, 0, 0, 1.0]


def test_merging_counts_equals_observing() -> None:
    """What a stream counted for itself ends up where single observations would have."""
    one, other = Histogram(TIMES, lambda _: None), Histogram(TIMES, lambda _: None)
    for value in (0.05, 0.5, 5.0, 50.0, 0.5):
        one.observe(("local",), value)
    other.merge(("local",), [1, 2, 1, 1], 56.05)
    other.merge(("local",), [0, 0, 0, 0], 0.0)
    assert one.cells["local",][:-1] == other.cells["local",][:-1]
    assert one.cells["local",][-1] == pytest.approx(other.cells["local",][-1])


def test_families_without_labels_are_there_from_the_start() -> None:
    """A counter that was never touched shows 0, so that alerts on it work."""
    counter = Counter(Family("n_total", Kind.COUNTER, "Help."), lambda _: None)
    assert counter.values == {(): 0}
    counter.add()
    assert counter.values == {(): 1}


def test_a_pulled_gauge_reads_its_source_and_is_cut_at_its_bound() -> None:
    """A fleet of any size makes a page of bounded size, and the cut is told."""
    full: list[str] = []
    family = Family("g", Kind.GAUGE, "Help.", ("worker",), most_series=3)
    gauge = Pulled(family, full.append)
    assert gauge.read() == {}
    gauge.read_from(lambda: {(f"w{number}",): number for number in range(10)})
    assert gauge.read() == {("w0",): 0, ("w1",): 1, ("w2",): 2}
    assert full == ["g"]
    gauge.read_from(lambda: {(): 1})
    with pytest.raises(ValueError, match="labels"):
        gauge.read()
