# SPDX-License-Identifier: Apache-2.0
"""Who may do what: API keys with scopes, in front of everything else."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_axion.serving.errors import ForbiddenError, ServingError, UnauthorizedError
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.route_catalog import route_path

OPEN_PATHS = frozenset({"/health"})
ADMIN_PREFIXES = ("/models/", "/logs/")
STATUS_PATHS = frozenset(
    {"/ping", "/version", "/load", "/stats", "/metrics", "/models", "/docs", "/redoc", "/openapi.json"}
)
"""What the server says of itself: a key of either scope opens it."""

OPERATOR_PATHS = frozenset(
    {"/collective_rpc", "/server_info", "/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory"}
    | {"/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/start_profile", "/stop_profile"}
    | {"/pause", "/resume", "/is_paused", "/abort_requests", "/get_world_size", "/weight_info"}
    | {"/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/weight_checker"}
    | {"/start_weight_update", "/start_draft_weight_update", "/update_weights", "/finish_weight_update"}
    | {"/update_weight_version", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    | {"/fault_tolerance/apply", "/fault_tolerance/status", "/scale_elastic_ep", "/is_scaling_elastic_ep"}
)
"""What vLLM lets operators do to an engine, where its variables and flags (VLLM_SERVER_DEV_MODE,
VLLM_ALLOW_RUNTIME_LORA_UPDATING, --enable-fault-tolerance, …) open these routes at all: they stop,
reconfigure or read out a whole expert.
"""


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key and the scopes it opens."""

    key: str
    scopes: frozenset[str]


class AccessControl:
    """ASGI middleware. Without keys everything is open; with keys every route but ``/health`` needs one:
    ``/models/*``, ``/logs/*`` and `OPERATOR_PATHS` one with the scope ``admin``, `STATUS_PATHS` any,
    everything else one with ``inference``.
    A key comes as ``Authorization: Bearer`` or ``x-api-key``.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[AccessKey], metrics: ServerMetrics) -> None:
        self._app = app
        self._keys = [(key.key.encode(), key.scopes) for key in keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys or scope["type"] not in ("http", "websocket") or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ServingError as error:
            self._metrics.request_rejected("unauthorized")
            await _refuse(scope, send, error)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        # A browser asks OPTIONS before it may show its key; CORS itself is off unless configured.
        return route_path(scope) in OPEN_PATHS or scope.get("method") == "OPTIONS"

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = (bearer.strip() if kind.lower() == "bearer" else "") or headers.get("x-api-key", "")
        if not given:
            raise UnauthorizedError("this server needs an API key: send it as Authorization: Bearer KEY")
        offered = given.encode("utf-8", "replace")
        # Every key is compared, so that the time taken tells nothing.
        scopes: frozenset[str] = frozenset()
        known = False
        for key, opens in self._keys:
            if hmac.compare_digest(key, offered):
                known, scopes = True, scopes | opens
        if not known:
            raise UnauthorizedError("the API key is not one of this server's")
        path = route_path(scope)
        needed = "admin" if path.startswith(ADMIN_PREFIXES) or path in OPERATOR_PATHS else "inference"
        if needed not in scopes and path not in STATUS_PATHS:
            raise ForbiddenError(f"{path[:200]} needs a key with the scope {needed!r}")


async def _refuse(scope: Scope, send: Send, error: ServingError) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    body = error.body_bytes()
    headers = {**error.headers(), "content-length": str(len(body))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
