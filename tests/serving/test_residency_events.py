# SPDX-License-Identifier: Apache-2.0
"""Residency events reach every listener, and a slow one never holds up the server."""

from __future__ import annotations

import asyncio

from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.residency import State
from vllm_axion.serving.residency_events import EventQueue, ResidencyEvents


def make_slot(expert_id: str = "one") -> ExpertSlot:
    return ExpertSlot(
        ExpertConfig(expert_id=expert_id, model_path="org/model"), ExpertSeries(expert_id), False
    )


def drain(queue: EventQueue) -> list[tuple[str, str, str] | None]:
    found: list[tuple[str, str, str] | None] = []
    while not queue.empty():
        event = queue.get_nowait()
        found.append(None if event is None else (event["model"], event["event"], event["data"]["status"]))
    return found


async def test_a_listener_begins_with_the_state_of_every_expert_then_hears_changes() -> None:
    events, one, two = ResidencyEvents(), make_slot("one"), make_slot("two")
    events.publish(one)  # nobody listens
    async with events.listen([one, two]) as first, events.listen([]) as second:
        one.state = State.LOADED
        events.publish(one)
        change = ("one", "status_change", "loaded")
        assert drain(first) == [
            ("one", "model_status", "unloaded"),
            ("two", "model_status", "unloaded"),
            change,
        ]
        assert drain(second) == [change]


async def test_events_carry_progress_and_errors() -> None:
    events, slot = ResidencyEvents(), make_slot()
    async with events.listen([]) as queue:
        slot.state, slot.stage, slot.progress = State.LOADING, "weights", 0.25
        events.publish(slot)
        slot.state, slot.error = State.FAILED, "one: truncated"
        events.publish(slot)
        assert await queue.get() == {
            "model": "one",
            "event": "status_change",
            "data": {"status": "loading", "progress": {"stage": "weights", "value": 0.25}},
        }
        assert await queue.get() == {
            "model": "one",
            "event": "status_change",
            "data": {"status": "failed", "failed": True, "error": "one: truncated"},
        }


async def test_a_listener_that_left_costs_nothing() -> None:
    events = ResidencyEvents()
    async with events.listen([]) as queue:
        pass
    events.publish(make_slot())
    assert queue.empty()


async def test_a_slow_listener_loses_the_oldest_events_never_the_newest() -> None:
    events, slot = ResidencyEvents(), make_slot()
    async with events.listen([]) as queue:
        for number in range(1000):
            slot.state, slot.progress = State.LOADING, number / 1000
            events.publish(slot)
        events.close()
        assert queue.qsize() <= 256
        kept = [await queue.get() for _ in range(queue.qsize())]
    assert kept[-1] is None
    assert kept[-2] is not None and kept[-2]["data"]["progress"]["value"] == 0.999


async def test_closing_ends_streams_and_those_that_come_later() -> None:
    events, slot = ResidencyEvents(), make_slot()
    async with events.listen([]) as queue:
        reading = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        events.close()
        assert await asyncio.wait_for(reading, 1) is None
    async with events.listen([slot]) as late:
        assert drain(late) == [("one", "model_status", "unloaded"), None]
