# SPDX-License-Identifier: Apache-2.0
"""Both ends of a request as vLLM's inner app sees them: what it receives of the client, and what becomes of
the answer it sends.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Send

from vllm_axion.serving.errors import CannotLoadNowError, ServingError
from vllm_axion.serving.expert_slot import Lease
from vllm_axion.serving.metrics import HowChosen


@dataclass(frozen=True, slots=True)
class Choice:
    """The expert a request goes to, and how sure that is."""

    expert_id: str
    domain: str
    confidence: float
    how: HowChosen


class ClientMessages:
    """``receive`` of the inner app: the body that was read already, then whatever the client does next."""

    def __init__(self, receive: Receive, body: bytes) -> None:
        self.body = body
        self._receive = receive
        self._sent = False
        self._watch: asyncio.Task[Message] | None = None

    async def __call__(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        return await (self._receive() if self._watch is None else asyncio.shield(self._watch))

    def watch(self) -> asyncio.Task[Message]:
        """A task that ends when the client leaves: after its body a client has nothing else to say."""

        async def receive() -> Message:
            return await self._receive()

        self._watch = asyncio.create_task(receive())
        return self._watch

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()


class Answer:
    """``send`` of the inner app: adds our headers, and can begin a stream before there is an app to fill
    it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.on_first_body: Any = None
        self._headers: dict[str, str] = {}
        self._lease: Lease | None = None
        self._choice: Choice | None = None
        self._early_chunk: str | None = None
        self._early = False
        self._is_event_stream = False
        self._inner_failed: bytearray | None = None
        self._replaced_by: ServingError | None = None
        self._finished = False

    def annotate(self, choice: Choice) -> None:
        """The headers every answer of an expert carries."""
        self._choice = choice
        self._headers |= {
            "x-axion-expert": choice.expert_id,
            "x-axion-domain": choice.domain,
            "x-axion-confidence": f"{choice.confidence:.3f}",
        }

    def loaded(self, lease: Lease) -> None:
        """The expert is there; what it took goes into a header, or into the stream if that has begun."""
        self._lease = lease
        self._headers["x-axion-load-ms"] = str(round(lease.waited_s * 1000))

    async def keep_alive(self, comment: str, chunk_object: str | None) -> None:
        """An SSE comment; begins the stream if nothing was sent yet."""
        if not self._early:
            self._early, self._early_chunk, self.status = True, chunk_object, 200
            self._is_event_stream = True
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                **self._headers,
            }
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": _encode_headers(headers)}
            )
        await self._event(f": {comment}\n\n")

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        status = message["status"]
        if self._early:
            if status == 200:
                await self._event(self._load_event())
            else:
                self._inner_failed = bytearray()
            return
        if status >= 500 and self._lease is not None and not self._lease.engine.process.is_alive():
            # Not raised: this is called from inside the inner app, whose own handlers would answer in its
            # place.
            self._replaced_by = engine_ended(self._lease.slot.expert_id)
            return
        self.status = status
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        for name, value in self._headers.items():
            headers[name] = value
        await self._send({**message, "headers": headers.raw})

    async def _body(self, message: Message) -> None:
        if self._replaced_by is not None:
            return
        more = message.get("more_body", False)
        if self.on_first_body is not None and message.get("body"):
            self.on_first_body(message["body"])
            self.on_first_body = None
        if self._inner_failed is not None:
            self._inner_failed += message.get("body", b"")
            if more:
                return
            await self._event(_as_error_event(bytes(self._inner_failed)), more=False)
            self._finished = True
            return
        self._finished = not more
        await self._send(message)

    async def fail(self, error: ServingError) -> None:
        """Answer with an error: as a response, or as the last event of a stream that has begun."""
        if not self.status:
            self.status = error.status
            body = error.body_bytes()
            headers = {**self._headers, **error.headers(), "content-length": str(len(body))}
            start = {
                "type": "http.response.start",
                "status": error.status,
                "headers": _encode_headers(headers),
            }
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})
        elif self._is_event_stream and not self._finished:  # of anything else the client sees the end missing
            await self._event(_as_error_event(error.body_bytes()), more=False)
        self._finished = True

    async def finish(self) -> None:
        """The inner app has returned; one that forgot to end its answer must not leave the client hanging."""
        if self._replaced_by is not None:
            await self.fail(self._replaced_by)
        elif self.status and not self._finished:
            self._finished = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _load_event(self) -> str:
        load_ms = self._headers.get("x-axion-load-ms", "0")
        if self._early_chunk is None or self._choice is None:
            return f": x-axion-load-ms {load_ms}\n\n"
        chunk = {
            "id": "axion-load",
            "object": self._early_chunk,
            "created": int(time.time()),
            "model": self._choice.expert_id,
            "choices": [],
            "axion": {"load_ms": int(load_ms)},
        }
        return f"data: {json.dumps(chunk)}\n\n"

    async def _event(self, text: str, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})


def engine_ended(expert_id: str) -> ServingError:
    return CannotLoadNowError(f"the engine of {expert_id} ended unexpectedly; try again", retry_after_s=1)


def _as_error_event(body: bytes) -> str:
    try:
        data = json.loads(body)
    except ValueError:
        data = {}
    if not isinstance(data, dict) or "error" not in data:
        data = ServingError("the expert answered with an error").body()
    return f"data: {json.dumps(data)}\n\ndata: [DONE]\n\n"


def _encode_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
