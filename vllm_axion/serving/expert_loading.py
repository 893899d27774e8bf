# SPDX-License-Identifier: Apache-2.0
"""One load of one expert, from its checkpoint's headers to an engine that answers, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_axion.serving.expert_engine import (
    EngineCancelledError,
    EngineFactory,
    EngineStartError,
    ExpertEngine,
)
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.expert_spec import inspect_expert
from vllm_axion.serving.machine_memory import process_memory
from vllm_axion.serving.safetensors_header import CheckpointError

logger = logging.getLogger("vllm_axion.experts")

_PROGRESS_EVERY_S = 0.5
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine is ready."""

    slot: ExpertSlot
    engine: ExpertEngine
    seconds: float


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """There is no engine; ``error`` is one line for the client."""

    slot: ExpertSlot
    error: str
    outcome: Literal["failed", "cancelled"]
    seconds: float


async def load_expert(
    slot: ExpertSlot,
    factory: EngineFactory,
    base_dir: Path,
    limit_s: float,
    publish: Callable[[ExpertSlot], None],
) -> Loaded | NotLoaded:
    """Load the expert within ``limit_s`` seconds; ``publish`` is called whenever there is progress to show.

    Never raises: what goes wrong is in the outcome. A load that does not end in time is ended.
    """
    began = time.monotonic()

    def failed(error: str) -> NotLoaded:
        return NotLoaded(slot, error, "failed", time.monotonic() - began)

    def enter(stage: str) -> None:
        slot.stage = stage
        publish(slot)

    progress = asyncio.create_task(_report_progress(slot, factory, publish))
    try:
        slot.spec = await asyncio.to_thread(
            inspect_expert, slot.config, base_dir, factory.options(slot.config)
        )
        if slot.cancelling:
            raise EngineCancelledError(f"loading {slot.expert_id} was cancelled")
        starting = asyncio.create_task(factory.start(slot.spec, slot.series, enter))
        done: set[asyncio.Task[ExpertEngine]] = set()
        while not done:
            left = began + limit_s - time.monotonic()
            if slot.cancelling or left <= 0:  # again and again: the process may not have existed yet
                factory.cancel()
            done, _ = await asyncio.wait({starting}, timeout=min(left, _LOOK_EVERY_S) if left > 0 else 0.5)
        return Loaded(slot, starting.result(), time.monotonic() - began)
    except EngineCancelledError:
        took = time.monotonic() - began
        if took >= limit_s and not slot.cancelling:
            return failed(f"{slot.expert_id} did not load within {limit_s:.0f} s")
        return NotLoaded(slot, "", "cancelled", took)
    except (CheckpointError, EngineStartError) as error:
        text = str(error)
        known = text.startswith(slot.expert_id)
        return failed(text if known else f"{slot.expert_id} could not be loaded: {text}")
    except Exception:
        logger.exception("loading %s failed", slot.expert_id, extra={"expert": slot.expert_id})
        return failed(f"{slot.expert_id} could not be loaded; the server's log says why")
    finally:
        progress.cancel()


async def _report_progress(
    slot: ExpertSlot, factory: EngineFactory, publish: Callable[[ExpertSlot], None]
) -> None:
    """Progress is the engine's memory against what its weights and KV cache will take."""
    while True:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        pid, spec = factory.starting_pid(), slot.spec
        if pid is None or spec is None or spec.need is None:
            continue
        try:
            held = (await asyncio.to_thread(process_memory, pid)).anonymous
        except ProcessLookupError:
            continue
        expected = spec.need.weights + spec.need.second_copies + spec.need.kv
        slot.progress = round(min(0.99, held / max(1, expected)), 3)
        publish(slot)
