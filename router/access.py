"""Who may call what does not belong to clients: holders of the cluster's or the admin token."""

from __future__ import annotations

from fastapi import Request

from baton.errors import NotAuthorized
from baton.secrets import tokens_equal


def require_token(request: Request, *tokens: str, whose: str = "cluster") -> None:
    """Lets holders of one of the tokens pass; raises like ``require_bearer``."""
    given = request.headers.get("authorization")
    raw = None if given is None else given.encode("latin-1", "replace")
    require_bearer(raw, *tokens, whose=whose)


def require_bearer(authorization: bytes | None, *tokens: str, whose: str = "cluster") -> None:
    """Lets holders of one of the tokens pass.

    Args:
        authorization: the header of that name, as it came.
        tokens: any of them will do.
        whose: what the token is called, for the error.

    Raises:
        NotAuthorized: no token, or another one.
    """
    scheme, _, given = (authorization or b"").decode("latin-1").partition(" ")
    fits = [tokens_equal(given.strip(), token) for token in tokens]
    if scheme.lower() != "bearer" or not any(fits):
        raise NotAuthorized(
            f"This endpoint needs the {whose} token: send 'Authorization: Bearer <{whose} token>'."
        )
