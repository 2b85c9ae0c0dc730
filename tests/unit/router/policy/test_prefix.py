"""Who has which prefix: matching, bounds, restarts; and the slots behind it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.types import EngineId, WorkerId
from router.policy import PrefixIndex, PrefixMatch, Slots
from router.policy.bits import mask_of, slots_of

A, B, C = map(WorkerId, "abc")
ONE, TWO = EngineId("1"), EngineId("2")


def index(*workers: WorkerId, **bounds: int) -> tuple[PrefixIndex, Slots]:
    slots = Slots()
    slots.update(dict.fromkeys(workers, ONE))
    return PrefixIndex(slots, **bounds), slots


def depths(found: PrefixMatch, slots: Slots) -> dict[str, int]:
    return {worker: n for worker, slot in slots.all().items() if (n := found.depth(slot))}


CHAIN = [*range(100, 120)]


def test_depths() -> None:
    """Each worker up to where its chain leaves the prompt's."""
    book, slots = index(A, B, C)
    book.record(A, CHAIN)
    book.record(B, CHAIN[:7])
    book.record(C, [1, 2, 3])
    found = book.match(CHAIN, 16)
    assert depths(found, slots) == {"a": 20, "b": 7}
    assert (found.blocks, found.block_tokens) == (20, 16)
    assert depths(book.match([*CHAIN[:5], 7, 8], 16), slots) == {"a": 5, "b": 5}
    assert book.match([5, *CHAIN], 16).levels == ()
    assert book.match([], 16).levels == ()


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=12),
    st.lists(st.integers(0, 2), max_size=40),
)
def test_matching_is_what_a_walk_would_find(sent: list[list[int]], asked: list[int]) -> None:
    """Jumps over runs or not, each depth is the length of the longest common beginning of all
    that was sent to a worker."""

    def chain(pieces: list[int]) -> list[int]:
        made, last = [], 0
        for piece in pieces:
            last = hash((last, piece))
            made.append(last)
        return made

    workers = [WorkerId(f"w{n % 5}") for n in range(len(sent))]
    book, slots = index(*workers)
    expected = dict.fromkeys(workers, 0)
    for worker, pieces in zip(workers, sent, strict=True):
        book.record(worker, chain(pieces))
        common = next(
            (n for n, pair in enumerate(zip(pieces, asked, strict=False)) if pair[0] != pair[1]),
            min(len(pieces), len(asked)),
        )
        expected[worker] = max(expected[worker], common)
    found = depths(book.match(chain(asked), 1), slots)
    assert found == {worker: n for worker, n in expected.items() if n}


def test_long_chains_count_by_their_beginning() -> None:
    """Of a chain over the bound, the rest is neither kept nor looked at."""
    book, slots = index(A, max_chain=8)
    book.record(A, CHAIN)
    assert book.entries(A) == 8
    found = book.match(CHAIN, 16)
    assert (depths(found, slots), found.blocks) == ({"a": 8}, 8)


def test_a_worker_forgets_what_it_used_longest_ago() -> None:
    """Over its bound, the ends of old prompts first; using a prompt keeps it."""
    book, slots = index(A, max_worker_entries=10)
    old, used, new = [*range(4)], [*range(10, 14)], [*range(20, 24)]
    book.record(A, old)
    book.record(A, used)
    book.record(A, old)
    book.record(A, used)
    book.record(A, new)
    assert book.entries(A) == 10
    assert depths(book.match(old, 1), slots) == {"a": 2}
    assert depths(book.match(used, 1), slots) == {"a": 4}
    assert depths(book.match(new, 1), slots) == {"a": 4}
    book.record(A, [*range(30, 60)])
    assert book.entries(A) == 10
    assert depths(book.match([*range(30, 60)], 1), slots) == {"a": 10}


def test_the_whole_is_bounded() -> None:
    """A newcomer takes its share from the others at once; who leaves gives it back."""
    book, slots = index(A, B, max_entries=20, max_worker_entries=15)
    book.record(A, [*range(15)])
    assert len(book) == 15
    book.record(B, [*range(15)])
    assert (book.entries(A), book.entries(B)) == (10, 10)
    slots.update({A: ONE})
    assert (book.entries(A), len(book)) == (10, 10)
    book.record(A, [*range(100, 115)])
    assert book.entries(A) == 15


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["add", "drop", "clear", "restart"]),
            st.lists(st.integers(0, 30), max_size=20),
        ),
        max_size=30,
    )
)
def test_nothing_is_left_behind(steps: list[tuple[str, str, list[int]]]) -> None:
    """However the book is used, its bounds hold, and when all have left it is empty."""
    book, slots = index(A, B, C, max_entries=24, max_worker_entries=10)
    engines = {A: 1, B: 1, C: 1}
    for name, step, hashes in steps:
        worker = WorkerId(name)
        match step:
            case "add":
                book.stored(worker, hashes)
            case "drop":
                book.removed(worker, hashes)
            case "clear":
                book.cleared(worker)
                assert book.entries(worker) == 0
            case "restart":
                engines[worker] += 1
                slots.update({w: EngineId(str(n)) for w, n in engines.items()})
                assert book.entries(worker) == 0
        assert len(book) <= 24
        assert all(book.entries(w) <= 10 for w in engines)
    slots.update({})
    assert len(book) == 0
    assert book._holders == {}


def test_exact_reports() -> None:
    """Stored, removed, cleared; what a stranger reports is dropped."""
    book, slots = index(A, B)
    book.stored(A, CHAIN)
    book.stored(B, CHAIN)
    book.removed(A, CHAIN[4:])
    book.removed(A, [777])
    assert depths(book.match(CHAIN, 16), slots) == {"a": 4, "b": 20}
    book.cleared(B)
    assert depths(book.match(CHAIN, 16), slots) == {"a": 4}
    stranger = WorkerId("stranger")
    book.stored(stranger, CHAIN)
    book.removed(stranger, CHAIN)
    book.cleared(stranger)
    assert (book.entries(stranger), len(book)) == (0, 4)


def test_restart_and_replacement() -> None:
    """A new engine has an empty cache; so has the worker that gets a slot after another."""
    book, slots = index(A, B)
    book.record(A, CHAIN)
    book.record(B, CHAIN)
    slots.update({A: TWO, B: ONE})
    assert depths(book.match(CHAIN, 16), slots) == {"b": 20}
    slots.update({A: TWO, C: ONE})
    assert depths(book.match(CHAIN, 16), slots) == {}
    assert slots.all() == {A: 0, C: 1}


@pytest.mark.parametrize("bound", ["max_entries", "max_worker_entries", "max_chain"])
def test_bounds_of_nothing(bound: str) -> None:
    """A book that may hold nothing is a mistake."""
    with pytest.raises(ValueError, match="1 or more"):
        PrefixIndex(Slots(), **{bound: 0})


# --- slots and bits -----------------------------------------------------------------------------


def test_slots_stay_and_are_reused() -> None:
    """A worker keeps its number; free ones are given out again, lowest first; watchers are told
    before that."""
    told: list[tuple[str, int]] = []
    slots = Slots()
    slots.watch(lambda worker, slot: told.append((worker, slot)))
    slots.update({A: ONE, B: ONE, C: ONE})
    assert slots.all() == {A: 0, B: 1, C: 2}
    slots.update({C: ONE, WorkerId("d"): ONE})
    assert slots.all() == {C: 2, "d": 0}
    assert sorted(told) == [("a", 0), ("b", 1)]
    slots.update({C: TWO, WorkerId("d"): ONE, A: ONE, B: ONE})
    assert slots.all() == {C: 2, "d": 0, A: 1, B: 3}
    assert told[2:] == [("c", 2)]
    assert (len(slots), slots.get(WorkerId("x"))) == (4, None)


@given(st.lists(st.sets(st.integers(0, 12)), max_size=20))
def test_numbers_are_never_shared(rounds: list[set[int]]) -> None:
    """Whoever comes and goes, numbers are different and as small as the largest crowd so far."""
    slots, most = Slots(), 0
    for crowd in rounds:
        slots.update({WorkerId(str(n)): ONE for n in crowd})
        most = max(most, len(crowd))
        numbers = [*slots.all().values()]
        assert len(set(numbers)) == len(numbers) == len(crowd)
        assert all(number < most for number in numbers)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_bits(size: int, share: float) -> None:
    """Sets and their members, sparse and dense."""
    rng = random.Random(size)
    members = [slot for slot in range(size) if rng.random() < share]
    assert slots_of(mask_of(members)) == members
