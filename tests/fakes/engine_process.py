"""A process that looks like an engine to its supervisor, and misbehaves on request.

Run as a script: ``python engine_process.py PORT MODE KEY``. Standard library only, so that it is up
within a tenth of a second. Modes: ``good``; ``exits`` (says why and ends), ``unhealthy``,
``no-generation``, ``empty-generation``, ``no-models``; ``good-with-core`` (has a child of its own
that keeps the output open, as vLLM's engine core does); ``closes`` (good for a moment, then it
closes its port and stays, as vLLM's server does while it cleans up after a dead engine core).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers what a supervisor asks."""

    protocol_version = "HTTP/1.1"
    mode = "good"
    key = ""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(503 if self.mode == "unhealthy" else 200, "")
        elif self.path == "/metrics":
            if self.mode == "closes":
                self.close_connection = True
                threading.Thread(target=self.server.shutdown).start()
            labels = '{engine="0",model_name="tiny"}'
            self._answer(
                200,
                f"vllm:num_requests_running{labels} 2.0\n"
                f"vllm:num_requests_waiting{labels} 1.0\n"
                f"vllm:kv_cache_usage_perc{labels} 0.25\n",
            )
        elif self.path == "/v1/models" and self._may():
            model = {"id": "tiny"} if self.mode == "no-models" else {"max_model_len": 4096}
            self._answer(200, json.dumps({"data": [model]}))
        elif self.path == "/version" and self._may():
            self._answer(200, json.dumps({"version": "0.32.0-fake"}))
        else:
            self._answer(404, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.mode == "no-generation" or not self._may():
            self._answer(500, '{"error": {"message": "no"}}')
            return
        tokens = 0 if self.mode == "empty-generation" else body["max_tokens"]
        self._answer(200, json.dumps({"usage": {"completion_tokens": tokens}}))

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.key}"

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def main() -> None:
    """Serves until killed."""
    port, Handler.mode, Handler.key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    print(f"INFO 01-01 00:00:00 [fake.py:1] pid {os.getpid()}", flush=True)
    if Handler.mode == "exits":
        print("ERROR 01-01 00:00:00 [fake.py:2] no such model", flush=True)
        sys.exit(3)
    if Handler.mode == "good-with-core":
        core = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        print(f"core {core.pid}", flush=True)
    ThreadingHTTPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    time.sleep(60)


if __name__ == "__main__":
    main()
