# SPDX-License-Identifier: Apache-2.0
"""A line for every request, under an id the client can quote."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("vllm_axion.requests")

_SOUND_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499
_LONGEST_TEXT = 2000
_MOST_ITEMS = 20
# Asked every few seconds by machines: logged only where somebody wants everything.
_QUIET_PATHS = frozenset({"/health", "/ping", "/metrics", "/load"})


class RequestLog:
    """ASGI middleware: gives every request an id (the client's own ``x-request-id`` if it is a sound one),
    sends it back, and logs how the request went. Whoever handles the request adds to `about`.
    """

    def __init__(self, app: ASGIApp, *, enabled: bool = True) -> None:
        self._app = app
        self._enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex
        facts = about(scope)
        facts["request_id"] = request_id
        began, status = time.perf_counter(), _CLIENT_GONE

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                headers["x-request-id"] = request_id
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            await self._app(scope, receive, answering)
        finally:
            if self._enabled:
                facts |= {"status": status, "ms": round(1000 * (time.perf_counter() - began), 1)}
                self._log(scope, facts)

    def _log(self, scope: Scope, facts: dict[str, Any]) -> None:
        level = logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO
        if not logger.isEnabledFor(level):
            return
        expert = facts.get("expert")
        logger.log(
            level,
            "%s %s %s%s %.1f ms",
            scope["method"],
            scope["path"][:200].encode("unicode_escape").decode(),
            facts["status"],
            f" {expert}" if expert else "",
            facts["ms"],
            extra={
                "expert": expert,
                "fields": {"method": scope["method"], "path": scope["path"][:200], **facts},
            },
        )


def shortened(value: Any) -> Any:
    """``value`` for a log line: of long texts (an image is one of megabytes) only the beginning."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else f"{value[:_LONGEST_TEXT]}… ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {str(key)[:100]: shortened(item) for key, item in list(value.items())[:_MOST_ITEMS]}
    if isinstance(value, list | tuple):
        return [shortened(item) for item in value[-_MOST_ITEMS:]]
    return value


def about(scope: Scope) -> dict[str, Any]:
    """What is known of a request, for its log line; handlers add to it."""
    facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("axion", {})
    return facts
