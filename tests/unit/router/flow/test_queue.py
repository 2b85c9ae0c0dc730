"""The fair queue: order, fair shares, bounds, who makes room, nothing lost and nobody starved."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.flow.queue import FairQueue
from router.flow.shares import Waiting

FOREVER_S = 1e9


class Bench:
    """A queue and shorthands for it."""

    def __init__(self, bound: int = 1000) -> None:
        self.queue = FairQueue(bound)
        self.names: dict[int, str] = {}

    def item(
        self,
        tenant: str = "a",
        priority: int = 0,
        *,
        weight: float = 1.0,
        tokens: float = 100,
        model: str = "m",
        now_s: float = 0.0,
        expires_s: float = FOREVER_S,
    ) -> Waiting:
        account = self.queue.lane(model).account(tenant, priority, weight, now_s)
        return Waiting(account, tokens, now_s, expires_s)

    def push(self, *args: object, **kwargs: object) -> tuple[Waiting, Waiting | None]:
        item = self.item(*args, **kwargs)  # type: ignore[arg-type]
        return item, self.queue.push(item)

    def pop(self, model: str = "m") -> Waiting | None:
        return self.queue.pop(self.queue.lane(model))

    def tenants(self, count: int, model: str = "m") -> str:
        """Whose requests come out next."""
        out = [self.pop(model) for _ in range(count)]
        return "".join(item.account.tenant if item is not None else "-" for item in out)


def test_one_tenant_is_served_in_order() -> None:
    """First in, first out."""
    bench = Bench()
    pushed = [bench.push()[0] for _ in range(5)]
    assert [bench.pop() for _ in range(6)] == [*pushed, None]


def test_higher_bands_go_first() -> None:
    """Whatever came earlier; negative ones last."""
    bench = Bench()
    for tenant, priority in (("l", -1), ("d", 0), ("h", 5), ("d", 0), ("h", 5)):
        bench.push(tenant, priority)
    assert bench.tenants(5) == "hhddl"


def test_tenants_of_a_band_take_turns() -> None:
    """A burst that came first does not go first as a whole."""
    bench = Bench()
    for _ in range(6):
        bench.push("a")
    for _ in range(3):
        bench.push("b")
    assert bench.tenants(9) == "ababababa"[:6] + "aaa"


def test_turns_are_weighted_by_tokens() -> None:
    """Requests three times as large come a third as often."""
    bench = Bench()
    for _ in range(30):
        bench.push("a", tokens=300)
        bench.push("b", tokens=100)
    served = bench.tenants(20)
    assert served.count("a") == 5
    assert served.count("b") == 15


def test_turns_are_weighted_by_weight() -> None:
    """Twice the weight, twice the tokens."""
    bench = Bench()
    for _ in range(30):
        bench.push("a", weight=2.0)
        bench.push("b", weight=1.0)
    served = bench.tenants(30)
    assert served.count("a") == 20


def test_nobody_saves_up_turns_while_idle() -> None:
    """Who comes back takes turns with the rest, and does not make up for the past."""
    bench = Bench()
    bench.push("b")
    assert bench.tenants(1) == "b"
    item = bench.queue.lane("m").account("b", 0, 1.0, 0.0)
    item.give_back(100, None)
    for _ in range(50):
        bench.push("a")
    for _ in range(40):
        popped = bench.pop()
        assert popped is not None
        popped.account.give_back(100, None)
    for _ in range(10):
        bench.push("b")
    assert bench.tenants(10).count("b") in (5, 6)


def test_what_is_out_counts() -> None:
    """A tenant that comes while another holds all places catches up with half of them first."""
    bench = Bench()
    for _ in range(40):
        bench.push("a")
    assert bench.tenants(16) == "a" * 16  # none of these has ended
    for _ in range(40):
        bench.push("b")
    served = bench.tenants(20)
    assert served[:8] == "b" * 8
    assert served[8:].count("b") in (6, 7)


def test_the_real_number_of_tokens_counts_in_the_end() -> None:
    """A tenant whose answers are longer than estimated gets fewer turns."""
    bench = Bench()
    for _ in range(100):
        bench.push("a")
        bench.push("b")
    count = {"a": 0, "b": 0}
    for _ in range(60):
        item = bench.pop()
        assert item is not None
        count[item.account.tenant] += 1
        item.account.give_back(100, 300 if item.account.tenant == "a" else 100)
    assert count["b"] == 3 * count["a"]


def test_models_do_not_wait_for_each_other() -> None:
    """Each has its own order."""
    bench = Bench()
    bench.push("a", model="x")
    bench.push("b", model="y")
    assert bench.tenants(1, "y") == "b"
    assert bench.tenants(1, "x") == "a"


def test_full_and_nobody_lower() -> None:
    """The newcomer is refused."""
    bench = Bench(bound=2)
    bench.push("a")
    bench.push("a")
    item, out = bench.push("a")
    assert out is item
    lower, out = bench.push("a", -1)
    assert out is lower
    assert bench.queue.count == 2


def test_full_and_somebody_lower() -> None:
    """The newest of the lowest band makes room."""
    bench = Bench(bound=4)
    bench.push("a", 1)
    bench.push("s", -5)
    newest, _ = bench.push("s", -5)
    bench.push("t", -1)
    _, out = bench.push("a", 1)
    assert out is newest
    assert not newest.queued
    assert bench.queue.count == 4


def test_a_burst_does_not_shut_others_out() -> None:
    """In a full queue the longest account of the band makes room for a shorter one, down to
    equal length and no further."""
    bench = Bench(bound=10)
    for _ in range(10):
        bench.push("a")
    refused = 0
    for _ in range(10):
        item, out = bench.push("b")
        assert out is not None
        if out is item:
            refused += 1
        else:
            assert out.account.tenant == "a"
    assert bench.queue.depth_by_band() == {0: 10}
    assert refused == 5
    assert bench.tenants(10).count("b") == 5


def test_a_lower_bound_for_once() -> None:
    """As for a router that holds all the requests it may."""
    bench = Bench(bound=10)
    bench.push("a")
    item = bench.item("a")
    assert bench.queue.push(item, bound=1) is item
    high = bench.item("a", 3)
    assert bench.queue.push(high, bound=1) is not None
    assert high.queued


def test_expiry() -> None:
    """Takes out what is due, and says when the next is."""
    bench = Bench()
    late, _ = bench.push("a", expires_s=20.0)
    soon, _ = bench.push("b", expires_s=10.0)
    gone, _ = bench.push("b", expires_s=5.0)
    bench.queue.remove(gone)
    assert bench.queue.next_expiry_s() == 10.0
    assert bench.queue.expire(9.9) == []
    assert bench.queue.expire(10.0) == [soon]
    assert bench.queue.next_expiry_s() == 20.0
    assert bench.pop() is late
    assert bench.queue.next_expiry_s() is None
    assert bench.queue.expire(1e12) == []


def test_what_leaves_early_leaves_nothing() -> None:
    """A million clients that give up do not fill the memory."""
    bench = Bench()
    stays, _ = bench.push("a")
    for _ in range(1000):
        item, _ = bench.push("a")
        bench.queue.remove(item)
        bench.queue.remove(item)
    assert bench.queue.count == 1
    assert len(bench.queue._expiries) < 100
    assert bench.pop() is stays


def test_idle_accounts_are_forgotten() -> None:
    """But not those with something waiting or out, nor those seen lately."""
    bench = Bench()
    lane = bench.queue.lane("m")
    bench.push("waiting", now_s=0.0)
    lane.account("idle", 3, 1.0, 0.0)
    lane.account("fresh", 0, 1.0, 50.0)
    lane.account("out", 0, 2.0, 0.0).take(10)
    lane.forget(before_s=10.0)
    assert set(lane.bands) == {0}
    assert set(lane.bands[0].accounts) == {"waiting", "fresh", "out"}
    assert lane.bands[0].weight == 4.0


def test_oldest() -> None:
    """By arrival, wherever it stands."""
    bench = Bench()
    assert bench.queue.oldest_s() is None
    bench.push("a", 5, now_s=3.0)
    bench.push("b", -2, now_s=2.0, model="other")
    assert bench.queue.oldest_s() == 2.0


OPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from("abc"),
            st.integers(-2, 2),
            st.integers(1, 1000),
            st.sampled_from("xy"),
        ),
        st.tuples(st.just("pop"), st.sampled_from("xy")),
        st.tuples(st.just("remove"), st.integers(0, 10_000)),
        st.tuples(st.just("expire"), st.integers(0, 30)),
    ),
    max_size=120,
)


@given(OPS, st.integers(1, 12))
def test_nothing_is_lost_and_the_bound_holds(ops: list[tuple[object, ...]], bound: int) -> None:
    """Every request that was pushed comes out once: popped, shed, refused, removed or expired;
    a band's order is kept; what is shed was never above the newcomer."""
    bench = Bench(bound)
    queue = bench.queue
    inside: list[Waiting] = []
    now_s = 0.0
    for op in ops:
        if op[0] == "push":
            item = bench.item(
                str(op[1]),
                int(str(op[2])),
                tokens=int(str(op[3])),
                model=str(op[4]),
                now_s=now_s,
                expires_s=now_s + 20,
            )
            out = queue.push(item)
            inside.append(item)
            if out is not None:
                assert len(inside) == bound + 1
                assert out.account.band.priority <= item.account.band.priority
                lowest = min(other.account.band.priority for other in inside)
                assert out.account.band.priority == lowest
                inside.remove(out)
        elif op[0] == "pop":
            popped = bench.pop(str(op[1]))
            there = [item for item in inside if item.account.band.lane.model == op[1]]
            assert (popped is None) == (not there)
            if popped is not None:
                assert popped in there
                assert popped.account.band.priority == max(i.account.band.priority for i in there)
                same = [item for item in there if item.account is popped.account]
                assert popped is same[0]
                inside.remove(popped)
        elif op[0] == "remove" and inside:
            gone = inside.pop(int(str(op[1])) % len(inside))
            queue.remove(gone)
        elif op[0] == "expire":
            now_s += int(str(op[1]))
            for item in queue.expire(now_s):
                inside.remove(item)
            assert all(item.expires_s > now_s for item in inside)
        assert queue.count == len(inside) <= bound
        assert all(item.queued for item in inside)
    for model in "xy":
        while (popped := bench.pop(model)) is not None:
            inside.remove(popped)
    assert not inside


@given(
    st.lists(st.integers(1, 1000), min_size=30, max_size=60),
    st.lists(st.integers(1, 1000), min_size=30, max_size=60),
    st.floats(0.1, 10.0),
    st.integers(1, 16),
    st.integers(0, 2**32),
)
def test_two_tenants_stay_within_one_request_of_their_shares(
    of_a: list[int], of_b: list[int], weight: float, depth: int, seed: int
) -> None:
    """While both wait, served tokens per weight differ by at most one largest request of each,
    however many are out at a time and in whatever order they end."""
    bench = Bench()
    for tokens in of_a:
        bench.push("a", tokens=tokens)
    for tokens in of_b:
        bench.push("b", tokens=tokens, weight=weight)
    served = {"a": 0.0, "b": 0.0}
    left = {"a": len(of_a), "b": len(of_b)}
    out: list[Waiting] = []
    rng = random.Random(seed)
    bound = max(of_a) + max(of_b) / weight
    while left["a"] and left["b"]:
        item = bench.pop()
        assert item is not None
        tenant = item.account.tenant
        served[tenant] += item.tokens / item.account.weight
        left[tenant] -= 1
        out.append(item)
        if len(out) >= depth:
            ended = out.pop(rng.randrange(len(out)))
            ended.account.give_back(ended.tokens, None)
        assert abs(served["a"] - served["b"]) <= bound + 1e-6


@given(st.lists(st.tuples(st.sampled_from("bcd"), st.integers(1, 100)), max_size=200))
def test_nobody_starves(others: list[tuple[str, int]]) -> None:
    """A request is served after a bounded number of tokens of others, who keep coming."""
    bench = Bench()
    for tenant in "bcd":
        bench.push(tenant, tokens=100)
    item, _ = bench.push("a", tokens=100)
    tokens_before = 0.0
    for tenant, tokens in others:
        bench.push(tenant, tokens=tokens)
        popped = bench.pop()
        assert popped is not None
        popped.account.give_back(popped.tokens, None)
        if popped is item:
            break
        tokens_before += popped.tokens
    # Three others, each at most one largest request ahead of the start and one behind.
    assert tokens_before <= 3 * 2 * 100
