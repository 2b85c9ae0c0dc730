"""Names of the attributes that spans carry.

OpenTelemetry's semantic conventions where they have a name (``http.*``, ``gen_ai.*``), ``baton.*``
for the rest. Written down here rather than imported: the conventions' package moves names.
"""

from __future__ import annotations

REQUEST_ID = "baton.request_id"
PATH = "baton.path"
REASON = "baton.reason"
PROMPT_TOKENS = "baton.prompt_tokens"
UNCACHED_TOKENS = "baton.uncached_prompt_tokens"
PREDICTED_LOCAL_S = "baton.predicted.local_s"
PREDICTED_REMOTE_S = "baton.predicted.remote_s"
TTFT_S = "baton.measured.ttft_s"
PREFILL_WORKER = "baton.worker.prefill"
DECODE_WORKER = "baton.worker.decode"
WORKER = "baton.worker"
"""Of a leg."""
ATTEMPT = "baton.attempt"
"""Which one a leg belongs to, from 1."""
ATTEMPTS = "baton.attempts"
BAND = "baton.band"
TENANT = "baton.tenant"
"""The tenant's name, never its key."""
PROFILE = "baton.profile.name"
PROFILE_VERSION = "baton.profile.version"
KV_BYTES = "baton.kv_bytes"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` of the endpoints that have one."""
