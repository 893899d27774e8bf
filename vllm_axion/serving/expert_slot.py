# SPDX-License-Identifier: Apache-2.0
"""What the expert manager remembers of one expert."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.expert_engine import ExpertEngine
from vllm_axion.serving.expert_spec import ExpertSpec
from vllm_axion.serving.residency import ExpertView, State

_FIRST_RELOAD_GUESS_S = 2.0
_MAX_BACKOFF_S = 60.0
_STABLE_AFTER_S = 60.0


@dataclass(slots=True)
class Lease:
    """The right to send one request to a loaded expert; give it back with `LazyExpertManager.release`."""

    slot: ExpertSlot
    engine: ExpertEngine
    waited_s: float = 0.0
    """Seconds the request waited for the expert to be loaded."""


@dataclass(slots=True, eq=False)
class ExpertSlot:
    """Mutable record of one expert. Times are monotonic seconds, sizes bytes.

    Only the manager's loop changes ``state`` and ``engine``; requests only count themselves in and out.
    """

    config: ExpertConfig
    series: ExpertSeries
    warm: bool
    spec: ExpertSpec | None = None
    state: State = State.UNLOADED
    engine: ExpertEngine | None = None
    asked: bool = False
    held_down: bool = False
    guess: float = 0.0
    unused: bool = False
    cancelling: bool = False
    """Its load is to end without an engine; only ever true while it loads."""
    in_flight: int = 0
    waiters: dict[asyncio.Future[Lease], float] = field(default_factory=dict)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    last_used: float = 0.0
    busy_since: float = 0.0
    loaded_at: float = 0.0
    load_started: float = 0.0
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    failures: int = 0
    retry_at: float = 0.0
    measured_bytes: int = 0
    loads: int = 0
    unloads: int = 0
    load_s_last: float | None = None
    load_s_sum: float = 0.0
    requests: int = 0

    @property
    def expert_id(self) -> str:
        return self.config.expert_id

    @property
    def need_bytes(self) -> int:
        return 0 if self.spec is None else self.spec.need_bytes

    @property
    def load_s_mean(self) -> float | None:
        """Mean duration of the loads so far."""
        return self.load_s_sum / self.loads if self.loads else None

    def view(self) -> ExpertView:
        """This expert as the decisions see it.

        One whose engine died is seen as draining until the process is known to be gone: it still counts
        against the memory, and must not be loaded a second time beside its remains.
        """
        leaving = self.state is State.FAILED and self.engine is not None
        return ExpertView(
            expert_id=self.expert_id,
            state=State.DRAINING if leaving else self.state,
            priority=self.config.priority,
            pinned=self.config.pinned,
            warm=self.warm,
            guess=self.guess,
            unused=self.unused,
            asked=self.asked,
            held_down=self.held_down,
            in_flight=self.in_flight,
            waiters=len(self.waiters),
            oldest_wait=min(self.waiters.values(), default=0.0),
            last_used=self.last_used,
            loaded_at=self.loaded_at,
            need_bytes=self.need_bytes,
            held_bytes=max(self.need_bytes, self.measured_bytes),
            reload_s=self.load_s_mean or _FIRST_RELOAD_GUESS_S,
            retry_at=self.retry_at,
        )

    def note_failure(self, error: str, now: float, *, was_running: bool) -> None:
        """Remember a failed load or a dead engine, and when the next try may be.

        The delay doubles with each failure in a row, up to a minute. An engine that had run well may come
        back at once.
        """
        if was_running and now - self.loaded_at > _STABLE_AFTER_S:
            self.failures = 0
        self.failures += 1
        delay = min(_MAX_BACKOFF_S, 2.0 ** (self.failures - 1))
        if was_running and self.failures == 1:
            delay = 0.0
        self.retry_at = now + delay
        self.error = error

    def public_status(self) -> dict[str, Any]:
        """The ``status`` object of ``/v1/models``: four values, as other servers of this kind have them."""
        status: dict[str, Any] = {"value": "loaded" if self.state is State.DRAINING else self.state.value}
        if self.state is State.LOADING:
            status["progress"] = {"stage": self.stage, "value": self.progress}
        if self.state is State.FAILED:
            status["failed"] = True
            status["error"] = self.error
        return status
