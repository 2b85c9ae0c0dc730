"""HTTP/1.1 on the hot path: the server that clients reach, and the client that reaches engines.

It exists because frameworks cost more per request than all that the router itself does. Bytes are
parsed by httptools and written straight into the transport; one task serves one request, and no
task wakes for a chunk of a stream. It knows nothing of models, policies or tenants, and refuses
HTTP/2, WebSockets, compression, redirects and cookies: a proxy in front has those.
"""

from router.wire.client import Answer, Leg, Upstream
from router.wire.exchange import ClientGone, Exchange, Handler
from router.wire.leg import ChunkSink
from router.wire.limits import WireLimits
from router.wire.server import HttpServer

__all__ = [
    "Answer",
    "ChunkSink",
    "ClientGone",
    "Exchange",
    "Handler",
    "HttpServer",
    "Leg",
    "Upstream",
    "WireLimits",
]
