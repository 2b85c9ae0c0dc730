"""The tenants of a running router: read at the start, kept up to date, asked per request.

What cannot be read never replaces what could: a bad file or a Redis that is away leaves the last
good tenants in force, is logged once with its reason, and stands in the status. A router that was
told to ask for keys and has none yet lets nobody in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baton.clock import Clock, until_beat_s
from baton.errors import BatonError, NotAllowed, SettingsError, StoreUnavailable
from baton.store import is_redis_url
from router.tenants.keys import KeyRing
from router.tenants.redis_source import RedisTenants
from router.tenants.sources import FileSource, TenantSource
from router.tenants.spec import ANONYMOUS, Tenant

log = logging.getLogger("baton.router.tenants")

POLL_S = 1.0
"""Between two looks at the source."""


@dataclass(frozen=True, slots=True)
class TenantsStatus:
    """For the admin API.

    Attributes:
        source: file or address, without credentials; None for an open router.
        tenants: how many are in force.
        age_s: since they were read last; None before the first time, and for an open router.
        problem: why the source cannot be used now, or "".
        skipped: entries of the source that cannot be used.
    """

    source: str | None
    tenants: int
    age_s: float | None
    problem: str = ""
    skipped: tuple[str, ...] = ()


class Directory:
    """Tenants by key.

    Args:
        source: where they are kept; None opens the router to everybody, as tenant ``anonymous``.
        clock: paces nothing but the age in the status.
        on_change: told of a new set, for the limits.
    """

    def __init__(
        self,
        source: TenantSource | None,
        clock: Clock,
        on_change: Callable[[dict[str, Tenant]], None] | None = None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._on_change = on_change
        self._anonymous = Tenant(ANONYMOUS) if source is None else None
        self._ring: KeyRing | None = None
        self._read_s: float | None = None
        self._problem = ""
        self._skipped: tuple[str, ...] = ()

    async def start(self) -> None:
        """Reads for the first time.

        Raises:
            SettingsError: a file that cannot be used: the operator stands by and can mend it. A
                Redis that is away is waited for; until then nobody gets in.
        """
        await self.refresh()
        if self._ring is None and isinstance(self._source, FileSource):
            raise SettingsError(self._problem)

    async def refresh(self) -> None:
        """Looks at the source once; never raises but when cancelled."""
        if self._source is None:
            return
        try:
            found = await self._source.read()
        except BatonError as error:
            self._trouble(error.message)
            return
        except Exception as error:
            log.exception("reading tenants from %s failed", self._source.describe())
            self._trouble(f"reading failed: {type(error).__name__}")
            return
        if found is None:
            return
        self._ring = KeyRing(found)
        self._read_s = self._clock.monotonic_s()
        self._problem = ""
        skipped = self._source.problems()
        if skipped != self._skipped:
            for line in skipped[:10]:
                log.error("tenant left as it was: %s", line)
        self._skipped = skipped
        log.info("%d tenants from %s", len(found), self._source.describe())
        if self._on_change is not None:
            self._on_change(self._ring.tenants)

    async def keep_fresh(self) -> None:
        """Looks at the source each second, until cancelled; ends where there is none."""
        if self._source is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(until_beat_s(loop.time(), POLL_S))
            await self.refresh()

    async def close(self) -> None:
        """Lets go of the source's connections."""
        if self._source is not None:
            await self._source.close()

    def tenant(self, authorization: bytes | None, api_key: bytes | None = None) -> Tenant:
        """Whose request it is; see :meth:`KeyRing.find`.

        Raises:
            NotAuthorized: no key, or one that is nobody's.
            StoreUnavailable: keys are asked for, and could not be read yet.
        """
        if self._anonymous is not None:
            return self._anonymous
        if self._ring is None:
            raise StoreUnavailable("API keys cannot be checked yet; try again in a moment.")
        return self._ring.find(authorization, api_key)

    def status(self) -> TenantsStatus:
        """Where the tenants come from and how they are."""
        return TenantsStatus(
            source=self._source.describe() if self._source is not None else None,
            tenants=len(self._ring.tenants) if self._ring is not None else 0,
            age_s=None if self._read_s is None else self._clock.monotonic_s() - self._read_s,
            problem=self._problem,
            skipped=self._skipped,
        )

    def _trouble(self, message: str) -> None:
        if message != self._problem:
            kept = "the last good ones stay in force" if self._ring else "nobody gets in"
            log.error("tenants cannot be read, %s: %s", kept, message)
        self._problem = message


def open_source(where: str, clock: Clock) -> TenantSource:
    """The source that a setting names: the URL of a Redis (see docs/redis.md), or a file's path.

    Raises:
        SettingsError: a URL that cannot be used.
    """
    if is_redis_url(where):
        return RedisTenants(where, clock)
    return FileSource(Path(where).expanduser())


def require_model(tenant: Tenant, model: str) -> None:
    """Lets a tenant pass that may use the model.

    The status is 403, which OpenAI gives a project without access to a model that exists; its
    clients raise ``PermissionDeniedError``.

    Raises:
        NotAllowed: it may not.
    """
    if not tenant.allows(model):
        raise NotAllowed(
            f"{tenant.name} does not have access to the model {model!r}.", param="model"
        )
