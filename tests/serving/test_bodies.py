# SPDX-License-Identifier: Apache-2.0
"""Bodies of many clients together, and bodies that do not come."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from tests.serving.running_server import RunningServer, StartServer
from vllm_axion.serving.gateway import BODY_STALLS_AFTER_S

LARGEST = 1024
CLIENTS = 45


@pytest.fixture(scope="module")
def tight(start_server: StartServer) -> RunningServer:
    """A server that takes bodies of at most 1024 bytes, and 32 such at once."""
    return start_server(
        only=["phi4_fast"], limits={"max_body_bytes": LARGEST}, lazy_loading={"warmup_pool_size": 0}
    )


def begin_body(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    client = socket.create_connection((address.hostname or "", address.port or 0), timeout=60)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {LARGEST}\r\nConnection: close\r\n\r\n"
    )
    client.sendall(head.encode() + b" " * (LARGEST - 100))
    return client


def answer_of(client: socket.socket) -> str:
    with client:
        parts = []
        while part := client.recv(65536):
            parts.append(part)
        return b"".join(parts).decode()


def test_bodies_together_are_bounded_and_a_stalled_one_ends(tight: RunningServer) -> None:
    clients = [begin_body(tight) for _ in range(CLIENTS)]
    answers = [answer_of(client) for client in clients]
    refused = [a for a in answers if a.startswith("HTTP/1.1 429")]
    stalled = [a for a in answers if a.startswith("HTTP/1.1 400")]
    assert len(refused) + len(stalled) == CLIENTS
    assert refused and all("retry-after" in a.lower() and "large requests" in a for a in refused)
    assert stalled and all(f"{BODY_STALLS_AFTER_S:.0f} s" in a for a in stalled)
    assert tight.get("/load") == {"server_load": 0}
    # All of it was given back: the next request is served as if nothing had been.
    with tight.http() as client:
        assert client.post("/v1/chat/completions", json={"model": "nobody"}).status_code == 404
