"""The router's book of handoffs."""

from __future__ import annotations

import pytest

from baton.clock import VirtualClock
from baton.errors import IllegalTransition, OurFault
from baton.types import RequestId, WorkerId
from kvtransfer import HandoffState
from router import ledger as ledger_module
from router.dispatch import _lease_s
from router.ledger import Entry, Ledger, Offer
from router.observe import RouterMetrics
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import disaggregated, serving

LEASE_S = 30.0
KV_BYTES = 4096


class Book:
    """A ledger, its clock, and its metrics."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.metrics = RouterMetrics(process=False)
        self.ledger = Ledger(self.clock, self.metrics)

    def entry(self, request_id: str = "r") -> Entry:
        return self.ledger.plan(RequestId(request_id), WorkerId("p"), WorkerId("d"))

    def offered(self, request_id: str = "r") -> Entry:
        entry = self.entry(request_id)
        entry.prefill_sent()
        entry.prefill_answered(prompt_tokens=100, kv_bytes=KV_BYTES, lease_s=LEASE_S)
        return entry

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def open(self) -> list[HandoffState]:
        return [handoff.state for handoff in self.ledger.open_handoffs()]

    @property
    def stranded_bytes(self) -> int:
        self.ledger.sweep()
        return sum(self.ledger.stranded_bytes().values())


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_whole_handoff(book: Book) -> None:
    """Each step shows; at the end nothing is left, and it was counted."""
    entry = book.entry()
    assert book.open == [HandoffState.PLANNED]
    assert book.ledger.open_count == 1
    entry.prefill_sent()
    entry.prefill_answered(prompt_tokens=100, kv_bytes=KV_BYTES, lease_s=LEASE_S)
    assert book.open == [HandoffState.OFFERED]
    entry.decode_sent()
    entry.first_content()
    assert entry.state is HandoffState.PULLED
    entry.finished()
    assert entry.state is None
    assert book.open == []
    assert book.ledger.stranded_handoffs() == ()
    assert book.sample("baton_handoffs_total", state="done") == 1
    assert book.ledger.open_count == 0
    assert book.sample("baton_handoff_kv_bytes_total") == KV_BYTES


def test_ends_are_final(book: Book) -> None:
    """What ends a handoff twice does nothing the second time."""
    entry = book.entry()
    entry.prefill_sent()
    entry.failed("why")
    entry.failed("again")
    entry.client_gone()
    assert book.sample("baton_handoffs_total", state="failed") == 1
    assert book.sample("baton_handoffs_total", state="aborted") == 0


def test_an_illegal_step_changes_nothing(book: Book) -> None:
    """The state machine refuses it, and the book stays as it was."""
    entry = book.entry()
    with pytest.raises(IllegalTransition):
        entry.decode_sent()
    assert book.open == [HandoffState.PLANNED]


@pytest.mark.parametrize("end", ["failed", "client_gone"])
def test_offered_blocks_are_stranded_until_their_lease_ends(book: Book, end: str) -> None:
    """A handoff that ends between the legs leaves blocks on prefill for the rest of the lease."""
    entry = book.offered()
    book.clock.advance(10)
    if end == "failed":
        entry.failed("decode is gone")
    else:
        entry.client_gone()
    assert book.open == []
    assert len(book.ledger.stranded_handoffs()) == 1
    assert book.stranded_bytes == KV_BYTES
    book.clock.advance(19.9)
    assert book.stranded_bytes == KV_BYTES
    book.clock.advance(0.2)
    assert book.ledger.stranded_handoffs() == ()
    assert book.stranded_bytes == 0


def test_decode_may_have_renewed_the_lease(book: Book) -> None:
    """After decode was sent the blocks may be held longer than the first lease."""
    entry = book.offered()
    entry.decode_sent()
    book.clock.advance(25)
    entry.failed("no first token")
    book.clock.advance(10)
    assert book.stranded_bytes == KV_BYTES
    book.clock.advance(11)
    assert book.stranded_bytes == 0


def test_nothing_is_stranded_by_a_failed_prefill(book: Book) -> None:
    """No blocks were offered."""
    entry = book.entry()
    entry.prefill_sent()
    entry.failed("500")
    assert book.ledger.stranded_handoffs() == ()


def test_freshness(book: Book) -> None:
    """Decode is sent only while enough of the lease is left: all but its last sixth."""
    entry = book.offered()
    book.clock.advance(24.9)
    assert entry.fresh()
    book.clock.advance(0.2)
    assert not entry.fresh()
    with pytest.raises(IllegalTransition):
        entry.decode_sent()


def test_several_tries_of_one_request(book: Book) -> None:
    """A request id may have several handoffs; they are told apart."""
    first = book.offered()
    first.failed("why")
    second = book.offered()
    assert book.open == [HandoffState.OFFERED]
    second.decode_sent()
    second.first_content()
    second.finished()
    assert len(book.ledger.stranded_handoffs()) == 1


def test_the_book_is_bounded(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stranded handoffs the oldest are forgotten."""
    monkeypatch.setattr(ledger_module, "_MOST_STRANDED", 5)
    for number in range(12):
        book.offered(str(number)).client_gone()
    kept = [handoff.request_id for handoff in book.ledger.stranded_handoffs()]
    assert kept == ["7", "8", "9", "10", "11"]
    assert book.stranded_bytes == 5 * KV_BYTES


def test_released_blocks_are_not_stranded(book: Book) -> None:
    """What is known to be free is forgotten at once, once, and counted as released."""
    entry = book.offered()
    entry.client_gone()
    assert entry.strands_kv
    assert entry.lease_expires_s() == book.clock.monotonic_s() + LEASE_S
    entry.released()
    entry.released()
    assert book.stranded_bytes == 0
    assert not entry.strands_kv
    assert entry.lease_expires_s() is None
    assert book.sample("baton_handoffs_reclaimed_total", how="released") == 1


def test_a_restarted_worker_holds_nothing(book: Book) -> None:
    """Another engine has none of the blocks that the one before offered; others keep theirs."""
    book.offered().client_gone()
    other = book.ledger.plan(RequestId("r"), WorkerId("p2"), WorkerId("d"))
    other.prefill_sent()
    other.prefill_answered(prompt_tokens=1, kv_bytes=7, lease_s=LEASE_S)
    other.failed("why")
    book.ledger.restarted(WorkerId("p"))
    assert book.ledger.stranded_bytes() == {"p2": 7}


def test_an_offer_that_lay_unread(book: Book) -> None:
    """Its lease began when it may have come, not when it was read; but not before it was asked
    for."""
    book.clock.advance(100.0)
    for asked_s_ago, unseen_s, fresh in (
        (60.0, 26.0, False),
        (60.0, 20.0, True),
        (5.0, 60.0, True),
    ):
        entry = book.entry()
        entry.prefill_sent()
        book.clock.advance(asked_s_ago)
        entry.prefill_answered(
            prompt_tokens=100, kv_bytes=KV_BYTES, lease_s=LEASE_S, unseen_s=unseen_s
        )
        assert entry.fresh() is fresh
        entry.client_gone()


def test_an_offer_is_taken_once() -> None:
    """Transfer parameters that are used twice corrupt an answer: there is no second time."""
    offer = Offer({"remote_block_ids": [1]}, prompt_tokens=3, kv_bytes=5)
    assert not offer.taken
    assert offer.take() == {"remote_block_ids": [1]}
    assert offer.taken
    with pytest.raises(OurFault, match="twice"):
        offer.take()


@pytest.mark.parametrize("taken", [False, True])
def test_an_offer_that_is_given_back_cannot_be_taken(taken: bool) -> None:
    """Whoever gives it back may have the parameters after decode had them, but not before."""
    offer = Offer({"remote_block_ids": [1]}, prompt_tokens=3, kv_bytes=5)
    if taken:
        offer.take()
    assert offer.give_back() == {"remote_block_ids": [1]}
    with pytest.raises(OurFault, match="twice"):
        offer.take()


@pytest.mark.parametrize(
    ("profile_s", "worker_s", "relied_on_s"), [(30, 0, 30), (30, 20, 20), (30, 60, 30)]
)
def test_how_long_an_offer_is_relied_on(
    profile_s: int, worker_s: float, relied_on_s: float
) -> None:
    """The shorter of what the profile says and of what the engine was started with, which may be
    another profile's; where the engine does not say, the profile's."""
    made = serving(disaggregated(lease_s=profile_s))
    assert _lease_s(made, worker_record("p", lease_s=worker_s)) == relied_on_s
