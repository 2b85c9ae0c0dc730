"""Tenants: who may use the router, by which key, and how much.

It knows nothing of HTTP servers, queues or workers; which request goes first is the business of
``router.flow``.
"""

from __future__ import annotations

from router.tenants.directory import Directory, TenantsStatus, open_source, require_model
from router.tenants.keys import KeyRing, effective_priority, hash_key, new_key
from router.tenants.limits import Headers, Limits, Reservation, estimate_tokens
from router.tenants.redis_source import RedisTenants
from router.tenants.sources import FileBook, FileSource, TenantBook, TenantSource
from router.tenants.spec import (
    ANONYMOUS,
    MAX_PRIORITY,
    Tenant,
    TenantSpec,
    load_tenants,
    parse_tenants,
)

__all__ = [
    "ANONYMOUS",
    "MAX_PRIORITY",
    "Directory",
    "FileBook",
    "FileSource",
    "Headers",
    "KeyRing",
    "Limits",
    "RedisTenants",
    "Reservation",
    "Tenant",
    "TenantBook",
    "TenantSource",
    "TenantSpec",
    "TenantsStatus",
    "effective_priority",
    "estimate_tokens",
    "hash_key",
    "load_tenants",
    "new_key",
    "open_source",
    "parse_tenants",
    "require_model",
]
