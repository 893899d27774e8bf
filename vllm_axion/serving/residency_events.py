# SPDX-License-Identifier: Apache-2.0
"""Residency events for whoever listens to ``GET /models/sse``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from vllm_axion.serving.expert_slot import ExpertSlot

_EVENTS_KEPT = 256

EventQueue = asyncio.Queue[dict[str, Any] | None]
"""Events of one listener; ``None`` is the end."""


class ResidencyEvents:
    """Sends every change of an expert's state to all listeners. One event loop."""

    def __init__(self) -> None:
        self._listeners: set[EventQueue] = set()
        self._closed = False

    def publish(self, slot: ExpertSlot) -> None:
        """Tell everybody how the expert is now."""
        event = _event("status_change", slot)
        for queue in self._listeners:
            _offer(queue, event)

    def close(self) -> None:
        """End every listener's stream, and those that come later at once."""
        self._closed = True
        for queue in self._listeners:
            _offer(queue, None)

    @asynccontextmanager
    async def listen(self, slots: Iterable[ExpertSlot]) -> AsyncIterator[EventQueue]:
        """A queue that begins with the state of every expert."""
        queue: EventQueue = asyncio.Queue(_EVENTS_KEPT)
        for slot in slots:
            _offer(queue, _event("model_status", slot))
        if self._closed:
            _offer(queue, None)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)


def _event(kind: str, slot: ExpertSlot) -> dict[str, Any]:
    status = slot.public_status()
    value = status.pop("value")
    return {"model": slot.expert_id, "event": kind, "data": {"status": value, **status}}


def _offer(queue: EventQueue, event: dict[str, Any] | None) -> None:
    # A listener that reads too slowly loses the oldest events, never the newest state.
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
