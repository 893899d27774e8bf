# SPDX-License-Identifier: Apache-2.0
"""Measures the machine and the engines every few seconds, for decisions, ``/stats`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

from vllm_axion.serving.expert_engine import ExpertEngine
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.machine_memory import MachineMemory, process_memory
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.residency import RESIDENT

logger = logging.getLogger("vllm_axion.experts")

_EVERY_S = 5.0


class MemoryWatch:
    """The latest measurement. ``other_bytes`` is in use by anything that is not an expert."""

    def __init__(
        self,
        slots: Collection[ExpertSlot],
        starting_pid: Callable[[], int | None],
        metrics: ServerMetrics,
        read_memory: Callable[[], MachineMemory],
    ) -> None:
        self._slots = slots
        self._starting_pid = starting_pid
        self._metrics = metrics
        self._read_memory = read_memory
        self._task: asyncio.Task[None] | None = None
        self.machine = read_memory()
        self.other_bytes = 0

    def start(self, changed: Callable[[], None]) -> None:
        """Sample until `stop`; ``changed`` is called after each sample."""

        async def keep_sampling() -> None:
            while True:
                await asyncio.sleep(_EVERY_S)
                try:
                    await self.sample()
                except Exception:
                    logger.exception("measuring memory failed; the last measurement stands")
                changed()

        self._task = asyncio.create_task(keep_sampling(), name="memory-watch")

    def stop(self) -> None:
        """Stop sampling."""
        if self._task is not None:
            self._task.cancel()

    async def sample(self) -> None:
        """Measure now; in a thread, since the kernel takes its time over large processes.

        A measurement during which an engine came or went is dropped: it would count memory twice, or not at
        all.
        """
        engines = self._engines()
        starting = self._starting_pid()

        def measure() -> tuple[MachineMemory, dict[str, int], int]:
            held = {expert_id: private_bytes(engine.pid) for expert_id, engine in engines.items()}
            return self._read_memory(), held, 0 if starting is None else private_bytes(starting)

        machine, held, half_loaded = await asyncio.to_thread(measure)
        if self._engines() != engines or self._starting_pid() != starting:
            return
        self.machine = machine
        for slot in self._slots:
            if slot.engine is None:
                continue
            slot.measured_bytes = held[slot.expert_id]
            need = None if slot.spec is None else slot.spec.need
            self._metrics.expert_memory(
                slot.expert_id,
                weights=0 if need is None else need.weights + need.second_copies,
                kv=0 if slot.spec is None else slot.spec.kv_bytes,
                process=slot.measured_bytes,
            )
        self.other_bytes = max(0, self.machine.used_bytes - sum(held.values()) - half_loaded)

    def _engines(self) -> dict[str, ExpertEngine]:
        return {s.expert_id: s.engine for s in self._slots if s.engine is not None}

    def report(self, allowed_bytes: int) -> dict[str, Any]:
        """The memory part of ``/stats``, in bytes; also sets the gauges."""
        reserved = sum(s.view().held_bytes for s in self._slots if s.state in RESIDENT)
        self._metrics.memory_measured(
            limit=self.machine.limit_bytes,
            allowed=allowed_bytes,
            reserved=reserved,
            others=self.other_bytes,
        )
        return {
            "limit_bytes": self.machine.limit_bytes,
            "limit_source": self.machine.source,
            "allowed_bytes": allowed_bytes,
            "reserved_bytes": reserved,
            "others_bytes": self.other_bytes,
        }


def private_bytes(pid: int) -> int:
    """Memory of a process that would come back if it ended: its proportional share; 0 if it is gone."""
    try:
        memory = process_memory(pid)
    except ProcessLookupError:
        return 0
    return memory.pss if memory.pss is not None else max(0, memory.rss - memory.shared)
