# SPDX-License-Identifier: Apache-2.0
"""Concurrent streams from a process of their own, so that the measuring process is free to measure.

Started by `Streams`; reads one JSON command per line and answers each with one line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens of all streams together, and the seconds from the first request to the last token."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second, summed over the streams."""
        return self.tokens / self.seconds


class Streams:
    """The client process. Use it as a context."""

    def __enter__(self) -> Streams:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.streams"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Process id of the client."""
        return self._process.pid

    def begin(self, url: str, experts: Sequence[str], streams: int, tokens: int) -> None:
        """Start ``streams`` streams of ``tokens`` tokens each, dealt out to the experts in turn."""
        assert self._process.stdin is not None
        command = {"url": url, "experts": list(experts), "streams": streams, "tokens": tokens}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def result(self) -> Throughput:
        """Wait for the streams that were begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the client of the streams ended")
        return Throughput(**json.loads(line))

    def run(self, url: str, experts: Sequence[str], streams: int, tokens: int) -> Throughput:
        """`begin` and `result`."""
        self.begin(url, experts, streams, tokens)
        return self.result()


async def _stream(client: httpx.AsyncClient, expert: str, tokens: int) -> int:
    body = {
        "model": expert,
        "messages": [{"role": "user", "content": "Tell me a story about the sea"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    last = b""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for part in answer.aiter_bytes():
            last = (last + part)[-2000:]
    usage = last.decode().rsplit('"completion_tokens":', 1)[1]
    return int(usage.split(",")[0].split("}")[0])


async def _run(command: dict[str, Any]) -> Throughput:
    experts, streams = command["experts"], command["streams"]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=command["url"], timeout=_TIMEOUT_S, limits=limits) as client:
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(_stream(client, experts[n % len(experts)], command["tokens"]) for n in range(streams))
        )
        return Throughput(sum(counts), time.perf_counter() - began)


def main() -> None:
    """Answer commands until there are no more."""
    for line in sys.stdin:
        done = asyncio.run(_run(json.loads(line)))
        print(json.dumps({"tokens": done.tokens, "seconds": done.seconds}), flush=True)


if __name__ == "__main__":
    main()
