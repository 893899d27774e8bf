# SPDX-License-Identifier: Apache-2.0
"""The `http_*` series of the whole server, under the names vLLM's own server gives them.

vLLM's app of each expert would count its requests too, but in prometheus_client's global registry, where
only the first app that serves anything gets to register: later apps, and that one after a reload, count
nothing and say nothing. So the outer server counts, once for all, and `ProcessSeries` leaves theirs out.
"""

from asyncio import CancelledError
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What vLLM leaves out as well: questions asked every few seconds by machines.
_NOT_COUNTED: Final = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics(Collector):
    """ASGI middleware for the outermost app; also the collector of what it counted.

    The `handler` label is the path template that Starlette leaves in `scope["route"]`, set by whichever app
    matched last; a path nobody matched is "none", an unheard-of method "other": clients can't add series.
    """

    def __init__(self, app: ASGIApp) -> None:
        # Only where a server runs: it brings FastAPI with it.
        from prometheus_fastapi_instrumentator import metrics

        self._app = app
        self._registry = CollectorRegistry()
        self._info: Callable[..., Any] = metrics.Info
        count = metrics.default(registry=self._registry)
        assert count is not None, "a fresh registry has no duplicates"
        self._count: Callable[[Any], None] = count

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _NOT_COUNTED:
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        first_byte: float | None = None
        status = 500
        headers: list[tuple[bytes, bytes]] = []

        async def watched(message: Message) -> None:
            nonlocal first_byte, status, headers
            if message["type"] == "http.response.start":
                first_byte = perf_counter()
                status, headers = message["status"], message.get("headers", [])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except CancelledError:
            if first_byte is None:
                status = 499  # the client did not wait for an answer
            raise
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._count(
                self._info(
                    request=Request(scope),
                    response=Response(status_code=status, headers=Headers(raw=list(headers))),
                    method=scope["method"] if scope["method"] in _METHODS else "other",
                    modified_handler=route or "none",
                    modified_status=f"{status // 100}xx",
                    modified_duration=perf_counter() - started,
                    modified_duration_without_streaming=(first_byte or started) - started,
                )
            )
