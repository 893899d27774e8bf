# SPDX-License-Identifier: Apache-2.0
"""What the server adds to a chat of one token: its whole app against the expert's inner app alone.

    python -m bench.added_latency CONFIG OUTPUT --pairs 400

Both apps are called in the server's own process, without a network, one after the other in random order with
the same body and the same engine: what differs is only what stands between uvicorn and vLLM's app. Written by
`bench/serving.py`, which runs it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_axion.serving import multi_model_server
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager

_WARM_UP = 30


class Timed:
    """An ASGI app that remembers how long its last call took, in seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seconds = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.seconds = time.perf_counter() - began


async def measure(
    outer_app: ASGIApp, manager: LazyExpertManager, expert_id: str, pairs: int
) -> dict[str, list[float]]:
    """Seconds, one entry per pair: ``outer`` and ``inner`` chats, and ``within``: what the outer app took of
    its own chat before and after the inner app's part of it.
    """
    body = {"model": expert_id, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    outer = Timed(outer_app)
    outer_client = httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://server")
    (await outer_client.post("/v1/chat/completions", content=content, headers=headers)).raise_for_status()
    engine = manager.slots[expert_id].engine
    assert engine is not None
    inner_app = engine.app
    inner = Timed(inner_app)
    inner_client = httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://server")
    found: dict[str, list[float]] = {"outer": [], "inner": [], "within": []}
    chance = random.Random(1)

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", content=content, headers=headers)
        answer.raise_for_status()

    for turn in range(_WARM_UP + pairs):
        times: dict[str, float] = {}
        for name in chance.sample(("outer", "inner"), 2):
            await ask(outer_client if name == "outer" else inner_client)
            times[name] = outer.seconds if name == "outer" else inner.seconds
        if turn >= _WARM_UP:
            for name, seconds in times.items():
                found[name].append(seconds)
    engine.app = inner
    for turn in range(_WARM_UP + pairs):
        await ask(outer_client)
        if turn >= _WARM_UP:
            found["within"].append(outer.seconds - inner.seconds)
    engine.app = inner_app
    await outer_client.aclose()
    await inner_client.aclose()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Start the server as `vllm-axion serve` does, but measure where it would listen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--expert", default="qwen_coder")
    ours = parser.parse_args(argv)
    from vllm_axion.serving import command_line

    managers: list[LazyExpertManager] = []

    class Known(LazyExpertManager):
        async def start(self) -> None:
            managers.append(self)
            await super().start()

    class Measuring(multi_model_server._Server):
        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            self.config.load()
            lifespan = self.config.lifespan_class(self.config)
            await lifespan.startup()
            try:
                app: Any = self.config.app
                found = await measure(app, managers[0], ours.expert, ours.pairs)
                ours.output.write_text(json.dumps(found), encoding="utf-8")
            finally:
                await lifespan.shutdown()

    vars(multi_model_server)["LazyExpertManager"] = Known
    multi_model_server._Server = Measuring  # type: ignore[misc]
    flags = [str(ours.config), "--port", "0", "--disable-uvicorn-access-log"]
    command_line.serve(flags, prog="bench.added_latency")


if __name__ == "__main__":
    main()
