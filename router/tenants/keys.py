"""API keys: made once, kept as hashes, looked up per request.

A key is ``bt-`` and 43 characters of 256 random bits. So much chance cannot be guessed or searched,
which is why one fast SHA-256 without salt is enough, where a password would need a slow hash.

On timing: nothing here compares a presented key with a stored one character by character. The ring
looks the key's digest up in a dictionary. Where a lookup takes longer for some digests than for
others, an attacker would learn something about digests of keys that he made up, and would have to
find a preimage of SHA-256 to use it. The cache in front is keyed by the header itself, through
Python's seeded hash; bytes are compared only between headers of the same hash, so a guess that
shares a prefix with a real key takes no other path than one that does not.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping

from baton.errors import InvalidRequest, NotAuthorized
from router.tenants.spec import MAX_PRIORITY, Tenant, TenantSpec, tenant_of

KEY_PREFIX = "bt-"
_KEY_BYTES = 32
_KEY = re.compile(rb"bt-[A-Za-z0-9_-]{43}")
_MAX_HEADER_BYTES = 256
"""Longer ones hold no key of ours and are not looked into."""

CACHE_ENTRIES = 4096
"""Headers whose tenant is remembered, to spare the hash; the oldest makes room."""

_INT = re.compile(rb"[+-]?[0-9]{1,6}")


def new_key() -> str:
    """A key in the clear; nobody but its owner should ever hold it."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def hash_key(key: str) -> str:
    """``sha256:<hex>`` of a key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class KeyRing:
    """Tenants by key; immutable but for its cache. A reload makes a new one."""

    def __init__(self, tenants: Mapping[str, TenantSpec]) -> None:
        self.tenants = {name: tenant_of(name, spec) for name, spec in tenants.items()}
        self._by_digest = {
            bytes.fromhex(key_hash.removeprefix("sha256:")): self.tenants[name]
            for name, spec in tenants.items()
            for key_hash in spec.key_hashes
        }
        self._cache: dict[bytes, Tenant] = {}

    def find(self, authorization: bytes | None, api_key: bytes | None = None) -> Tenant:
        """Whose key a request shows.

        Args:
            authorization: the header ``Authorization``, ``Bearer <key>``; wins over ``api_key``.
            api_key: the header ``x-api-key``, for the endpoints that take it.

        Raises:
            NotAuthorized: no key, or one that is nobody's.
        """
        if authorization is not None:
            header = authorization
        elif api_key is not None:
            # As if it had come in the other header: one form, one cache.
            header = b"Bearer " + api_key
        else:
            raise NotAuthorized(
                "You did not provide an API key. Send it as 'Authorization: Bearer <key>'."
            )
        tenant = self._cache.get(header)
        return tenant if tenant is not None else self._look_up(header)

    def _look_up(self, header: bytes) -> Tenant:
        """The way past the cache. Only keys that exist enter it: guesses must not push them out."""
        scheme, _, rest = header.strip().partition(b" ")
        key = rest.strip() if scheme.lower() == b"bearer" else b""
        tenant = None
        if len(header) <= _MAX_HEADER_BYTES and _KEY.fullmatch(key):
            tenant = self._by_digest.get(hashlib.sha256(key).digest())
        if tenant is None:
            # Not repeated in the message: it may be a real key of somewhere else.
            raise NotAuthorized("Incorrect API key provided.")
        if len(self._cache) >= CACHE_ENTRIES:
            del self._cache[next(iter(self._cache))]
        self._cache[header] = tenant
        return tenant


def effective_priority(tenant: Tenant, header: bytes | None) -> int:
    """A request's priority: its tenant's, or what ``x-baton-priority`` asks for if that is lower.
    Asking for more is no error and changes nothing.

    Raises:
        InvalidRequest: the header is not a whole number.
    """
    if header is None:
        return tenant.priority
    text = header.strip()
    if not _INT.fullmatch(text):
        raise InvalidRequest("The header x-baton-priority must be a whole number.")
    return max(-MAX_PRIORITY, min(tenant.priority, int(text)))
