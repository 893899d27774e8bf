# SPDX-License-Identifier: Apache-2.0
"""Hands a request to the expert it is for, loading that expert first if need be.

An ASGI app. It reads the body, finds the expert (named, or chosen by the router), takes a lease on it and
calls vLLM's own app of that expert with the request as it came. While an expert loads, a client that left is
forgotten, and one that asked for a stream gets SSE comments, so that nobody in between gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from vllm_axion.serving.answer import Answer, Choice, ClientMessages, engine_ended
from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.errors import (
    BadRequestError,
    BodyTooLargeError,
    QueueFullError,
    RouteNotFoundError,
    ServingError,
)
from vllm_axion.serving.expert_slot import Lease
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager
from vllm_axion.serving.media_policy import check_media, may_name_media
from vllm_axion.serving.metrics import HowChosen, ServerMetrics
from vllm_axion.serving.request_body import RequestBody, parse_body, query_model
from vllm_axion.serving.request_log import about, shortened
from vllm_axion.serving.route_catalog import RouteCatalog, route_path
from vllm_axion.serving.semantic_router import Route
from vllm_axion.serving.staged_router import Routed, StagedRouter
from vllm_axion.serving.tracing import RequestTrace, Tracing

logger = logging.getLogger("vllm_axion.gateway")

EARLY_STREAM_AFTER_S = 5.0
"""A stream whose expert is still loading after this long is answered 200 and kept alive by comments."""

COMMENT_EVERY_S = 5.0
BODY_STALLS_AFTER_S = 30.0
"""A client that sends nothing of its body for this long is answered 400."""

_BODIES_AT_ONCE = 32  # as many of the largest allowed size; usual ones are a thousandth of it
_CLIENT_GONE = 499
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,128})"')
_RESPONSE_PATH = re.compile(r"^/v1/responses/([^/]+)(?:/cancel)?$")
_RESPONSES_REMEMBERED = 10_000
# Streams in the shape of OpenAI's chunks, where a chunk without choices is allowed and ignored.
_CHUNK_OBJECTS = {"/v1/chat/completions": "chat.completion.chunk", "/v1/completions": "text_completion"}

# Routes of vLLM that only a model of its pooling runner answers.
_POOLING_PATHS = frozenset(
    {"/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/score", "/v1/score"}
    | {"/rerank", "/v1/rerank", "/v2/rerank"}
)


class ClientGoneError(Exception):
    """The client left while its request waited."""


class Gateway:
    """See the module's docstring."""

    def __init__(
        self,
        config: MultiModelConfig,
        manager: LazyExpertManager,
        router: StagedRouter,
        catalog: RouteCatalog,
        metrics: ServerMetrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing or Tracing()
        self._limits = config.limits
        self._log_prompts = config.server.log_prompts
        self._media_domains = frozenset(config.server.allowed_media_domains)
        self._manager = manager
        self._router = router
        self._catalog = catalog
        self._metrics = metrics
        self._answered_by: OrderedDict[str, str] = OrderedDict()
        self._active = 0
        self._held_bytes = 0
        self._routes = 0
        self._abstentions = 0
        self._route_seconds = 0.0

    @property
    def active(self) -> int:
        """Requests under way, those that wait for a load included."""
        return self._active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)

    # Choosing

    async def route(self, body: RequestBody, path: str = "", *, explain: bool = False) -> Routed:
        """Ask the router, and count its answer. `explain`: nothing may be loaded on the way."""
        began = time.perf_counter()
        routed = await self._router.route(
            body.messages(),
            loaded=self._manager.loaded_ids(),
            usable=self._usable(path),
            context=self._context(),
            may_load=not explain,
        )
        route, seconds = routed.route, time.perf_counter() - began
        self._metrics.routed(route.domain, seconds, abstained=route.abstained)
        self._routes += 1
        self._abstentions += route.abstained
        self._route_seconds += seconds
        return routed

    def _context(self) -> dict[str, int]:
        """Tokens that each expert takes, where its file or its checkpoint says so."""
        found = {}
        for expert_id, slot in self._manager.slots.items():
            facts = None if slot.spec is None else slot.spec.facts
            limit = slot.config.max_model_len or (None if facts is None else facts.max_model_len)
            if limit:
                found[expert_id] = limit
        return found

    def _usable(self, path: str) -> set[str] | None:
        """Models that make embeddings cannot chat, and the others make none."""
        pooling = self._router.pooling_experts
        ids = set(self._manager.slots)
        wanted = ids & pooling if path in _POOLING_PATHS else ids - pooling
        return wanted or None

    def router_stats(self) -> dict[str, Any]:
        """The router's part of ``/stats``."""
        mean = 1000 * self._route_seconds / self._routes if self._routes else None
        return {
            "routes": self._routes,
            "abstentions": self._abstentions,
            "mean_ms": None if mean is None else round(mean, 3),
            **self._router.stats(),
        }

    async def _choose(self, body: RequestBody, path: str) -> Choice:
        named = body.model
        if named is None:
            # An earlier answer is known only to the expert that gave it.
            match = _RESPONSE_PATH.match(path)
            earlier = match[1] if match else body.data.get("previous_response_id")
            named = self._answered_by.get(earlier) if isinstance(earlier, str) else None
            if match and named is None:  # no expert knows it: none need be loaded to say so
                raise RouteNotFoundError(f"there is no response {match[1][:100]!r} on this server")
        if named is not None:
            slot = self._manager.slot(named)
            self._manager.observe(slot.expert_id, None, 0.0)
            return Choice(slot.expert_id, slot.config.domain, 1.0, "explicit")
        route = (await self.route(body, path)).route
        self._note_runner_up(route)
        return Choice(
            route.expert_id,
            self._manager.slot(route.expert_id).config.domain,
            route.confidence,
            "abstained" if route.abstained else "routed",
        )

    def _note_runner_up(self, route: Route) -> None:
        experts = self._manager.slots.items()
        second = next((e for e, slot in experts if slot.config.domain == route.runner_up), None)
        chance = route.probabilities.get(route.runner_up, 0.0) if route.runner_up else 0.0
        self._manager.observe(route.expert_id, second, chance)

    # HTTP

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room_for_body() as account:
            await self._serve_request(scope, receive, send, account)

    async def _serve_request(
        self, scope: Scope, receive: Receive, send: Send, account: Callable[[int], None]
    ) -> None:
        answer = Answer(send)
        choice: Choice | None = None
        trace = self._tracing.request(scope)
        self._active += 1
        try:
            self._catalog.match(scope)
            if self._active > self._limits.max_concurrent_requests:
                self._metrics.request_rejected("queue_full")
                raise QueueFullError(
                    f"{self._limits.max_concurrent_requests} requests are already under way", retry_after_s=1
                )
            headers = Headers(scope=scope)
            raw = await self._read_body(headers, receive, account)
            body = parse_body(raw, headers.get("content-type", ""), scope.get("query_string", b""))
            if may_name_media(body.raw):
                check_media(body.data, self._media_domains)
            with trace.step("axion.route"):
                choice = await self._choose(body, route_path(scope))
            answer.annotate(choice)
            self._describe(scope, body, choice)
            await self._answer(scope, receive, answer, body, choice, trace)
        except ClientGoneError:
            answer.status = _CLIENT_GONE
        except ServingError as error:
            await answer.fail(error)
        except Exception:
            # `%r`: a path may hold line breaks, with which a client would write lines of the log itself.
            facts = about(scope)
            found = {"expert": facts.get("expert"), "fields": {"request_id": facts.get("request_id")}}
            logger.exception("%s %r failed", scope["method"], scope["path"][:200], extra=found)
            await answer.fail(ServingError("the server met an unexpected error; its log says more"))
        finally:
            self._active -= 1
            expert_id = None if choice is None else choice.expert_id
            how: HowChosen = "explicit" if choice is None else choice.how
            self._metrics.request_answered(expert_id, how, answer.status or _CLIENT_GONE)
            trace.end(scope, about(scope), answer.status or _CLIENT_GONE)

    def _describe(self, scope: Scope, body: RequestBody, choice: Choice) -> None:
        facts = about(scope)
        facts |= {
            "expert": choice.expert_id,
            "domain": choice.domain,
            "confidence": round(choice.confidence, 3),
            "chosen": choice.how,
            "stream": body.stream,
            "body_bytes": len(body.raw),
        }
        if self._log_prompts:
            facts["prompt"] = shortened(body.messages())

    @contextmanager
    def _room_for_body(self) -> Iterator[Callable[[int], None]]:
        """A function that accounts for so many bytes more of one request's body, until the request ends.

        One body has a limit of its own; this one is for all together, so that many clients with large
        bodies cannot fill the memory. Raises QueueFullError.
        """
        mine = 0

        def account(size: int) -> None:
            nonlocal mine
            mine += size
            self._held_bytes += size
            if self._held_bytes > _BODIES_AT_ONCE * self._limits.max_body_bytes:
                self._metrics.request_rejected("queue_full")
                raise QueueFullError("too many large requests are under way", retry_after_s=5)

        try:
            yield account
        finally:
            self._held_bytes -= mine

    async def _read_body(self, headers: Headers, receive: Receive, account: Callable[[int], None]) -> bytes:
        limit = self._limits.max_body_bytes
        declared = headers.get("content-length", "")
        too_large = BodyTooLargeError(f"the body is over the limit of {limit} bytes")
        if declared.isdecimal() and int(declared) > limit:
            self._metrics.request_rejected("body_too_large")
            raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_STALLS_AFTER_S):
                    message = await receive()
            except TimeoutError:
                raise BadRequestError(
                    f"the rest of the body did not come for {BODY_STALLS_AFTER_S:.0f} s"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            account(len(part))
            size += len(part)
            if size > limit:
                self._metrics.request_rejected("body_too_large")
                raise too_large
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts) if len(parts) != 1 else parts[0]

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        answer: Answer,
        body: RequestBody,
        choice: Choice,
        trace: RequestTrace,
    ) -> None:
        client = ClientMessages(receive, body.with_model(choice.expert_id))
        lease = self._manager.try_acquire(choice.expert_id)
        try:
            if lease is None:
                with trace.step("axion.load"):
                    lease = await self._wait_for_lease(client, answer, body, choice, route_path(scope))
            lease.engine.routes.match(scope)
            answer.loaded(lease)
            about(scope)["load_ms"] = round(lease.waited_s * 1000)
            if route_path(scope) == "/v1/responses":
                answer.on_first_body = lambda data: self._remember_response(data, choice.expert_id)
            with trace.step("axion.generate"):
                inner = {**scope, "headers": trace.propagate(_with_length(scope, client.body))}
                try:
                    await lease.engine.app(inner, client, answer)
                except Exception:
                    if lease.engine.process.is_alive():
                        raise
                    raise engine_ended(choice.expert_id) from None
                await answer.finish()
            scope["route"] = inner.get("route")
        finally:
            if lease is not None:
                self._manager.release(lease)
            client.close()

    async def _wait_for_lease(
        self, client: ClientMessages, answer: Answer, body: RequestBody, choice: Choice, path: str
    ) -> Lease:
        waiting = asyncio.ensure_future(self._manager.acquire(choice.expert_id))
        leaving = client.watch()
        handed_over = False
        began = time.monotonic()
        delay = EARLY_STREAM_AFTER_S if body.stream else None
        try:
            while True:
                done, _ = await asyncio.wait(
                    {waiting, leaving}, timeout=delay, return_when=asyncio.FIRST_COMPLETED
                )
                if waiting in done:
                    handed_over = True
                    return waiting.result()
                if leaving in done:
                    raise ClientGoneError
                waited = time.monotonic() - began
                await answer.keep_alive(
                    f"{choice.expert_id} is loading, {waited:.0f} s", _CHUNK_OBJECTS.get(path)
                )
                delay = COMMENT_EVERY_S
        finally:
            if not handed_over:
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, ServingError):
                    self._manager.release(await waiting)  # it was granted at the last moment

    def _remember_response(self, data: bytes, expert_id: str) -> None:
        if match := _RESPONSE_ID.search(data):
            self._answered_by[match[1].decode()] = expert_id
            while len(self._answered_by) > _RESPONSES_REMEMBERED:
                self._answered_by.popitem(last=False)

    # WebSocket

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._catalog.match(scope)
            choice = await self._choose(
                RequestBody(b"", model=query_model(scope.get("query_string", b""))), route_path(scope)
            )
            async with self._manager.lease(choice.expert_id) as lease:
                await lease.engine.app(dict(scope), receive, send)
        except ServingError as error:
            await send({"type": "websocket.close", "code": 1013, "reason": error.message[:120]})


def _with_length(scope: Scope, body: bytes) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in scope["headers"] if name not in dropped]
    return [*kept, (b"content-length", str(len(body)).encode())] if body else kept
