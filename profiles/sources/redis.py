"""Profiles in a Redis, for routers without a cluster around them, and the way to write them there.

One hash of texts with the keys of a ConfigMap (``NAME.yaml`` and ``active``), and a number that
every change raises. Routers ask for the number each second and read the hash when it has moved, or
twice a minute in any case, for whoever writes the hash by other means. The number is raised by a
random step: a Redis that lost changes and takes new ones does not come to a number that it had.
Every operation has a deadline.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from baton.clock import Clock, SystemClock
from baton.errors import SettingsError, SourceUnavailable
from baton.store.redis_client import (
    CLIENT_ERRORS,
    drop_connections,
    heed_cancellation,
    open_client,
    refuses_us,
)
from baton.store.redis_url import parse_redis_url
from profiles.document import MAX_BYTES, show
from profiles.sections import NAME_PATTERN
from profiles.sources.base import ACTIVE, MAX_TEXTS, SUFFIXES, Bundle, Told
from profiles.sources.texts import Entry, bundle_of
from profiles.sources.waiting import POLL_S, polled

# Braces keep both in one slot of a Redis Cluster.
TEXTS = "baton:{profiles}:texts"
VERSION = "baton:{profiles}:version"

_KEYS = (TEXTS, VERSION)
_OP_S = 2.0
_DEADLINE_S = 3 * _OP_S
_CONNECTIONS = 4
_REREAD_S = 30.0
_MAX_FIELDS = 2 * MAX_TEXTS
_MAX_ALL_BYTES = 8 * 1024 * 1024
_MAX_NAME = 100
_MAX_STEP = 2**40
"""Of the number of changes, which has room for millions of such."""

# ARGV: the number that is known, or nothing; how many fields are read at most.
_LOOK = """
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] then return {version} end
local count = redis.call('HLEN', KEYS[1])
if count > tonumber(ARGV[2]) then return {version, count} end
local bytes = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  bytes = bytes + redis.call('HSTRLEN', KEYS[1], field)
end
if bytes > tonumber(ARGV[3]) then return {version, count, bytes} end
return {version, count, redis.call('HGETALL', KEYS[1])}
"""

# ARGV: the field; its new text, or nothing to remove it; how many fields there may be; the step.
# Answers 1 for a change, 0 for none, -1 where there is no room.
_WRITE = """
local field, text, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local before = redis.call('HGET', KEYS[1], field)
if text == '' then
  if not before then return 0 end
  redis.call('HDEL', KEYS[1], field)
elseif before == text then
  return 0
elseif not before and redis.call('HLEN', KEYS[1]) >= most then
  return -1
else
  redis.call('HSET', KEYS[1], field, text)
end
redis.call('INCRBY', KEYS[2], ARGV[4])
return 1
"""


class RedisProfiles:
    """A :class:`profiles.sources.base.ProfileSource`, and what the commands write with.

    Args:
        url: of a Redis, in the forms of docs/redis.md; may hold a password, and is never repeated.
        clock: paces the reading of everything.
        every_s: seconds between two looks.

    Raises:
        SettingsError: the URL cannot be used.
    """

    def __init__(self, url: str, clock: Clock | None = None, *, every_s: float = POLL_S) -> None:
        address = parse_redis_url(url)
        self._where = address.describe()
        self._clock = clock or SystemClock()
        self._every_s = every_s
        # Not typed: the client leaves open whether answers are text, which they are not.
        self._client: Any = open_client(
            address,
            connect_timeout_s=_OP_S,
            op_timeout_s=_OP_S,
            max_connections=_CONNECTIONS,
        )

    def describe(self) -> str:
        """The address, without credentials."""
        return f"profiles in {self._where}"

    async def read(self) -> Bundle:
        """See ``ProfileSource``."""
        _, bundle = await self._look(b"-")
        assert bundle is not None, "no version is called -"
        return bundle

    def changes(self) -> AsyncGenerator[Bundle]:
        """See ``ProfileSource``."""
        known = b"-"
        read_s: float | None = None

        async def read() -> Bundle | None:
            nonlocal known, read_s
            now_s = self._clock.monotonic_s()
            fresh = read_s is not None and now_s - read_s < _REREAD_S
            try:
                known, bundle = await self._look(known if fresh else b"-")
            except SourceUnavailable:
                # What comes back may be an empty Redis that counts from the start.
                read_s = None
                raise
            if bundle is not None:
                read_s = now_s
            return bundle

        return polled(read, what=self.describe(), every_s=self._every_s)

    async def tell(self, told: Told) -> None:
        """Nothing: whoever asks has the routers' admin API."""

    async def close(self) -> None:
        """Closes the connections."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._client.aclose()
        except (*CLIENT_ERRORS, TimeoutError):
            # Gone already, and with them what there was to close.
            pass

    async def put(self, name: str, text: str) -> bool:
        """Writes a profile's text, new or in the place of the one before; what is in it is for the
        caller to check. Whether that changed anything.

        Raises:
            SettingsError: the name or the text cannot be stored, or there are too many.
            SourceUnavailable: the Redis cannot be reached.
        """
        raw = text.encode("utf-8")
        if not raw.strip() or len(raw) > MAX_BYTES:
            raise SettingsError(f"the text of a profile has 1 to {MAX_BYTES} bytes")
        return await self._write(f"{_checked(name)}{SUFFIXES[0]}", raw)

    async def remove(self, name: str) -> bool:
        """Removes a profile's text; whether there was one. ``active`` stays as it is.

        Raises:
            SettingsError: no profile can have that name.
            SourceUnavailable: the Redis cannot be reached.
        """
        fields = [f"{_checked(name)}{suffix}" for suffix in SUFFIXES]
        return any([await self._write(field, b"") for field in fields])

    async def set_active(self, name: str) -> bool:
        """Says which profile should be active, here or built in; empty for none in particular.
        Whether that changed anything.

        Raises:
            SettingsError: no profile can have that name.
            SourceUnavailable: the Redis cannot be reached.
        """
        return await self._write(ACTIVE, _checked(name).encode() if name else b"")

    async def _write(self, field: str, raw: bytes) -> bool:
        # A full house must not keep anybody from switching.
        most = _MAX_FIELDS if field == ACTIVE else MAX_TEXTS + 1
        answer = await self._run(_WRITE, field, raw, most, 1 + secrets.randbelow(_MAX_STEP))
        if answer < 0:
            raise SettingsError(f"{self.describe()}: {MAX_TEXTS} profiles are there; remove some")
        return bool(answer)

    async def _look(self, known: bytes) -> tuple[bytes, Bundle | None]:
        """The number of changes, and what is there unless that is the number known."""
        version, *rest = await self._run(_LOOK, known, _MAX_FIELDS, _MAX_ALL_BYTES)
        if not rest:
            return version, None
        if len(rest) < 2:
            raise SourceUnavailable(
                f"{self.describe()}: the hash {TEXTS} has {rest[0]} fields; {MAX_TEXTS} profiles "
                "are read"
            )
        if isinstance(rest[1], int):
            raise SourceUnavailable(
                f"{self.describe()}: the hash {TEXTS} has {rest[1]} bytes; at most "
                f"{_MAX_ALL_BYTES} are read"
            )
        pairs = zip(rest[1][::2], rest[1][1::2], strict=True)
        return version, bundle_of(self._entry(field, raw) for field, raw in pairs)

    def _entry(self, field: bytes, raw: bytes) -> Entry:
        key = field.decode("utf-8", "replace")
        return Entry(key, f"{self._where}, hash {TEXTS}, field {key}", raw)

    async def _run(self, script: str, *arguments: str | bytes | int) -> Any:
        # Sent as a whole each time: it is shorter than the profiles, and asked once a second.
        async with self._bounded():
            return await self._client.eval(script, len(_KEYS), *_KEYS, *arguments)

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """A deadline, and our errors instead of the client's."""
        what = self.describe()
        try:
            with heed_cancellation():
                async with asyncio.timeout(_DEADLINE_S):
                    yield
        except (*CLIENT_ERRORS, TimeoutError) as error:
            if refuses_us(error):
                raise SourceUnavailable(
                    f"{what}: our credentials are refused; check user and password in the URL"
                ) from error
            if "READONLY" in str(error):
                # It was a master once; new connections find the new one.
                await drop_connections(self._client)
            # The client's own text may hold an address, never a password.
            raise SourceUnavailable(f"{what}: cannot be reached") from error


def _checked(name: str) -> str:
    """A name that a profile can have.

    Raises:
        SettingsError: it is none.
    """
    if len(name) > _MAX_NAME or not re.fullmatch(NAME_PATTERN, name):
        raise SettingsError(
            f"{show(name)} is no name for a profile: small letters, digits and dashes"
        )
    return name
