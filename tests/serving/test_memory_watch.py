# SPDX-License-Identifier: Apache-2.0
"""Measurements of the machine and the engines: what they mean, and when they must not count."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from vllm_axion.serving import memory_watch
from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.expert_engine import ExpertEngine
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.machine_memory import MachineMemory
from vllm_axion.serving.memory_watch import MemoryWatch, private_bytes
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.residency import State

GIB = 1024**3


class Engine:
    """As much of an engine as the watch looks at: a process that is really there."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def make_slot(pid: int | None = None) -> ExpertSlot:
    slot = ExpertSlot(ExpertConfig(expert_id="one", model_path="org/model"), ExpertSeries("one"), False)
    if pid is not None:
        slot.engine, slot.state = cast(ExpertEngine, Engine(pid)), State.LOADED
    return slot


def make_watch(
    slot: ExpertSlot,
    used: int | Callable[[], int] = GIB,
    starting: Callable[[], int | None] = lambda: None,
) -> MemoryWatch:
    def read() -> MachineMemory:
        return MachineMemory(8 * GIB, used() if callable(used) else used, "RAM")

    return MemoryWatch([slot], starting, ServerMetrics({"one": "general"}), read)


async def test_what_experts_hold_is_not_held_by_others() -> None:
    slot = make_slot(os.getpid())
    watch = make_watch(slot)
    await watch.sample()
    assert slot.measured_bytes > 10 * 1024**2
    assert watch.other_bytes == GIB - slot.measured_bytes


async def test_an_engine_that_is_starting_is_not_held_by_others_either() -> None:
    watch = make_watch(make_slot(), starting=os.getpid)
    await watch.sample()
    assert 0 < watch.other_bytes < GIB - 10 * 1024**2


async def test_others_never_hold_less_than_nothing() -> None:
    watch = make_watch(make_slot(os.getpid()), used=0)
    await watch.sample()
    assert watch.other_bytes == 0


async def test_a_measurement_during_which_an_engine_came_is_dropped() -> None:
    # Its memory is in what the machine uses, but it was not known as an engine when the measuring began.
    slot = make_slot()

    def used_while_an_engine_comes() -> int:
        if watch_made and slot.engine is None:
            slot.engine, slot.state = cast(ExpertEngine, Engine(os.getpid())), State.LOADED
        return 6 * GIB

    watch_made: list[bool] = []
    watch = make_watch(slot, used_while_an_engine_comes)
    watch_made.append(True)
    await watch.sample()
    assert (watch.other_bytes, slot.measured_bytes) == (0, 0)
    await watch.sample()
    assert watch.other_bytes == 6 * GIB - slot.measured_bytes


async def test_a_failed_measurement_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "_EVERY_S", 0.01)
    faults: list[bool] = [False, True]  # the first is read when the watch is made

    def used() -> int:
        if faults and faults.pop(0):
            raise OSError("try later")
        return GIB

    watch, woken = make_watch(make_slot(), used), asyncio.Event()
    watch.start(lambda: woken.set() if watch.other_bytes else None)
    await asyncio.wait_for(woken.wait(), 5)
    watch.stop()
    assert watch.other_bytes == GIB


async def test_the_report_tells_limit_budget_promises_and_others() -> None:
    slot = make_slot(os.getpid())
    watch = make_watch(slot)
    await watch.sample()
    report: dict[str, Any] = watch.report(6 * GIB)
    assert report == {
        "limit_bytes": 8 * GIB,
        "limit_source": "RAM",
        "allowed_bytes": 6 * GIB,
        "reserved_bytes": slot.measured_bytes,
        "others_bytes": watch.other_bytes,
    }
    slot.state = State.UNLOADED
    assert watch.report(6 * GIB)["reserved_bytes"] == 0


def test_a_process_that_is_gone_holds_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert private_bytes(ended.pid) == 0
