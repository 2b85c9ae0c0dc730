"""What one client may take of the server: bytes, connections and time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Limits of the server. Times are looked at once a second, so they are kept to about that.

    Attributes:
        header_bytes: request line and headers together; 431 above.
        headers: number of headers; 431 above.
        head_s: a head must be whole this long after its first byte; 408 after.
        idle_s: a connection on which nothing is asked is closed after this. Longer than the idle
            time of the load balancers in front, or they send into a connection that is closing.
        connections: open at a time; 503 above.
        write_s: a client that takes nothing of its answer for so long is cut.
        app_body_bytes: the body of a request to the ASGI application; 413 above. Requests to
            handlers give their own limit.
        app_body_s: for such a body to arrive.
    """

    header_bytes: int = 32 * 1024
    headers: int = 100
    head_s: float = 10.0
    idle_s: float = 75.0
    connections: int = 10_000
    write_s: float = 60.0
    app_body_bytes: int = 16 * 1024 * 1024
    app_body_s: float = 60.0
