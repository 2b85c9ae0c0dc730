"""Every error that Baton raises on purpose, in one tree.

It exists so that a caller can tell from the class alone who is at fault, what an
OpenAI client should be told, and whether trying again can help. Foreign exceptions
(aiohttp, redis, pydantic, vLLM's JSON errors) are translated where they enter and
chained with ``from``; nothing above the adapters sees them.

::

    BatonError
    ├── ClientError                the request cannot be served as it stands
    │   ├── InvalidRequest         400  malformed JSON, wrong types, unknown combination
    │   ├── ContextLengthExceeded  400  prompt (plus answer) does not fit the model
    │   ├── NotAuthorized          401  missing or wrong key or cluster token
    │   ├── NotAllowed             403  a sound key, but not for this model
    │   ├── ModelNotFound          404  no worker serves the model asked for
    │   ├── WorkerNotFound         404  the admin API was asked about a worker that is not there
    │   ├── ProfileNotFound        404  the admin API was asked about a profile that is not there
    │   └── BodyTooLarge           413  body over the router's limit
    ├── Overload                   the system is sound but cannot take it now
    │   ├── NoWorker               503  no ready worker of the role needed
    │   ├── TooManyRequests        429  a queue, a bound or a tenant's limit is reached
    │   └── DeadlineExceeded       504  the client's deadline passed while it waited
    ├── PeerFault                  a worker or the store failed us
    │   ├── WorkerUnreachable      502  connection refused, reset, name not resolved
    │   ├── WorkerTimeout          504  a leg passed its deadline
    │   ├── WorkerFailed           502  the engine answered 5xx or an error event
    │   ├── HandoffUnusable        502  prefill answered without usable transfer parameters
    │   ├── StreamBroken           502  a stream ended without its terminator
    │   ├── StoreUnavailable       503  Redis cannot be reached
    │   └── SourceUnavailable      503  the source of profiles cannot be read
    │       └── KubernetesUnavailable   the Kubernetes API gives no answer
    ├── OperatorError              settings or files that a person has to mend
    │   ├── SettingsError               a flag, environment variable or file is wrong
    │   ├── ProfileError                a serving profile is wrong (file, line, field)
    │   ├── ModelError                  model files missing or unreadable
    │   ├── EngineStartError            the engine did not come up
    │   ├── WorkloadError               a workload or trace file is wrong (file, line, field)
    │   └── TargetError                 an endpoint cannot be measured as asked
    └── OurFault                   a bug in Baton; must never be caught to go on
        └── IllegalTransition           a handoff was asked to do the impossible
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class BatonError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status the router answers with.
        openai_type: the ``type`` field of the OpenAI error object.
        code: the ``code`` field of the OpenAI error object, or None.
        retry_can_help: whether the same request may succeed later or elsewhere.
        param: the request field at fault, where one can be named.
    """

    status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retry_can_help: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI error object: ``{"error": {message, type, param, code}}``."""
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": self.param,
                "code": self.code,
            }
        }


class ClientError(BatonError):
    """The client has to change the request."""

    status = 400
    openai_type = "invalid_request_error"


class InvalidRequest(ClientError):
    """Malformed JSON, a wrong type, an unusable combination of options."""


class ContextLengthExceeded(ClientError):
    """The prompt, or the prompt and the answer asked for, do not fit the model."""

    code = "context_length_exceeded"


class NotAuthorized(ClientError):
    """A key or token is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class NotAllowed(ClientError):
    """The key is sound, but what it asks for is not open to it."""

    status = 403
    code = "permission_denied"


class ModelNotFound(ClientError):
    """No worker of the registry serves the model."""

    status = 404
    code = "model_not_found"


class WorkerNotFound(ClientError):
    """An operator named a worker, or a pair of them, that is not there."""

    status = 404
    code = "worker_not_found"


class ProfileNotFound(ClientError):
    """An operator named a profile that is not there."""

    status = 404
    code = "profile_not_found"


class BodyTooLarge(ClientError):
    """The body is over the router's limit; it was not read to its end."""

    status = 413
    code = "request_too_large"


class Overload(BatonError):
    """Sound, but cannot take the request now; the router adds Retry-After.

    Attributes:
        retry_after_s: seconds after which a try may succeed, where that can be told.
    """

    status = 503
    openai_type = "server_error"
    retry_can_help = True

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class NoWorker(Overload):
    """No ready worker of the role that the request needs."""

    code = "no_worker_available"


class TooManyRequests(Overload):
    """A queue is full, the bound on requests in flight or a tenant's limit is reached."""

    status = 429
    openai_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class DeadlineExceeded(Overload):
    """The deadline that the client gave passed before the request could start."""

    status = 504
    code = "deadline_exceeded"


class PeerFault(BatonError):
    """A worker or the store failed; another worker or a later try may not."""

    status = 502
    retry_can_help = True


class WorkerUnreachable(PeerFault):
    """No connection, or it broke before an answer."""

    code = "worker_unreachable"


class WorkerTimeout(PeerFault):
    """A leg of the request passed its deadline."""

    status = 504
    code = "worker_timeout"


class WorkerFailed(PeerFault):
    """The engine answered with a 5xx status or an error event."""

    code = "worker_failed"


class HandoffUnusable(PeerFault):
    """Prefill answered, but with nothing that decode could pull."""

    code = "handoff_unusable"


class StreamBroken(PeerFault):
    """A stream ended in the middle, after the client had its first bytes."""

    code = "stream_broken"


class StoreUnavailable(PeerFault):
    """The state store cannot be reached."""

    status = 503
    code = "store_unavailable"


class SourceUnavailable(PeerFault):
    """A source of profiles cannot be read."""

    status = 503
    code = "source_unavailable"


class KubernetesUnavailable(SourceUnavailable):
    """The Kubernetes API gives no answer."""

    code = "kubernetes_unavailable"


class OperatorError(BatonError):
    """A person has to mend settings, files or the machine; the message says how."""


class SettingsError(OperatorError):
    """A flag, an environment variable or a settings file is wrong."""


class ProfileError(OperatorError):
    """A serving profile is wrong.

    Attributes:
        problems: one line each, ``file:line: field.path: what is wrong``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ModelError(OperatorError):
    """Model files are missing, unreadable or of an unsupported kind."""


class EngineStartError(OperatorError):
    """The engine did not come up; the message holds the end of its log."""


class WorkloadError(OperatorError):
    """A benchmark's workload or trace file is wrong; the message names file, line and field."""


class TargetError(OperatorError):
    """An endpoint cannot be measured as asked: not there, no such model, an option refused."""


class OurFault(BatonError):
    """A bug in Baton."""


class IllegalTransition(OurFault):
    """An event that the handoff's state does not allow; nothing was changed."""
