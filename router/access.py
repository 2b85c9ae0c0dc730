"""Who may call the endpoints that belong to the cluster: holders of the cluster token."""

from __future__ import annotations

from fastapi import Request

from baton.errors import NotAuthorized
from baton.secrets import tokens_equal


def require_cluster_token(request: Request, token: str) -> None:
    """Lets holders of the cluster token pass.

    Raises:
        NotAuthorized: no token, or another one.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not tokens_equal(given.strip(), token):
        raise NotAuthorized(
            "This endpoint is for the cluster: send 'Authorization: Bearer <cluster token>'."
        )
