"""Limits of a tenant: requests a minute, tokens a minute, requests at a time.

Requests and tokens run out of buckets that hold one minute's worth and refill evenly: a burst of a
whole minute's worth may come at once, and over any longer time the rate holds. Of tokens an
estimate is taken at the start and put right at the end; a request larger than the bucket waits for
a full one and leaves a debt, so that no limit makes a long prompt impossible for ever.

Time comes in with each call. Each router process keeps whole buckets, and takes out of them what
the others say they have given: twice a second, so that together they may give at most what arrives
within that time too much. While they hear nothing of each other, each gives by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from baton.errors import TooManyRequests
from baton.types import RouterId, RouterRecord, TenantUse
from router.tenants.spec import Tenant

_MINUTE_S = 60.0

_BUSY_RETRY_S = 1.0
"""Retry-After where the end of a running request is what is waited for."""

DEFAULT_ANSWER_TOKENS = 256
"""Taken for an answer of unknown length until its real one is known."""

Headers = list[tuple[str, str]]


class Bucket:
    """Refills evenly up to one minute's worth; may be in debt.

    Args:
        per_minute: what it holds, and gets in a minute; more than 0.
        now_s: when it starts, full.
    """

    __slots__ = ("_at_s", "_level", "per_minute")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = per_minute
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What is in it; negative for a debt."""
        if now_s > self._at_s:
            gained = (now_s - self._at_s) * self.per_minute / _MINUTE_S
            self._level = min(self.per_minute, self._level + gained)
            self._at_s = now_s
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until ``amount`` can be taken; 0 if it can now. More than the bucket holds can
        be taken when it is full."""
        missing = min(amount, self.per_minute) - self.level(now_s)
        # A hair below is rounding, not a reason to send somebody away.
        return missing * _MINUTE_S / self.per_minute if missing > 1e-6 else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Takes it, into debt if need be; a negative amount is given back."""
        self._level = min(self.per_minute, self.level(now_s) - amount)

    def resize(self, per_minute: float, now_s: float) -> None:
        """Another limit; the part that is filled stays the same."""
        self._level = self.level(now_s) * per_minute / self.per_minute
        self.per_minute = per_minute

    def headers(self, kind: str, now_s: float) -> Headers:
        """OpenAI's three headers for ``requests`` or ``tokens``."""
        level = self.level(now_s)
        full_s = (self.per_minute - level) * _MINUTE_S / self.per_minute
        return [
            (f"x-ratelimit-limit-{kind}", str(int(self.per_minute))),
            (f"x-ratelimit-remaining-{kind}", str(max(0, int(level + 1e-6)))),
            (f"x-ratelimit-reset-{kind}", show_duration(full_s)),
        ]


class Reservation:
    """What one request has taken; ``Limits.settle`` ends it."""

    __slots__ = ("account", "open", "tokens")

    def __init__(self, account: _Account, tokens: float) -> None:
        self.account = account
        self.tokens = tokens
        self.open = True


class _Account:
    """What one tenant has left."""

    __slots__ = (
        "concurrency",
        "elsewhere",
        "free",
        "given_requests",
        "given_tokens",
        "requests",
        "running",
        "tokens",
    )

    def __init__(self) -> None:
        self.free = True  # no limit at all
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.concurrency: int | None = None
        self.running = 0
        self.elsewhere = 0  # running at other routers
        self.given_requests = 0
        self.given_tokens = 0.0


class Limits:
    """All tenants' accounts at one router process; bounded by the number of tenants."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._heard: dict[RouterId, dict[str, TenantUse]] = {}

    def uses(self) -> dict[str, TenantUse]:
        """What this router has given, for the others; of tenants with limits."""
        return {
            name: TenantUse(account.running, account.given_requests, account.given_tokens)
            for name, account in self._accounts.items()
            if not account.free and account.given_requests
        }

    def hear(self, others: Iterable[RouterRecord], now_s: float) -> None:
        """What other routers have given since they told last is gone here too."""
        heard = {record.id: record.tenants for record in others}
        running: dict[str, int] = {}
        for router_id, uses in heard.items():
            before = self._heard.get(router_id)
            for name, use in uses.items():
                running[name] = running.get(name, 0) + use.running
                account = self._accounts.get(name)
                if account is None or before is None:
                    continue
                last = before.get(name, TenantUse())
                if account.requests is not None:
                    account.requests.take(use.requests - last.requests, now_s)
                if account.tokens is not None:
                    account.tokens.take(use.tokens - last.tokens, now_s)
        self._heard = heard
        for name, account in self._accounts.items():
            account.elsewhere = running.get(name, 0)

    def configure(self, tenants: Mapping[str, Tenant], now_s: float) -> None:
        """Takes over new limits, without forgetting what was used; drops tenants that are gone.
        What their running requests hold is settled with the dropped account."""
        for name in self._accounts.keys() - tenants.keys():
            del self._accounts[name]
        for name, tenant in tenants.items():
            account = self._accounts.setdefault(name, _Account())
            requests, tokens = tenant.requests_per_minute, tenant.tokens_per_minute
            account.requests = self._bucket(account.requests, requests, now_s)
            account.tokens = self._bucket(account.tokens, tokens, now_s)
            account.concurrency = tenant.concurrency
            account.free = (
                account.requests is None and account.tokens is None and account.concurrency is None
            )

    def reserve(self, tenant: Tenant, tokens: float, now_s: float) -> Reservation:
        """Takes one request and an estimate of its tokens, all or nothing.

        Args:
            tokens: prompt and answer; see :func:`estimate_tokens`.

        Raises:
            TooManyRequests: a limit is reached; with ``retry_after_s``.
        """
        account = self._accounts.get(tenant.name)
        if account is None:
            # Without keys there is one tenant, without limits, that nobody configured.
            account = self._accounts[tenant.name] = _Account()
        if account.free:
            account.running += 1
            return Reservation(account, tokens)
        running = account.running + account.elsewhere
        if account.concurrency is not None and running >= account.concurrency:
            raise TooManyRequests(
                f"Limit reached for {tenant.name}: {account.concurrency} requests at a time.",
                retry_after_s=_BUSY_RETRY_S,
            )
        for bucket, amount, kind in (
            (account.requests, 1.0, "requests"),
            (account.tokens, tokens, "tokens"),
        ):
            wait_s = bucket.wait_s(amount, now_s) if bucket is not None else 0.0
            if bucket is not None and wait_s > 0:
                raise TooManyRequests(
                    f"Limit reached for {tenant.name}: {int(bucket.per_minute)} {kind} per minute. "
                    f"Requested {int(amount)}; try again in {show_duration(wait_s)}.",
                    retry_after_s=float(max(1, math.ceil(wait_s))),
                )
        if account.requests is not None:
            account.requests.take(1.0, now_s)
        if account.tokens is not None:
            account.tokens.take(tokens, now_s)
        account.running += 1
        account.given_requests += 1
        account.given_tokens += tokens
        return Reservation(account, tokens)

    def settle(self, reservation: Reservation, used_tokens: float | None, now_s: float) -> None:
        """Ends a request; may be repeated.

        Args:
            used_tokens: prompt and answer as they were; 0 for a request that never ran; None where
                it is not known, which leaves the estimate standing.
        """
        if not reservation.open:
            return
        reservation.open = False
        account = reservation.account
        account.running -= 1
        if account.tokens is not None and used_tokens is not None:
            account.tokens.take(used_tokens - reservation.tokens, now_s)
            account.given_tokens += used_tokens - reservation.tokens

    def headers(self, tenant: Tenant, now_s: float) -> Headers:
        """OpenAI's rate limit headers, for the limits that the tenant has."""
        account = self._accounts.get(tenant.name)
        if account is None or account.free:
            return []
        found: Headers = []
        if account.requests is not None:
            found += account.requests.headers("requests", now_s)
        if account.tokens is not None:
            found += account.tokens.headers("tokens", now_s)
        return found

    def running(self) -> dict[str, int]:
        """Requests at a time now, by tenant; only tenants that have some."""
        return {
            name: account.running for name, account in self._accounts.items() if account.running
        }

    def _bucket(self, old: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
        if per_minute is None:
            return None
        if old is None:
            return Bucket(per_minute, now_s)
        if old.per_minute != per_minute:
            old.resize(per_minute, now_s)
        return old


def estimate_tokens(
    prompt_tokens: float, max_tokens: int | None, default: int = DEFAULT_ANSWER_TOKENS
) -> float:
    """What a request is charged at its start: a lower bound on its prompt, and all the answer that
    it may make or, where it names no bound, a default."""
    return prompt_tokens + (default if max_tokens is None else max_tokens)


def show_duration(seconds: float) -> str:
    """As OpenAI's headers write it: ``120ms``, ``1.5s``, ``6m0s``."""
    milliseconds = max(0, math.ceil(seconds * 1000 - 1e-6))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"
