"""Limits: requests and tokens a minute, requests at a time, what clients are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import TooManyRequests
from baton.types import RouterId, RouterRecord
from router.tenants import Limits, Tenant, estimate_tokens
from router.tenants.limits import show_duration


def limits(tenant: Tenant) -> Limits:
    made = Limits()
    made.configure({tenant.name: tenant}, 0.0)
    return made


def retry(made: Limits, tenant: Tenant, tokens: float, now_s: float) -> float | None:
    """Seconds that a refused request is told to wait."""
    with pytest.raises(TooManyRequests) as caught:
        made.reserve(tenant, tokens, now_s)
    assert caught.value.status == 429
    return caught.value.retry_after_s


def test_requests_per_minute() -> None:
    """A minute's worth at once, then one each time one has come back."""
    tenant = Tenant("t", requests_per_minute=6)
    made = limits(tenant)
    for _ in range(6):
        made.reserve(tenant, 1, 0.0)
    assert retry(made, tenant, 1, 0.0) == 10
    assert retry(made, tenant, 1, 9.5) == 1
    made.reserve(tenant, 1, 10.0)
    assert retry(made, tenant, 1, 10.0) == 10


def test_tokens_per_minute_are_put_right_at_the_end() -> None:
    """What was not used comes back; what was used in excess is owed."""
    tenant = Tenant("t", tokens_per_minute=600)
    made = limits(tenant)
    first = made.reserve(tenant, 500, 0.0)
    assert retry(made, tenant, 200, 0.0) == 10
    made.settle(first, 100, 0.0)
    made.settle(first, 0, 0.0)
    second = made.reserve(tenant, 500, 0.0)
    made.settle(second, 800, 0.0)
    assert retry(made, tenant, 100, 0.0) == 40
    made.settle(made.reserve(tenant, 100, 40.0), None, 40.0)
    assert retry(made, tenant, 10, 40.0) == 1


def test_a_request_larger_than_the_limit() -> None:
    """Waits for a full bucket, passes, and the rest waits for its debt."""
    tenant = Tenant("t", tokens_per_minute=60)
    made = limits(tenant)
    made.settle(made.reserve(tenant, 10, 0.0), 10, 0.0)
    assert retry(made, tenant, 240, 0.0) == 10
    made.settle(made.reserve(tenant, 240, 10.0), 240, 10.0)
    assert retry(made, tenant, 60, 10.0) == 240
    made.reserve(tenant, 60, 250.0)


def test_concurrency() -> None:
    """A place comes back when its request ends, once."""
    tenant = Tenant("t", concurrency=2)
    made = limits(tenant)
    first = made.reserve(tenant, 1, 0.0)
    made.reserve(tenant, 1, 0.0)
    assert made.running() == {"t": 2}
    assert retry(made, tenant, 1, 0.0) == 1
    made.settle(first, None, 0.0)
    made.settle(first, None, 0.0)
    made.reserve(tenant, 1, 0.0)
    assert retry(made, tenant, 1, 0.0) == 1


def test_a_refusal_takes_nothing() -> None:
    """Neither a request nor a place, when it is the tokens that lack."""
    tenant = Tenant("t", requests_per_minute=2, tokens_per_minute=100, concurrency=5)
    made = limits(tenant)
    made.reserve(tenant, 100, 0.0)
    for _ in range(5):
        retry(made, tenant, 100, 0.0)
    assert dict(made.headers(tenant, 0.0))["x-ratelimit-remaining-requests"] == "1"
    assert made.running() == {"t": 1}


def test_headers() -> None:
    """As OpenAI sends them; none for a limit that is not there."""
    tenant = Tenant("t", requests_per_minute=60, tokens_per_minute=6000)
    made = limits(tenant)
    made.reserve(tenant, 1500, 0.0)
    assert dict(made.headers(tenant, 0.0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert limits(Tenant("u")).headers(Tenant("u"), 0.0) == []
    assert Limits().headers(tenant, 0.0) == []


def test_a_debt_is_shown_as_nothing_left() -> None:
    """With the time until all is back."""
    tenant = Tenant("t", tokens_per_minute=60)
    made = limits(tenant)
    made.settle(made.reserve(tenant, 10, 0.0), 360, 0.0)
    headers = dict(made.headers(tenant, 0.0))
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "6m0s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
        (61.25, "1m1.25s"),
        (100, "1m40s"),
        (-1, "0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """In OpenAI's form, never shorter than they are."""
    assert show_duration(seconds) == text


def told(made: Limits, name: str = "other") -> RouterRecord:
    """What one router tells the others of its tenants."""
    return RouterRecord(id=RouterId(name), tenants=made.uses())


def test_several_routers() -> None:
    """What one has given is gone at the other from the next time that it hears of it, and once."""
    tenant = Tenant("t", requests_per_minute=8, tokens_per_minute=1000, concurrency=2)
    here, there = limits(tenant), limits(tenant)
    here.hear([told(there)], 0.0)
    first = there.reserve(tenant, 100, 0.0)
    there.settle(there.reserve(tenant, 300, 0.0), 200, 0.0)
    for _ in range(3):
        here.hear([told(there)], 0.0)
    headers = dict(here.headers(tenant, 0.0))
    assert headers["x-ratelimit-remaining-requests"] == "6"
    assert headers["x-ratelimit-remaining-tokens"] == "700"
    here.reserve(tenant, 1, 0.0)
    # One runs here and one there.
    assert retry(here, tenant, 1, 0.0) == 1
    there.settle(first, None, 0.0)
    here.hear([told(there)], 0.0)
    here.reserve(tenant, 1, 0.0)


def test_routers_that_come_and_go() -> None:
    """What a router gave before it was heard of is not counted; one that is gone runs nothing."""
    tenant = Tenant("t", requests_per_minute=8, concurrency=2)
    here, there = limits(tenant), limits(tenant)
    for _ in range(2):
        there.reserve(tenant, 1, 0.0)
    here.hear([told(there)], 0.0)
    assert dict(here.headers(tenant, 0.0))["x-ratelimit-remaining-requests"] == "8"
    assert retry(here, tenant, 1, 0.0) == 1
    here.hear([], 0.0)
    here.reserve(tenant, 1, 0.0)


def test_new_limits_keep_what_was_used() -> None:
    """A reload gives nobody a fresh minute; tenants that are gone leave nothing."""
    tenant = Tenant("t", requests_per_minute=10, concurrency=1)
    made = limits(tenant)
    running = made.reserve(tenant, 1, 0.0)
    for _ in range(4):
        made.configure({"t": tenant}, 0.0)
    assert made.running() == {"t": 1}
    larger = Tenant("t", requests_per_minute=20)
    made.configure({"t": larger}, 0.0)
    assert dict(made.headers(larger, 0.0))["x-ratelimit-remaining-requests"] == "18"
    made.configure({}, 0.0)
    assert made.running() == {}
    made.settle(running, None, 0.0)
    assert made.running() == {}


def test_a_tenant_that_nobody_configured() -> None:
    """Has no limits: that of an open router."""
    made = Limits()
    for _ in range(1000):
        made.reserve(Tenant("anonymous"), 1e9, 0.0)
    assert made.running() == {"anonymous": 1000}


def test_estimates() -> None:
    """The prompt and all that the answer may be."""
    assert estimate_tokens(100, 50) == 150
    assert estimate_tokens(100, None, default=20) == 120


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300), st.integers(0, 400)), max_size=200),
    st.integers(10, 1000),
)
def test_the_rate_holds(steps: list[tuple[float, int, int]], per_minute: int) -> None:
    """Over any time, what was used is at most the limit times that time, one minute's worth and
    one request's excess."""
    tenant = Tenant("t", tokens_per_minute=per_minute)
    made = limits(tenant)
    now_s, used, most = 0.0, 0, 0
    for wait_s, estimate, actual in steps:
        now_s += wait_s
        try:
            reservation = made.reserve(tenant, estimate, now_s)
        except TooManyRequests:
            continue
        made.settle(reservation, actual, now_s)
        used += actual
        most = max(most, actual)
        assert used <= per_minute * (1 + now_s / 60) + most + 1


def test_retrying_when_told_succeeds() -> None:
    """Retry-After is enough."""
    tenant = Tenant("t", requests_per_minute=7, tokens_per_minute=100)
    made = limits(tenant)
    now_s = 0.0
    for _ in range(50):
        try:
            made.settle(made.reserve(tenant, 33, now_s), 40, now_s)
        except TooManyRequests as error:
            now_s += error.retry_after_s or 0.0
            made.settle(made.reserve(tenant, 33, now_s), 40, now_s)
    assert now_s > 60
