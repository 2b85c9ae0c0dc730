"""Who has had how much: the accounts by which tenants of one priority band take turns.

Start-time fair queueing: every account has a tag, the virtual time up to which it has been served,
which grows by tokens / weight with each request; the smallest tag goes next. Three changes fit it
to engines that work on many requests at once, whose length is known only at their end:

- A tenant that comes back starts at the band's virtual time and not at its own old tag, so that
  nobody saves up turns while idle.
- It gets a credit for what the others hold in the engines at that moment (its fair part of the
  tokens that are out), so that a burst that took every place first does not also keep its half.
  The credit is bounded by what is out, and nothing out means no credit.
- The tag is corrected by the tokens really used when a request ends.

Sources: start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996; with several requests out,
Jin, Chase and Kaur, SIGMETRICS 2004; counters of tokens, Sheng et al., OSDI 2024. Nothing here
reads a clock or waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Waiting:
    """One request in the queue.

    Attributes:
        account: whose it is.
        tokens: what it is charged until its end tells the real number.
        enqueued_s: when it came.
        expires_s: when waiting on makes no sense: end of its time in the queue, or the client's
            deadline.
        seq: order of arrival, given by the queue.
        queued: whether it stands in the queue.
    """

    account: Account
    tokens: float
    enqueued_s: float
    expires_s: float
    seq: int = 0
    queued: bool = False


@dataclass(slots=True, eq=False)
class Account:
    """One tenant in one band of one model.

    Attributes:
        weight: its share of the band against other tenants' weights; more than 0.
        tag: virtual time up to which it has been served; ``wake`` comes before it counts.
        out, tokens_out: requests at the engines, and what they were charged.
        seen_s: when it last sent a request.
        waiting: its requests in the queue, by order of arrival.
    """

    tenant: str
    band: Band
    weight: float
    tag: float = -math.inf
    out: int = 0
    tokens_out: float = 0.0
    seen_s: float = 0.0
    waiting: OrderedDict[int, Waiting] = field(default_factory=OrderedDict)

    def wake(self) -> None:
        """Brings the tag of an account without waiting requests up to the present."""
        band = self.band
        credit = band.tokens_out / band.weight - self.tokens_out / self.weight
        start = band.virtual - credit if credit > 0 else band.virtual
        if self.tag < start:
            self.tag = start

    def take(self, tokens: float) -> None:
        """Charges a request that goes out."""
        band = self.band
        if self.tag > band.virtual:
            band.virtual = self.tag
        self.tag += tokens / self.weight
        self.out += 1
        self.tokens_out += tokens
        band.tokens_out += tokens
        band.lane.out += 1

    def give_back(self, tokens: float, used: float | None) -> None:
        """A request charged ``tokens`` is over; ``used`` is what it really took, if known."""
        self.out -= 1
        self.tokens_out -= tokens
        self.band.tokens_out -= tokens
        self.band.lane.out -= 1
        if used is not None:
            self.tag += (used - tokens) / self.weight

    def over_share(self, places: float) -> bool:
        """Whether it holds its fair part of ``places``, or more, while it is not alone.

        The others are the tenants of its band and of higher ones that were seen lately: nobody
        has to keep places free for a lower band.
        """
        weight = self.band.lane.weight_from(self.band.priority)
        return weight > self.weight and self.out * weight >= places * self.weight


@dataclass(slots=True, eq=False)
class Band:
    """The tenants of one priority that ask for one model.

    Attributes:
        virtual: virtual time: the largest tag at which a request went out.
        weight: sum of the accounts' weights.
        tokens_out: sum of what is charged for requests at the engines.
        backlog: the accounts with waiting requests.
    """

    lane: Lane
    priority: int
    virtual: float = 0.0
    weight: float = 0.0
    tokens_out: float = 0.0
    accounts: dict[str, Account] = field(default_factory=dict)
    backlog: dict[str, Account] = field(default_factory=dict)

    def next_account(self) -> Account | None:
        """The one whose turn it is; of equals, the one that has waited longer."""
        best: Account | None = None
        for account in self.backlog.values():
            if best is None or account.tag < best.tag:
                best = account
        return best


@dataclass(slots=True, eq=False)
class Lane:
    """One model: requests for different models never wait for each other.

    Attributes:
        out: requests at the engines.
        waiting: requests in the queue.
        bands: by priority.
    """

    model: str
    out: int = 0
    waiting: int = 0
    bands: dict[int, Band] = field(default_factory=dict)

    def account(self, tenant: str, priority: int, weight: float, now_s: float) -> Account:
        """The tenant's account, made if it has none; its weight is what was said last."""
        band = self.bands.get(priority)
        if band is None:
            band = self.bands[priority] = Band(self, priority)
        account = band.accounts.get(tenant)
        if account is None:
            account = band.accounts[tenant] = Account(tenant, band, weight)
            band.weight += weight
        elif account.weight != weight:
            band.weight += weight - account.weight
            account.weight = weight
        account.seen_s = now_s
        return account

    def weight_from(self, priority: int) -> float:
        """Sum of the weights in this band and above."""
        return sum(band.weight for band in self.bands.values() if band.priority >= priority)

    def keeps_for_others(self, asking: Account, places: float) -> bool:
        """Whether somebody else of the band or above, seen lately, holds less than its fair part
        of ``places`` and has nothing waiting: its next request would need a free one. Whoever has
        something waiting comes in its turn."""
        weight = self.weight_from(asking.band.priority)
        return any(
            account is not asking
            and not account.waiting
            and account.out * weight < places * account.weight
            for band in self.bands.values()
            if band.priority >= asking.band.priority
            for account in band.accounts.values()
        )

    def top(self) -> Band | None:
        """The highest band in which somebody waits."""
        best: Band | None = None
        for band in self.bands.values():
            if band.backlog and (best is None or band.priority > best.priority):
                best = band
        return best

    def items(self) -> Iterator[Waiting]:
        """All that wait, in no order."""
        for band in self.bands.values():
            for account in band.backlog.values():
                yield from account.waiting.values()

    def forget(self, before_s: float) -> None:
        """Drops the accounts that hold nothing and were not seen since ``before_s``."""
        for band in list(self.bands.values()):
            for account in list(band.accounts.values()):
                if not account.out and not account.waiting and account.seen_s < before_s:
                    del band.accounts[account.tenant]
            # Added up again, so that rounding errors do not pile up over months.
            band.weight = sum(account.weight for account in band.accounts.values())
            band.tokens_out = sum(account.tokens_out for account in band.accounts.values())
            if not band.accounts:
                del self.bands[band.priority]
