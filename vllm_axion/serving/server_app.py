# SPDX-License-Identifier: Apache-2.0
"""The outer ASGI app: the server's own endpoints, and everything else handed to the expert it is for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client.registry import Collector
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_axion import __version__
from vllm_axion.serving import openapi, pages
from vllm_axion.serving.access import AccessControl, AccessKey
from vllm_axion.serving.errors import (
    BadRequestError,
    BodyTooLargeError,
    MethodNotAllowedError,
    ModelNotFoundError,
    RouteNotFoundError,
    ServingError,
)
from vllm_axion.serving.gateway import Gateway
from vllm_axion.serving.http_metrics import HttpMetrics
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager
from vllm_axion.serving.log_stream import LogStreams
from vllm_axion.serving.metrics import ServerMetrics, render
from vllm_axion.serving.request_body import RequestBody, parse_body
from vllm_axion.serving.request_log import RequestLog
from vllm_axion.serving.route_catalog import RouteCatalog, route_path

# Answered by this server itself, so never handed to an expert.
_DOCS = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
# Questions about the one engine of a server that has one engine.
_ONE_ENGINE = ("/scale_elastic_ep", "/is_scaling_elastic_ep", "/kv_event_sources")
OWN_PATHS = frozenset({*openapi.OWN_ROUTES, *_DOCS, *_ONE_ENGINE})

_SSE_PING_S = 15

# A browser hides all but a few headers from the page that asked, unless told otherwise.
_HEADERS_FOR_PAGES = (
    "x-axion-expert",
    "x-axion-domain",
    "x-axion-confidence",
    "x-axion-load-ms",
    "x-request-id",
    "retry-after",
)


class ServerApp:
    """Endpoints of one server.

    Args:
        log_requests: whether every request gets a line in the log.
        streams: log lines by expert.
        show_docs: whether `/docs`, `/redoc` and `/openapi.json` exist.
    """

    def __init__(
        self,
        manager: LazyExpertManager,
        gateway: Gateway,
        catalog: RouteCatalog,
        metrics: ServerMetrics,
        series: Sequence[Collector],
        *,
        max_body_bytes: int,
        vllm_version: str,
        show_docs: bool = True,
        log_requests: bool = True,
        streams: LogStreams,
    ) -> None:
        self._log_requests = log_requests
        self._streams = streams
        self._manager = manager
        self._gateway = gateway
        self._catalog = catalog
        self._metrics = metrics
        self._series = list(series)
        self._max_body_bytes = max_body_bytes
        self._vllm_version = vllm_version
        self._show_docs = show_docs
        self._created = int(time.time())
        self._openapi: asyncio.Task[dict[str, Any]] | None = None

    def build(
        self,
        keys: Sequence[AccessKey],
        cors_origins: Sequence[str],
        lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
    ) -> ASGIApp:
        """The app to serve, with access control and counting around it."""
        starlette = Starlette(
            routes=self._routes(),
            lifespan=lifespan,
            exception_handlers={
                ServingError: _on_serving_error,
                HTTPException: _on_http_error,
                ClientDisconnect: _on_client_gone,
            },
        )
        # Not a mount at "/": that would also take a wrong method on one of our own paths.
        starlette.router.redirect_slashes = False
        starlette.router.default = self._gateway
        app: ASGIApp = AccessControl(self._dispatch(starlette), keys, self._metrics)
        if cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=list(cors_origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=_HEADERS_FOR_PAGES,
            )
        http = HttpMetrics(RequestLog(app, enabled=self._log_requests))
        self._series.append(http)
        return http

    def _dispatch(self, own: ASGIApp) -> ASGIApp:
        """Our own endpoints to ``own``, everything else straight to the gateway: a chat need not be compared
        with every route of ours first.
        """
        plain = frozenset(route.path for route in self._routes() if "{" not in route.path)
        begins = tuple(route.path.partition("{")[0] for route in self._routes() if "{" in route.path)

        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            path = route_path(scope) if scope["type"] == "http" else ""
            if not path or path in plain or path.startswith(begins):
                await own(scope, receive, send)
            else:
                await self._gateway(scope, receive, send)

        return dispatch

    def _routes(self) -> list[Route]:
        routes = [
            Route("/health", self._health),
            Route("/ping", self._health, methods=["GET", "POST"]),
            Route("/version", self._version),
            Route("/load", self._load_level),
            Route("/stats", self._stats),
            Route("/metrics", self._show_metrics),
            Route("/models", self._list_models),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{model:path}", self._show_model),
            Route("/v1/route", self._explain_route, methods=["POST"]),
            Route("/models/load", self._load, methods=["POST"]),
            Route("/models/unload", self._unload, methods=["POST"]),
            Route("/models/sse", self._residency_events),
            Route("/logs/stream/{name}", self._log_lines),
        ]
        if self._show_docs:
            routes += [
                Route("/openapi.json", self._show_openapi),
                Route("/docs", _swagger),
                Route("/redoc", _redoc),
            ]
        return routes

    # What the server says of itself

    async def _health(self, request: Request) -> Response:
        status, body = pages.health(self._manager)
        return JSONResponse(body, status)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": self._vllm_version, "vllm_axion": __version__})

    async def _load_level(self, request: Request) -> Response:
        return JSONResponse({"server_load": self._gateway.active})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(pages.stats(self._manager, self._gateway.router_stats()))

    async def _show_metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        page, media_type = await asyncio.to_thread(render, self._series, accept)
        return Response(page, media_type=None, headers={"content-type": media_type})

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse(pages.model_list(self._manager, self._created))

    async def _show_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name == "auto":
            return JSONResponse(pages.auto_card(self._manager, self._created))
        return JSONResponse(pages.model_card(self._manager.slot(name), self._created))

    async def _show_openapi(self, request: Request) -> Response:
        if self._openapi is None:
            self._openapi = asyncio.create_task(asyncio.to_thread(openapi.document, self._catalog))
        return JSONResponse(await asyncio.shield(self._openapi))

    # What it is told to do

    async def _explain_route(self, request: Request) -> Response:
        body = await self._read(request)
        routed = await self._gateway.route(body, explain=True)
        loaded = routed.route.expert_id in self._manager.loaded_ids()
        return JSONResponse({**routed.explained(), "loaded": loaded})

    async def _load(self, request: Request) -> Response:
        self._manager.request_load(_named(await self._read(request)))
        return JSONResponse({"success": True})

    async def _unload(self, request: Request) -> Response:
        self._manager.request_unload(_named(await self._read(request)))
        return JSONResponse({"success": True})

    async def _residency_events(self, request: Request) -> Response:
        async def events() -> AsyncIterator[ServerSentEvent]:
            async with self._manager.events.listen(self._manager.views()) as queue:
                while (event := await queue.get()) is not None:
                    yield ServerSentEvent(json.dumps(event))

        return EventSourceResponse(events(), ping=_SSE_PING_S)

    async def _log_lines(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._streams.names:
            raise ModelNotFoundError(
                f"there are no logs of {name[:200]!r}; ask for one of {self._streams.names}"
            )

        async def lines() -> AsyncIterator[ServerSentEvent]:
            async with self._streams.follow(name) as queue:
                while (line := await queue.get()) is not None:
                    yield ServerSentEvent(json.dumps(line, default=str))

        return EventSourceResponse(lines(), ping=_SSE_PING_S)

    async def _read(self, request: Request) -> RequestBody:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_body_bytes:
                raise BodyTooLargeError(f"the body is over the limit of {self._max_body_bytes} bytes")
            parts.append(part)
        body = parse_body(b"".join(parts), request.headers.get("content-type", ""))
        if not body.is_json:
            raise BadRequestError("the body is empty, it must be a JSON object")
        return body


def _named(body: RequestBody) -> str:
    if body.model is None:
        raise BadRequestError('the body must name an expert: {"model": "EXPERT_ID"}', param="model")
    return body.model


async def _on_serving_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    return Response(error.body_bytes(), error.status, error.headers())


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; without it the log would show a stack trace


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
        return await _on_serving_error(request, MethodNotAllowedError.on(path, request.method, allowed))
    if error.status_code == 404:
        return await _on_serving_error(request, RouteNotFoundError(f"there is no {path} on this server"))
    return await _on_serving_error(request, BadRequestError(str(error.detail)))


async def _swagger(request: Request) -> HTMLResponse:
    from fastapi.openapi.docs import get_swagger_ui_html

    return get_swagger_ui_html(openapi_url="openapi.json", title="vllm-axion")


async def _redoc(request: Request) -> HTMLResponse:
    from fastapi.openapi.docs import get_redoc_html

    return get_redoc_html(openapi_url="openapi.json", title="vllm-axion")
