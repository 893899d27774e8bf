# SPDX-License-Identifier: Apache-2.0
"""The last log lines of every expert, and whoever follows them on ``GET /logs/stream/{id}``."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

SERVER = "server"
"""Lines that belong to no expert."""

_KEPT = 500
_QUEUED = 1000

LineQueue = asyncio.Queue[dict[str, Any] | None]


class LogStreams(logging.Handler):
    """A handler that sorts records by their ``expert`` attribute. Lines may come from any thread."""

    def __init__(self, experts: Iterable[str]) -> None:
        super().__init__()
        self._kept: dict[str, deque[dict[str, Any]]] = {
            name: deque(maxlen=_KEPT) for name in (*experts, SERVER)
        }
        self._followers: set[tuple[str, LineQueue, asyncio.AbstractEventLoop]] = set()
        self._guard = threading.Lock()
        self._closed = False

    @property
    def names(self) -> list[str]:
        """What can be followed."""
        return list(self._kept)

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "expert", None) or SERVER
        if name not in self._kept:
            name = SERVER
        try:
            line = as_fields(record)
        except Exception:  # a library's message that does not fit its arguments must not fail a request
            self.handleError(record)
            return
        with self._guard:
            self._kept[name].append(line)
            followers = [f for f in self._followers if f[0] == name]
        for _, queue, loop in followers:
            loop.call_soon_threadsafe(_offer, queue, line)

    def end(self) -> None:
        """End every follower's stream. Not `close`: logging calls that on every handler it knows whenever
        somebody configures logging, as vLLM does at each load.
        """
        with self._guard:
            self._closed = True
            followers = list(self._followers)
        for _, queue, loop in followers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_offer, queue, None)

    @asynccontextmanager
    async def follow(self, name: str) -> AsyncIterator[LineQueue]:
        """The kept lines of ``name``, then new ones as they come; ``None`` ends it. Raises KeyError."""
        queue: LineQueue = asyncio.Queue(_QUEUED)
        follower = (name, queue, asyncio.get_running_loop())
        with self._guard:
            for line in self._kept[name]:
                queue.put_nowait(line)
            if self._closed:
                queue.put_nowait(None)
            self._followers.add(follower)
        try:
            yield queue
        finally:
            with self._guard:
                self._followers.discard(follower)


def as_fields(record: logging.LogRecord) -> dict[str, Any]:
    """A record as flat JSON: time (seconds since 1970), level, logger, message, and what was logged with
    it.
    """
    fields: dict[str, Any] = {
        "time": round(record.created, 3),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if expert := getattr(record, "expert", None):
        fields["expert"] = expert
    fields.update(getattr(record, "fields", None) or {})
    return fields


def _offer(queue: LineQueue, line: dict[str, Any] | None) -> None:
    # Who reads too slowly loses the oldest lines.
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(line)
