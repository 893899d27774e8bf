# SPDX-License-Identifier: Apache-2.0
"""A small embedding server for tests: hashed n-grams of characters behind OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

MODEL = "hashed-ngrams"


def vector(text: str, dim: int) -> list[float]:
    """Counts of hashed words and 3- to 5-grams, with signs."""
    found = np.zeros(dim)
    padded = f" {text.casefold()} "
    grams = [padded[at : at + n] for n in (3, 4, 5) for at in range(len(padded) - n + 1)]
    for gram in [*grams, *padded.split() * 3]:
        digest = zlib.crc32(gram.encode())
        found[digest % dim] += 1.0 if digest >> 31 else -1.0
    return [float(value) for value in found]


@dataclass
class EmbeddingServer:
    """What it was asked, and what it shall do wrong next."""

    url: str = ""
    dim: int = 512
    key: str | None = None
    delay_s: float = 0.0
    statuses: deque[int] = field(default_factory=deque)  # of the next answers; then 200
    body: bytes | None = None  # instead of an answer
    asked: list[list[str]] = field(default_factory=list)
    calls: int = 0

    @property
    def texts(self) -> list[str]:
        """Every text it encoded."""
        return [text for batch in self.asked for text in batch]

    def answer(self, path: str, authorization: str, content: bytes) -> tuple[int, bytes]:
        """(status, body) of one request."""
        self.calls += 1
        time.sleep(self.delay_s)
        if path != "/v1/embeddings":
            return 404, b"{}"
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, b"{}"
        if self.statuses:
            return self.statuses.popleft(), b'{"error": {}}'
        if self.body is not None:
            return 200, self.body
        asked = json.loads(content)
        assert asked["model"] == MODEL
        self.asked.append(asked["input"])
        data = [
            {"object": "embedding", "index": at, "embedding": vector(text, self.dim)}
            for at, text in enumerate(asked["input"])
        ]
        data.reverse()  # the index says the order
        return 200, json.dumps({"object": "list", "data": data, "model": MODEL}).encode()


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    """A server on a free port of 127.0.0.1."""
    state = EmbeddingServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            status, body = state.answer(self.path, self.headers.get("authorization", ""), content)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            if status == 307:
                self.send_header("location", f"{state.url}/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that timed out

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
