"""A server on loopback that answers /v1/completions as vLLM does, with random tokens."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END, FIRST, LAST = 1, 3, 44
"""Of helpers/tiny.py's tokenizer: the end token, and the characters."""


class Completions(BaseHTTPRequestHandler):
    """Two to nine random characters and the end token, from the request's own seed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        draws = random.Random(asked["seed"])
        ids = [draws.randint(FIRST, LAST) for _ in range(draws.randint(2, 9))] + [END]
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-3.8] * len(ids)}}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # of requests under way when the child ends
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def completions_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the requests it has had."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
