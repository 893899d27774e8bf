# SPDX-License-Identifier: Apache-2.0
"""Loads experts when they are asked for, and unloads them when they are not.

One loop is the only writer of who is in memory. It asks the pure functions of `residency.py` what to do,
starts loads and unloads as tasks, and applies what comes of them. Requests meet it in two places: `acquire`
takes a loaded expert at once or joins the queue for it, `release` gives it back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.core_plan import engine_cores, usable_cores
from vllm_axion.serving.core_sharing import CoreSharing
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.errors import (
    CannotLoadNowError,
    ModelNotFoundError,
    NeverFitsError,
    QueueFullError,
    ServingError,
    ShuttingDownError,
)
from vllm_axion.serving.expert_engine import (
    EngineFactory,
    EngineStartError,
    ExpertEngine,
    give_memory_back,
)
from vllm_axion.serving.expert_loading import Loaded, NotLoaded, load_expert
from vllm_axion.serving.expert_slot import ExpertSlot, Lease
from vllm_axion.serving.expert_spec import inspect_expert
from vllm_axion.serving.machine_memory import MachineMemory, read_machine_memory
from vllm_axion.serving.memory_budget import format_bytes
from vllm_axion.serving.memory_watch import MemoryWatch
from vllm_axion.serving.metrics import ServerMetrics, UnloadReason
from vllm_axion.serving.prefetch import Prefetch
from vllm_axion.serving.profiles import PROFILES, Profile
from vllm_axion.serving.residency import (
    Action,
    CancelLoad,
    Load,
    Rules,
    State,
    Unload,
    World,
    can_ever_fit,
    decide,
)
from vllm_axion.serving.residency_events import ResidencyEvents
from vllm_axion.serving.safetensors_header import CheckpointError

logger = logging.getLogger("vllm_axion.experts")

_STOP_TAKES_S = 10.0
_LAST_WORDS_S = 5.0
"""Requests of an engine that died get so long to end by themselves, with vLLM's own error."""


@dataclass(frozen=True, slots=True)
class _Gone:
    slot: ExpertSlot
    reason: UnloadReason


@dataclass(frozen=True, slots=True)
class _Died:
    slot: ExpertSlot
    engine: ExpertEngine


@dataclass(frozen=True, slots=True)
class _Asked:
    slot: ExpertSlot
    wish: Literal["load", "unload"]


_Event = Loaded | NotLoaded | _Gone | _Died | _Asked


class LazyExpertManager:
    """The experts of one server. Every method belongs to the event loop `start` was called on."""

    def __init__(
        self,
        config: MultiModelConfig,
        factory: EngineFactory,
        series: Mapping[str, ExpertSeries],
        metrics: ServerMetrics,
        *,
        profile: Profile = PROFILES["default"],
        cores: CoreSharing | None = None,
        read_memory: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self._config = config
        self._factory = factory
        self._metrics = metrics
        lazy = config.lazy_loading
        by_priority = sorted(config.experts, key=lambda e: e.priority)
        pool_size = lazy.warmup_pool_size if profile.warm_pool else 0
        warm = {e.expert_id for e in by_priority[:pool_size]}
        self.slots: dict[str, ExpertSlot] = {
            e.expert_id: ExpertSlot(e, series[e.expert_id], e.expert_id in warm) for e in config.experts
        }
        self._prefetch = Prefetch(metrics, enabled=profile.prefetch)
        self._cores = cores or CoreSharing("shared", engine_cores(usable_cores()))
        self._memory = MemoryWatch(self.slots.values(), factory.starting_pid, metrics, read_memory)
        self._events: deque[_Event] = deque()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._closing = False
        self.events = ResidencyEvents()

    # Life of the manager

    async def start(self) -> None:
        """Read every checkpoint's metadata, then begin to decide; the warm pool starts loading."""
        for slot in self.slots.values():
            try:
                options = self._factory.options(slot.config)
                slot.spec = await asyncio.to_thread(
                    inspect_expert, slot.config, self._config.base_dir, options
                )
            except (CheckpointError, EngineStartError) as error:
                slot.error = str(error)
                slot.held_down = (
                    True  # not a candidate for the warm pool; a request tries again and gets the reason
                )
                logger.warning(
                    "%s cannot be loaded: %s", slot.expert_id, error, extra={"expert": slot.expert_id}
                )
        await self._memory.sample()
        self._loop_task = asyncio.create_task(self._run(), name="expert-manager")
        self._memory.start(self._wake.set)

    async def stop(self) -> None:
        """Refuse whoever waits, end every engine, and return when no process is left."""
        self._closing = True
        for slot in self.slots.values():
            self._refuse(slot, ShuttingDownError("the server is shutting down", retry_after_s=10))
        for slot in self.slots.values():
            self._cancel_load(slot)
        self._wake.set()
        if self._loop_task is not None:
            await self._loop_task
        for task in list(self._tasks):
            if task.get_name() in ("load", "unload"):
                await asyncio.wait({task}, timeout=_STOP_TAKES_S)
            task.cancel()
        self._apply_events()
        await asyncio.gather(
            *(self._end(slot, "shutdown") for slot in self.slots.values() if slot.engine is not None)
        )
        self._apply_events()
        self._memory.stop()
        self.events.close()
        self._factory.close()

    @property
    def closing(self) -> bool:
        """Whether `stop` has been called."""
        return self._closing

    def begin_drain(self) -> None:
        """Refuse new waits and end event streams; what is in flight goes on."""
        self._closing = True
        for slot in self.slots.values():
            self._refuse(slot, ShuttingDownError("the server is shutting down", retry_after_s=10))
        self.events.close()
        self._wake.set()

    # Requests

    def slot(self, expert_id: str) -> ExpertSlot:
        """The expert's record. Raises ModelNotFoundError."""
        try:
            return self.slots[expert_id]
        except KeyError:
            known = ", ".join(self.slots)
            raise ModelNotFoundError(
                f"the model {expert_id[:200]!r} does not exist; this server has: auto, {known}", param="model"
            ) from None

    def loaded_ids(self) -> list[str]:
        """Experts that would answer at once."""
        return [slot.expert_id for slot in self.slots.values() if slot.state is State.LOADED]

    def try_acquire(self, expert_id: str) -> Lease | None:
        """A lease on the expert if it is loaded. Raises ModelNotFoundError."""
        slot = self.slot(expert_id)
        if slot.state is State.LOADED and slot.engine is not None:
            return self._grant(slot, slot.engine, 0.0)
        return None

    async def acquire(self, expert_id: str) -> Lease:
        """A lease on the expert, loading it first if need be. Cancelling the call leaves nothing behind.

        Raises:
            ModelNotFoundError, NeverFitsError, QueueFullError, CannotLoadNowError, ShuttingDownError.
        """
        if (lease := self.try_acquire(expert_id)) is not None:
            return lease
        slot = self.slot(expert_id)
        self._check_admission(slot)
        now = time.monotonic()
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        slot.waiters[future] = now
        self._count(slot)
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise
        finally:
            if slot.waiters.pop(future, None) is not None:
                self._count(slot)
                self._wake.set()

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        slot = lease.slot
        slot.in_flight -= 1
        slot.last_used = time.monotonic()
        self._count(slot)
        if slot.in_flight == 0:
            slot.drained.set()
            self._wake.set()

    @asynccontextmanager
    async def lease(self, expert_id: str) -> AsyncIterator[Lease]:
        """`acquire` and `release` as a context."""
        held = await self.acquire(expert_id)
        try:
            yield held
        finally:
            self.release(held)

    def observe(self, expert_id: str, runner_up: str | None, chance: float) -> None:
        """Tell the prefetch where a request goes, and where it nearly went."""
        self._prefetch.observe(expert_id, runner_up, chance)

    def _grant(self, slot: ExpertSlot, engine: ExpertEngine, waited_s: float) -> Lease:
        self._prefetch.used(slot)
        if slot.in_flight == 0:
            slot.busy_since = time.monotonic()
            if self._cores.follows_load:
                self._wake.set()
        slot.in_flight += 1
        slot.requests += 1
        slot.last_used = time.monotonic()
        slot.drained.clear()
        self._count(slot)
        return Lease(slot, engine, waited_s)

    def _check_admission(self, slot: ExpertSlot) -> None:
        if self._closing:
            raise ShuttingDownError("the server is shutting down", retry_after_s=10)
        now = time.monotonic()
        if slot.state is State.FAILED and slot.retry_at > now:
            raise CannotLoadNowError(
                f"{slot.error}; the next try is in {slot.retry_at - now:.0f} s",
                retry_after_s=slot.retry_at - now,
            )
        self._check_fits(slot)
        if sum(len(s.waiters) for s in self.slots.values()) >= self._config.limits.max_queue:
            self._metrics.request_rejected("queue_full")
            raise QueueFullError(
                f"{self._config.limits.max_queue} requests are already waiting for a model to load",
                retry_after_s=slot.load_s_mean or 5,
            )

    def _check_fits(self, slot: ExpertSlot) -> None:
        world = self._world()
        if not can_ever_fit(slot.need_bytes, slot.view(), world):
            self._metrics.request_rejected("never_fits")
            need, allowed = format_bytes(slot.need_bytes), format_bytes(world.rules.allowed_bytes)
            raise NeverFitsError(
                f"{slot.expert_id} needs {need}; this server may use {allowed}, what is pinned included, so"
                " it can never be loaded here",
                param="model",
            )

    def _refuse(self, slot: ExpertSlot, error: ServingError) -> None:
        for future in list(slot.waiters):
            if not future.done():
                future.set_exception(error)
        slot.waiters.clear()
        self._count(slot)

    def _count(self, slot: ExpertSlot) -> None:
        self._metrics.requests_now(slot.expert_id, in_flight=slot.in_flight, waiting=len(slot.waiters))

    # Operators

    def request_load(self, expert_id: str) -> None:
        """Load the expert as if a request had asked for it. Raises as `acquire` does, at once."""
        slot = self.slot(expert_id)
        if slot.state not in (State.LOADED, State.LOADING) or slot.cancelling:
            self._check_admission(slot)
            self._tell(_Asked(slot, "load"))

    def request_unload(self, expert_id: str) -> None:
        """Drain and unload the expert, or cancel its load; it stays unloaded until somebody asks for it."""
        self._tell(_Asked(self.slot(expert_id), "unload"))

    # The loop

    def _tell(self, event: _Event) -> None:
        self._events.append(event)
        self._wake.set()

    @property
    def _rules(self) -> Rules:
        # Made anew: a container's limit may be changed while it runs.
        lazy = self._config.lazy_loading
        return Rules(
            allowed_bytes=int(self._memory.machine.limit_bytes * lazy.memory_threshold),
            max_loaded=lazy.max_loaded_experts,
            min_residency_s=lazy.min_residency_s,
            auto_unload_after_s=lazy.auto_unload_after_s,
            lazy=lazy.enabled,
        )

    def _world(self) -> World:
        return World(
            now=time.monotonic(),
            experts=[slot.view() for slot in self.slots.values()],
            rules=self._rules,
            other_bytes=self._memory.other_bytes,
        )

    async def _run(self) -> None:
        while not self._closing:
            try:
                self._wake.clear()
                self._apply_events()
                self._expire_waits()
                self._prefetch.mark(self.slots.values())
                plan = decide(self._world())
                for action in plan.actions:  # a change of state wakes the loop again
                    self._carry_out(action)
                self._share_cores()
                self._show_levels()
                looks = (plan.wake_at, self._next_expiry(), self._cores.next_look(self.slots.values()))
                wake_at = min((t for t in looks if t is not None), default=None)
            except Exception:
                logger.exception("the expert manager met an error and goes on")
                wake_at = time.monotonic() + 1.0
            timeout = None if wake_at is None else max(0.01, wake_at - time.monotonic())
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                continue

    def _carry_out(self, action: Action) -> None:
        slot = self.slots[action.expert_id]
        if isinstance(action, Load):
            slot.load_started = time.monotonic()
            self._prefetch.loading(slot)
            slot.stage, slot.progress, slot.cancelling = "queued", None, False
            self._set_state(slot, State.LOADING)
            self._spawn(self._load(slot), "load")
        elif isinstance(action, Unload):
            self._begin_unload(slot, "idle" if action.reason == "idle" else "evicted")
        elif isinstance(action, CancelLoad):
            if not slot.cancelling:
                logger.info(
                    "%s: nobody waits for it any more, its load is cancelled",
                    slot.expert_id,
                    extra={"expert": slot.expert_id},
                )
            self._cancel_load(slot)

    def _cancel_load(self, slot: ExpertSlot) -> None:
        if slot.state is State.LOADING:
            slot.cancelling = True  # for a load that has no engine yet, or has one already
            self._factory.cancel()

    def _begin_unload(self, slot: ExpertSlot, reason: UnloadReason) -> None:
        logger.info("%s: unloading (%s)", slot.expert_id, reason, extra={"expert": slot.expert_id})
        self._set_state(slot, State.DRAINING)
        self._spawn(self._unload(slot, reason), "unload")

    def _apply_events(self) -> None:
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Loaded):
                self._apply_loaded(event)
            elif isinstance(event, NotLoaded):
                self._apply_not_loaded(event)
            elif isinstance(event, _Gone):
                self._apply_gone(event)
            elif isinstance(event, _Died):
                self._apply_died(event)
            else:
                self._apply_asked(event)

    def _apply_loaded(self, event: Loaded) -> None:
        slot, now = event.slot, time.monotonic()
        slot.engine = event.engine
        event.engine.watch(lambda: self._tell(_Died(slot, event.engine)))
        slot.loads += 1
        slot.load_s_last = event.seconds
        slot.load_s_sum += event.seconds
        slot.loaded_at = slot.last_used = now
        held_down = slot.held_down
        slot.asked = slot.held_down = False
        slot.error = slot.stage = slot.progress = None
        slot.failures = 0 if slot.failures == 0 or now - slot.retry_at > 60 else slot.failures
        self._metrics.load_finished(slot.expert_id, "loaded", event.seconds)
        self._set_state(slot, State.LOADED)
        if not self._closing:
            self._spawn(self._sample_memory())
        logger.info("%s: loaded in %.2f s", slot.expert_id, event.seconds, extra={"expert": slot.expert_id})
        for future, since in slot.waiters.items():
            if not future.done():
                self._metrics.request_waited(slot.expert_id, now - since)
                future.set_result(self._grant(slot, event.engine, now - since))
        slot.waiters.clear()
        self._count(slot)
        cancelled, slot.cancelling = slot.cancelling, False
        if cancelled and not slot.in_flight and not self._closing:  # the wish came when it was done already
            slot.held_down = held_down
            self._begin_unload(slot, "requested")

    def _apply_not_loaded(self, event: NotLoaded) -> None:
        slot, now = event.slot, time.monotonic()
        slot.cancelling = False
        slot.stage = slot.progress = None
        self._prefetch.gone(slot)
        self._metrics.load_finished(slot.expert_id, event.outcome, event.seconds)
        if event.outcome == "cancelled":
            # Whoever came after the cancellation still waits, and gets a fresh load.
            self._set_state(slot, State.UNLOADED)
            return
        slot.asked = False
        slot.note_failure(event.error, now, was_running=False)
        self._set_state(slot, State.FAILED)
        logger.error("%s", event.error, extra={"expert": slot.expert_id})
        self._refuse(slot, CannotLoadNowError(event.error, param="model", retry_after_s=slot.retry_at - now))

    def _apply_gone(self, event: _Gone) -> None:
        slot = event.slot
        if slot.engine is None:  # `stop` and the unload it did not wait for both tell
            return
        slot.engine = None
        slot.measured_bytes = 0
        slot.unloads += 1
        self._prefetch.gone(slot)
        self._metrics.unloaded(slot.expert_id, event.reason)
        if slot.state is not State.FAILED:
            self._set_state(slot, State.UNLOADED)

    def _apply_died(self, event: _Died) -> None:
        slot = event.slot
        if slot.engine is not event.engine:
            return
        error = f"the engine of {slot.expert_id} ended unexpectedly"
        code = event.engine.process.exitcode
        logger.error("%s (exit code %s)", error, code, extra={"expert": slot.expert_id})
        slot.note_failure(error, time.monotonic(), was_running=True)
        if slot.state is State.LOADED:
            self._set_state(slot, State.FAILED)
            self._spawn(self._unload(slot, "failed"), "unload")

    def _apply_asked(self, event: _Asked) -> None:
        slot = event.slot
        if event.wish == "load":
            slot.asked, slot.held_down = True, False
        else:
            slot.asked, slot.held_down = False, True
            if slot.state is State.LOADING:
                message = f"the load of {slot.expert_id} was cancelled by an operator"
                self._refuse(slot, CannotLoadNowError(message, param="model", retry_after_s=1))
                self._cancel_load(slot)
            elif slot.state is State.LOADED:
                self._begin_unload(slot, "requested")

    def _expire_waits(self) -> None:
        limit = self._config.limits.queue_timeout_s
        now = time.monotonic()
        for slot in self.slots.values():
            if slot.state is State.LOADING:
                continue  # the load has its own limit
            for future, since in list(slot.waiters.items()):
                if now - since >= limit and not future.done():
                    self._metrics.request_rejected("timeout")
                    message = f"{slot.expert_id} waited {limit:.0f} s for its load: other models are busy"
                    future.set_exception(CannotLoadNowError(message, param="model", retry_after_s=10))
                    del slot.waiters[future]
                    self._count(slot)

    def _next_expiry(self) -> float | None:
        waits = [t for s in self.slots.values() if s.state is not State.LOADING for t in s.waiters.values()]
        return min(waits) + self._config.limits.queue_timeout_s if waits else None

    def _set_state(self, slot: ExpertSlot, state: State) -> None:
        slot.state = state
        self._metrics.state_changed(slot.expert_id, state)
        self.events.publish(slot)
        self._wake.set()

    # Tasks of the loop

    def _spawn(self, work: Any, name: str = "background") -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, slot: ExpertSlot) -> None:
        limit_s = self._config.limits.load_timeout_s
        base_dir = self._config.base_dir
        outcome = await load_expert(slot, self._factory, base_dir, limit_s, self.events.publish)
        if isinstance(outcome, NotLoaded):  # what had been started of it is garbage by now
            await asyncio.to_thread(give_memory_back, multimodal=True)
        self._tell(outcome)

    async def _sample_memory(self) -> None:
        await self._memory.sample()
        self._wake.set()

    async def _unload(self, slot: ExpertSlot, reason: UnloadReason) -> None:
        # Who is evicted is never cut off; an operator's unload waits only so long.
        limit = None
        if reason == "requested":
            limit = self._config.lazy_loading.drain_timeout_s
        elif reason == "failed":
            limit = _LAST_WORDS_S
        if slot.in_flight:
            slot.drained.clear()
            try:
                await asyncio.wait_for(slot.drained.wait(), limit)
            except TimeoutError:
                logger.warning(
                    "%s: %d requests cut off after %.0f s",
                    slot.expert_id,
                    slot.in_flight,
                    limit or 0,
                    extra={"expert": slot.expert_id},
                )
        await self._end(slot, reason)

    async def _end(self, slot: ExpertSlot, reason: UnloadReason) -> None:
        try:
            if slot.engine is not None:
                await slot.engine.stop()
        except Exception:
            logger.exception(
                "ending the engine of %s met an error", slot.expert_id, extra={"expert": slot.expert_id}
            )
        self._tell(_Gone(slot, reason))

    def memory(self) -> dict[str, Any]:
        """The memory part of ``/stats``, in bytes."""
        return self._memory.report(self._rules.allowed_bytes)

    def cores(self, expert_id: str) -> list[int]:
        """The cores an expert's engine runs on."""
        return list(self._cores.cores_of(expert_id))

    def core_policy(self) -> dict[str, Any]:
        """The cores part of ``/stats``."""
        return self._cores.report()

    def _share_cores(self) -> None:
        for slot, cores in self._cores.changes(self.slots.values()):
            if slot.engine is not None:
                self._spawn(slot.engine.set_cores(cores))

    def _show_levels(self) -> None:
        """Set the gauges of what the loop decides; a scrape must not have to ask for ``/stats`` first."""
        self._memory.report(self._rules.allowed_bytes)
        for slot in self.slots.values():
            cores = 0 if slot.engine is None else len(self.cores(slot.expert_id))
            self._metrics.cores_given(slot.expert_id, cores)

    def views(self) -> Sequence[ExpertSlot]:
        """Every expert's record, in the order of the configuration."""
        return list(self.slots.values())
