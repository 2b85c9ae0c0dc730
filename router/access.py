"""Who may call what does not belong to clients: holders of the cluster's or the admin token."""

from __future__ import annotations

from fastapi import Request

from baton.errors import NotAuthorized
from baton.secrets import tokens_equal


def require_token(request: Request, *tokens: str, whose: str = "cluster") -> None:
    """Lets holders of one of the tokens pass.

    Raises:
        NotAuthorized: no token, or another one.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    fits = [tokens_equal(given.strip(), token) for token in tokens]
    if scheme.lower() != "bearer" or not any(fits):
        raise NotAuthorized(
            f"This endpoint needs the {whose} token: send 'Authorization: Bearer <{whose} token>'."
        )
